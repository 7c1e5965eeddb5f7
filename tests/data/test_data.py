"""Token files: what `load` refuses, and what `batch` and `spans` promise."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

import data
from data import DataError, batch, load, spans
from runtime import errors


def write(root: Path, train: list[int], val: list[int], vocab_size: int = 50, **changes) -> Path:
    """A dataset folder by struct and json alone: nothing of what is tested writes it."""
    folder = root / "toy"
    folder.mkdir(parents=True)
    splits = {}
    for name, tokens in (("train", train), ("val", val)):
        raw = struct.pack(f"<{len(tokens)}H", *tokens)
        (folder / f"{name}.bin").write_bytes(raw)
        digest = hashlib.sha256(raw).hexdigest()
        splits[name] = {"tokens": len(tokens), "sha256": digest, "documents": [0], "names": ["a"]}
    characters = "".join(chr(0x10000 + i) for i in range(int(vocab_size)))
    tokenizer = {"kind": "char", "characters": characters}
    meta = {"format": 1, "vocab_size": vocab_size, "tokenizer": tokenizer, "splits": splits}
    meta |= changes
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def edit_meta(folder: Path, split: str, **entry) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta["splits"][split] |= entry
    (folder / "meta.json").write_text(json.dumps(meta))


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load("toy", root)
    assert errors.exit_code(caught.value) == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_load_gives_what_the_files_hold(tmp_path):
    folder = write(tmp_path, [3, 1, 4, 1, 5, 49], [9, 2, 6])
    edit_meta(folder, "train", documents=[0, 2, 5])
    dataset = load("toy", tmp_path)
    assert dataset.train.tolist() == np.fromfile(folder / "train.bin", "<u2").tolist()
    assert dataset.train.tolist() == [3, 1, 4, 1, 5, 49]
    assert dataset.val.tolist() == [9, 2, 6]
    assert dataset.vocab_size == 50
    assert dataset.documents("train") == [(0, 2), (2, 5), (5, 6)]
    assert dataset.documents("val") == [(0, 3)]
    for split in ("train", "val"):
        digest = hashlib.sha256((folder / f"{split}.bin").read_bytes()).hexdigest()
        assert dataset.fingerprint[split] == digest


def test_tokens_are_read_only(tmp_path):
    write(tmp_path, [1, 2], [1])
    with pytest.raises(ValueError, match="read-only"):
        load("toy", tmp_path).train[0] = 7


def test_missing_folder_names_the_command(tmp_path):
    command = f"`python -m data.prepare toy --input FILE --data_dir={tmp_path}`"
    assert refusal(tmp_path) == f"{tmp_path / 'toy'} does not exist: make it with {command}"


def test_the_command_is_one_that_works():
    """Of a known corpus without --input, in data/ without --data_dir, for a shell."""
    assert data.command("books-bpe") == "`python -m data.prepare books-bpe`"
    assert data.command("toy") == "`python -m data.prepare toy --input FILE`"
    where = "--data_dir='my data'"
    assert data.command("passkey", Path("my data")) == f"`python -m data.prepare passkey {where}`"


def test_token_files_without_meta_json_cannot_be_used(tmp_path):
    """As nanoGPT leaves them."""
    folder = write(tmp_path, [1], [1])
    (folder / "meta.json").rename(folder / "meta.pkl")
    message = refusal(tmp_path)
    assert "has no meta.json, so the tokenizer of its token files is unknown: remove" in message
    assert "or choose another name, and prepare the text with `python -m data.prep" in message


@pytest.mark.parametrize("file", ["meta.json", "train.bin", "val.bin"])
def test_missing_file_names_it_and_the_command(tmp_path, file):
    (write(tmp_path, [1], [1]) / file).unlink()
    message = refusal(tmp_path)
    assert f"has no {file}" in message
    assert f"remove {tmp_path / 'toy'} " in message  # or the command would find it in its way
    assert f"with `python -m data.prepare toy --input FILE --data_dir={tmp_path}`" in message


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "train.bin is empty: meta.json says 3 tokens"),
        (b"abc", "train.bin: 3 bytes is not a whole number of uint16 tokens"),
        (b"\1\0\2\0", "train.bin has 2 tokens, meta.json says 3"),
        (b"\1\0\2\0\3\0\4\0", "train.bin has 4 tokens, meta.json says 3"),
        (b"\1\0\2\0\2\0", "train.bin does not have the sha256 that meta.json says"),
    ],
)
def test_damaged_token_file(tmp_path, raw, expected):
    (write(tmp_path, [1, 2, 3], [1]) / "train.bin").write_bytes(raw)
    assert expected in refusal(tmp_path)


def test_every_flipped_bit_is_seen(tmp_path):
    path = write(tmp_path, [1, 2, 3], [1]) / "train.bin"
    sound = path.read_bytes()
    for bit in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert "sha256" in refusal(tmp_path)


def test_a_file_too_large_to_hash_is_not_hashed(tmp_path, monkeypatch):
    (write(tmp_path, [1, 2, 3], [1]) / "train.bin").write_bytes(b"\1\0\2\0\2\0")
    monkeypatch.setattr(data, "HASHED_UP_TO", 4)
    assert load("toy", tmp_path).train.tolist() == [1, 2, 2]


def test_token_outside_the_vocabulary(tmp_path, monkeypatch):
    write(tmp_path, [1, 2, 3], [4, 5, 99, 7, 98], vocab_size=65)
    expected = "val.bin: token 99 >= vocab_size 65 at offset 2"
    assert expected in refusal(tmp_path)
    write(tmp_path / "first", [65], [0], vocab_size=65)
    assert "train.bin: token 65 >= vocab_size 65 at offset 0" in refusal(tmp_path / "first")
    monkeypatch.setattr(data, "CHUNK", 2)  # the offset counts from the file's start
    assert expected in refusal(tmp_path)


def test_the_highest_token_is_inside(tmp_path):
    write(tmp_path, [64], [0], vocab_size=65)
    assert load("toy", tmp_path).train.tolist() == [64]
    write(tmp_path / "full", [65535], [0], vocab_size=65536)
    assert load("toy", tmp_path / "full").train.tolist() == [65535]


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}']
)
def test_damaged_meta(tmp_path, raw):
    (write(tmp_path, [1], [1]) / "meta.json").write_bytes(raw)
    assert "meta.json is damaged: remove" in refusal(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 0},
        {"vocab_size": 65537},
        {"vocab_size": "65"},
        {"vocab_size": 65.0},
        {"tokenizer": None},
        {"tokenizer": {}},
        {"tokenizer": {"kind": "char", "characters": "abc"}},  # of a vocabulary of 50
        {"format": [1]},
        {"format": True},
        {"splits": {}},
        {"splits": []},
    ],
)
def test_meta_that_cannot_be(tmp_path, change):
    write(tmp_path, [1], [1], **change)
    assert "meta.json is damaged" in refusal(tmp_path)


@pytest.mark.parametrize(
    "documents", [[], [1], [0, 0], [0, 3], [0, 2, 1], [0, 1.5], ["0"], 0, None, [0, None]]
)
def test_documents_that_cannot_be(tmp_path, documents):
    edit_meta(write(tmp_path, [1, 2, 3], [1]), "train", documents=documents)
    assert "meta.json is damaged" in refusal(tmp_path)


def test_meta_of_a_later_format(tmp_path):
    write(tmp_path, [1], [1], format=2, splits="whatever format 2 says")
    assert "has format 2: this code reads format 1" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../toy", "a/b", "/etc", ".cache", "a\n", "é"])
def test_a_name_leads_nowhere_else(tmp_path, name):
    with pytest.raises(ValueError, match="is not a valid dataset name") as caught:
        load(name, tmp_path)
    assert errors.exit_code(caught.value) == 2


def test_batch_by_hand():
    tokens = np.arange(1000, 1100, dtype=np.uint16)  # a token tells where it stands
    x, y = batch(tokens, batch_size=4, block_size=7, seed=1, step=2)
    assert x.dtype == y.dtype == np.int64
    assert x.shape == y.shape == (4, 7)
    for row in range(4):
        start = x[row, 0] - 1000
        for t in range(7):
            assert x[row, t] == tokens[start + t]
            assert y[row, t] == tokens[start + t + 1]
    x[:] = 0
    assert y.min() >= 1000  # x and y do not share memory


def test_batch_draws_every_start_and_the_last_as_often():
    tokens = np.arange(12, dtype=np.uint16)
    starts = [batch(tokens, 100, 4, 0, step)[0][:, 0] for step in range(80)]
    counts = np.bincount(np.concatenate(starts))
    assert len(counts) == 8  # 0 to 7: 7 + 4 + 1 is the length
    assert abs(counts - 1000).max() < 150  # five standard deviations


def test_batch_is_a_function_of_seed_step_and_micro_alone():
    tokens = np.arange(5000, dtype=np.uint16)
    keys = [(seed, step, micro) for seed in range(3) for step in range(3) for micro in range(3)]
    forwards = {key: batch(tokens, 8, 16, *key)[0].tobytes() for key in keys}
    np.random.default_rng(0).random(100)
    backwards = {key: batch(tokens, 8, 16, *key)[0].tobytes() for key in reversed(keys)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(keys)
    assert batch(tokens, 8, 16, 1, 2)[0].tobytes() == forwards[1, 2, 0]


def test_batch_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].tobytes()
    batch(np.arange(50, dtype=np.uint16), 2, 4, 0, 0)
    assert np.random.get_state()[1].tobytes() == before


def test_batch_of_a_short_split(tmp_path):
    write(tmp_path, [1] * 33, list(range(10)))
    dataset = load("toy", tmp_path)
    with pytest.raises(DataError) as caught:
        batch(dataset.val, 2, 32, 0, 0)
    expected = "val.bin has 10 tokens, block_size 32 needs 33: lower it, or prepare more text"
    assert str(caught.value) == expected
    assert errors.exit_code(caught.value) == 3
    x, _ = batch(dataset.train, 2, 32, 0, 0)  # exactly one window
    assert x.shape == (2, 32)
    with pytest.raises(DataError, match="has 32 tokens"):
        batch(np.zeros(32, np.uint16), 2, 32, 0, 0)


DOCUMENTS = [(0, 95), (95, 100), (100, 111), (111, 400)]


@pytest.mark.parametrize("length", [1, 4, 9, 10, 30, 94])
@pytest.mark.parametrize("count", [1, 2, 5, 20, 1000])
def test_spans_lie_inside_one_document_and_share_nothing(length, count):
    starts = spans(DOCUMENTS, length, count)
    room = 0
    for start, end in DOCUMENTS:  # the slow twin: lay windows down until none fits
        at = start
        while at + length + 1 <= end:
            at, room = at + length + 1, room + 1
    assert starts.dtype == np.int64
    assert len(starts) == min(count, room)
    used = set()
    for start in starts.tolist():
        window = set(range(start, start + length + 1))
        assert any(a <= start and start + length + 1 <= b for a, b in DOCUMENTS)
        assert not used & window
        used |= window
    assert starts.tolist() == spans(DOCUMENTS, length, count).tolist()
    assert starts.tolist() == sorted(starts.tolist())


def test_spans_give_each_document_its_share():
    documents = [(0, 1000), (1000, 4000), (4000, 10_000)]
    starts = spans(documents, 9, 100)
    counts = [int(((a <= starts) & (starts < b)).sum()) for a, b in documents]
    assert counts == [10, 30, 60]
    gaps = np.diff(starts)
    assert gaps.max() - gaps.min() <= 10  # evenly: within one window


def test_spans_when_nothing_is_long_enough():
    with pytest.raises(DataError) as caught:
        spans(DOCUMENTS, 289, 4)
    expected = "the longest document has 289 tokens, length 289 needs 290: lower block_size, or"
    assert str(caught.value).startswith(expected)
    assert spans(DOCUMENTS, 288, 4).tolist() == [111]
    with pytest.raises(DataError):
        spans([], 4, 4)
