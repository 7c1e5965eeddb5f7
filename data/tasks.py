"""Retrieval in noise: a key stands somewhere before and is to be repeated (arXiv:2305.16300).

A key is `[dddd]`, the rest random lower-case letters: nothing but the key's earlier occurrence
tells its digits, so that a model which answers has found it.
"""

from string import ascii_lowercase
from typing import NamedTuple

import numpy as np

from data.corpora import Document, Split

WINDOWS = {"passkey": 128, "passkey-4x": 512}  # characters that a training window reads
VERSION = 1  # another one where other documents come out
SCORED = "0123456789"  # the rest is noise that nobody can predict
AFTER = "]"  # and so are the digits of the first key that a window shows
LETTERS = np.frombuffer(ascii_lowercase.encode(), np.uint8)
KEYS = 2, 8  # occurrences in a window, least and most
TOKENS = 2_600_000  # of the training part, about: 20,000 windows of 128
HELD_OUT = 64, 128  # documents, and windows' lengths in each
SEEDS = {"train": 0, "val": 1, "questions": 2}
KEY = len("[0000]")
QUESTION = len("[000")  # of the repeat, what the model is given


class Question(NamedTuple):
    """What a model reads, and the four digits that it should say: at the last four positions."""

    text: str
    answer: str
    depth: float  # of the key, from 0 (the first place of all) to 1 (just before the repeat)


def corpus(name: str) -> Split:
    """Documents that teach the task, always the same: in each of them one key recurs.

    A training document is one window and its last target, so that each window has a key of its
    own. Long documents, cut anywhere, taught the same far more slowly (LOG.md).
    """
    window = WINDOWS[name]
    draw = np.random.default_rng([SEEDS["train"], window])
    train = [_document(draw, window + 1, 1) for _ in range(TOKENS // (window + 1))]
    draw, (count, windows) = np.random.default_rng([SEEDS["val"], window]), HELD_OUT
    val = [_document(draw, windows * window, windows) for _ in range(count)]
    return {"train": _named("train", train), "val": _named("val", val)}


def _named(split: str, texts: list[str]) -> list[Document]:
    return [Document(f"{split}/{i}", text) for i, text in enumerate(texts)]


def _document(draw: np.random.Generator, length: int, windows: int) -> str:
    """One key at random places that follow no grid and do not overlap."""
    text, key = draw.choice(LETTERS, length), _key(draw)
    count = windows * draw.integers(KEYS[0], KEYS[1], endpoint=True)
    gaps = np.sort(draw.integers(length - count * KEY + 1, size=count))
    for start in gaps + KEY * np.arange(count):
        _write(text, start, key)
    return text.tobytes().decode()


def _key(draw: np.random.Generator) -> str:
    return f"[{draw.integers(10**4):04}]"


def _write(text: np.ndarray, start: int, key: str) -> None:
    text[start : start + len(key)] = list(key.encode())


def questions(length: int, count: int, seed: int) -> list[Question]:
    """`count` texts of `length` characters: letters, one key, and at the end its repeat `[ddd`.

    The key of question i lies at random within the i-th of `count` equal parts of all places
    there are. No such text was trained on (its key may have been). ValueError where a key and
    its repeat do not fit.
    """
    places = length - QUESTION - KEY + 1
    if places < 1:
        needs = f"a key and its repeat need {KEY + QUESTION}"
        raise ValueError(f"length {length} is too short for a question: {needs} characters")
    draw, made = np.random.default_rng([SEEDS["questions"], length, seed]), []
    for i in range(count):
        text, key = draw.choice(LETTERS, length), _key(draw)
        start = int((i + draw.random()) / count * places)
        _write(text, start, key)
        _write(text, length - QUESTION, key[:QUESTION])
        depth = start / max(1, places - 1)
        made.append(Question(text.tobytes().decode(), key[1:-1], depth))
    return made
