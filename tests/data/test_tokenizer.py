"""Text to tokens and back, against slow twins; what damaged descriptions and odd text do."""

import base64
import codecs
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex

from data import DataError
from data.tokenizer import Bpe, Char, from_meta, train_bpe
from runtime import errors

TEXT = "The rain, the rains; the raining, it's 1234 degrees!\n\n  Ünder the ☃ 雨が降る.\n" * 3
ODD = [
    "",
    " ",
    "\n\n\n",
    "naïve ☃ 🏳️‍🌈 e\u0301",
    "\x00\x7f",
    "<|endoftext|> and <|fim|>",
    "the " * 500,
]


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    return train_bpe([TEXT], 300)


def test_char_numbers_characters_in_order():
    tokenizer = Char("hello world")
    order = sorted(set("hello world"))
    assert tokenizer.vocab_size == 8
    assert tokenizer.encode("low").tolist() == [order.index(c) for c in "low"]
    assert tokenizer.encode("low").dtype == np.uint16
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.end_of_text is None


def test_char_round_trip_of_any_plane():
    text = "aé☃🙂\n\0z"
    tokenizer = Char(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abcabcabc abc abc☃☃", "character '☃' (U+2603) at position 17 is not among the 4"),
        ("a\x00", "character '\\x00' (U+0000) at position 1 is not among the 4"),  # below all
        ("aB", "character 'B' (U+0042) at position 1"),  # between two
        ("🙂", "character '🙂' (U+1F642) at position 0"),  # past all
        ("a\udc80", "character '\\udc80' (U+DC80) at position 1"),  # not UTF-8 on a command line
    ],
)
def test_unseen_character_is_named(text, expected):
    with pytest.raises(DataError) as caught:
        Char("abc ").encode(text)
    assert str(caught.value).startswith(expected)
    assert str(caught.value).endswith("the model was trained on")
    assert errors.exit_code(caught.value) == 3


def test_char_takes_what_uint16_can_tell_apart():
    every = [chr(point) for point in range(0x10000, 0x20000)]
    assert Char(every).encode(every[-1]).tolist() == [65535]
    with pytest.raises(DataError, match="65537 different characters"):
        Char([*every, "a"])
    with pytest.raises(DataError, match="0 different characters"):
        Char("")


def merged_by_hand(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Byte pairs as first described: join the neighbours of lowest rank until none is known."""
    parts = [bytes([b]) for b in word]
    while True:
        pairs = [(ranks.get(a + b, 10**9), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, i = min(pairs, default=(10**9, 0))
        if rank == 10**9:
            return [ranks[part] for part in parts]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.mark.parametrize("text", [TEXT, *ODD])
def test_bpe_against_merging_by_hand(bpe, text):
    ranks = {token: rank for rank, token in enumerate(bpe.tokens)}
    expected = []
    for word in regex.findall(bpe.pattern, text):
        expected += merged_by_hand(word.encode(), ranks)
    assert bpe.encode(text).tolist() == expected
    assert bpe.encode(text).dtype == np.uint16


@pytest.mark.parametrize("text", [TEXT, *ODD])
def test_bpe_round_trip(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.decode_bytes(bpe.encode(text)) == text.encode()


def test_bpe_is_trained_on_the_text(bpe):
    assert bpe.vocab_size == 300
    assert bpe.end_of_text == 299
    assert len(bpe.encode(TEXT)) < len(TEXT.encode()) / 2
    assert b" the" in bpe.tokens


def test_special_tokens_in_a_text_are_plain_text(bpe):
    assert bpe.end_of_text not in bpe.encode("<|endoftext|>").tolist()
    assert bpe.decode([bpe.end_of_text]) == "<|endoftext|>"


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_streaming_never_shows_half_a_character(bpe, kind):
    text = "☃ 雨 🏳️‍🌈 é!"
    tokenizer = bpe if kind == "bpe" else Char(text)
    ids = tokenizer.encode(text).tolist()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    shown = [decoder.decode(tokenizer.decode_bytes([i])) for i in ids]
    shown.append(decoder.decode(b"", final=True))
    assert "".join(shown) == text
    assert "\ufffd" not in "".join(shown)
    if kind == "bpe":  # the case is there: decoding token by token would go wrong
        assert "\ufffd" in "".join(tokenizer.decode([i]) for i in ids)


def test_bytes_that_are_no_text_are_replaced(bpe):
    assert bpe.decode([bpe.tokens.index(b"\xff")]) == "\ufffd"


@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize("ids", [[-1], [0, 10_000], np.array([65535], np.uint16)])
def test_unknown_id(bpe, kind, ids):
    tokenizer = bpe if kind == "bpe" else Char("abc")
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(DataError, match=f"is not one of the {tokenizer.vocab_size}"):
            decode(ids)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_meta_alone_is_the_tokenizer(bpe, kind):
    tokenizer = bpe if kind == "bpe" else Char(TEXT)
    again = from_meta(json.loads(json.dumps(tokenizer.to_meta())))
    assert type(again) is type(tokenizer)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert again.decode(again.encode(TEXT)) == TEXT
    assert again.to_meta() == tokenizer.to_meta()


BYTES = [base64.b64encode(bytes([b])).decode() for b in range(256)]


@pytest.mark.parametrize(
    "meta",
    [
        None,
        [],
        "char",
        {},
        {"kind": "word"},
        {"kind": ["char"]},
        {"kind": "char"},
        {"kind": "char", "characters": ""},
        {"kind": "char", "characters": 5},
        {"kind": "char", "characters": ["a", "b"]},
        {"kind": "char", "characters": "\ud800"},
        {"kind": "bpe", "pattern": "."},
        {"kind": "bpe", "pattern": ".", "merges": 5},
        {"kind": "bpe", "pattern": ".", "merges": BYTES[1:]},
        {"kind": "bpe", "pattern": ".", "merges": [*BYTES, BYTES[65]]},
        {"kind": "bpe", "pattern": ".", "merges": [*BYTES, "no base64!"]},
        {"kind": "bpe", "pattern": ".", "merges": [*BYTES, 7]},
        {"kind": "bpe", "pattern": "(", "merges": BYTES},
        {"kind": "bpe", "pattern": None, "merges": BYTES},
        {"kind": "bpe", "pattern": 5, "merges": BYTES},
        {"kind": "gpt2", "pattern": ".", "merges": []},
    ],
)
def test_damaged_meta(meta):
    with pytest.raises(DataError) as caught:
        from_meta(meta)
    assert errors.exit_code(caught.value) == 3


def test_too_many_tokens_for_uint16():
    many = [base64.b64encode(bytes([255, *divmod(i, 256)])).decode() for i in range(65_300)]
    with pytest.raises(DataError, match="do not fit into uint16"):
        from_meta({"kind": "bpe", "pattern": ".", "merges": [*BYTES, *many]})


def test_a_char_run_never_imports_tiktoken(tmp_path):
    (tmp_path / "a.txt").write_text("some text to be read " * 20)
    program = (
        "import sys; sys.modules['tiktoken'] = sys.modules['rustbpe'] = None\n"  # import raises
        "from pathlib import Path; from data import load; from data.prepare import prepare\n"
        "from data.tokenizer import from_meta\n"
        "root = Path(sys.argv[1]); prepare('own', [root / 'a.txt'], root=root)\n"
        "print(from_meta(load('own', root).meta['tokenizer']).decode([1, 2]))\n"
        "assert not {'torch', 'tiktoken_ext'} & sys.modules.keys()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    here = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "ab"


@pytest.mark.network
def test_gpt2_is_gpt2(tmp_path, monkeypatch):
    from data.prepare import gpt2  # noqa: PLC0415

    made = gpt2(tmp_path)
    tokenizer = from_meta(json.loads(json.dumps(made.to_meta())))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    assert tokenizer.vocab_size == 50257
    assert tokenizer.end_of_text == 50256
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert tokenizer.to_meta()["kind"] == "gpt2"
    for text in [TEXT, *ODD]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
