"""Synthetic tasks: text that teaches one skill, and questions that test it at any length.

A task is a class with the interface of `Task` and a name in TASKS. `data.prepare`, `train.py` and
`evaluate.py --task` find it there by its name.
"""

from abc import ABC, abstractmethod
from string import ascii_lowercase
from typing import ClassVar, NamedTuple

import numpy as np

from data.corpora import Document, Split

LETTERS = np.frombuffer(ascii_lowercase.encode(), np.uint8)
STREAMS = {"train": 0, "val": 1, "questions": 2}  # independent random numbers for each


class Question(NamedTuple):
    """A text, and the answer that a model should give at its last len(answer) positions."""

    text: str  # ends with all of the answer but its last character
    answer: str
    depth: float  # of the evidence: 0 at the start of the text, 1 just before the question
    last: int = 0  # index of the last character of the evidence


class Task(ABC):
    """What every task offers. `window`: characters of a training window, one document each."""

    version: ClassVar[int]  # raised when the documents change, so that old folders are noticed
    scored: ClassVar[str]  # characters that count in the loss; the rest cannot be predicted
    after: ClassVar[str]  # they count only after the first of these in a window
    chance: ClassVar[float]  # accuracy of a guess

    def __init__(self, window: int):
        self.window = window

    @abstractmethod
    def corpus(self) -> Split:
        """Training documents of window + 1 characters, and long held-out ones; always the same."""

    @abstractmethod
    def questions(self, length: int, count: int, seed: int) -> list[Question]:
        """`count` texts of `length` characters, by depth; ValueError if `length` is too short."""


class Passkey(Task):
    """Retrieval from noise: a key is to be repeated (arXiv:2305.16300).

    A key is `[dddd]`, the rest is random lower-case letters: only the earlier occurrence of the
    key determines its digits. The digits of the first occurrence in a window cannot be predicted.
    """

    version = 1
    scored = "0123456789"
    after = "]"
    chance = 10.0**-4
    KEY = len("[0000]")
    QUESTION = len("[000")  # the part of the repeat that a question shows
    OCCURRENCES = 2, 8  # of the key in a window, least and most
    TOKENS = 2_600_000  # of the training part, about: 20,000 windows of 128
    HELD_OUT = 64, 128  # documents, and windows in each

    def corpus(self) -> Split:
        """One key a document. A training document is one window and its last target.

        Each window then has its own key. Long documents, cut anywhere, taught the task far more
        slowly.
        """
        draw = np.random.default_rng([STREAMS["train"], self.window])
        count = self.TOKENS // (self.window + 1)
        train = [self._document(draw, self.window + 1, 1) for _ in range(count)]
        draw = np.random.default_rng([STREAMS["val"], self.window])
        count, windows = self.HELD_OUT
        val = [self._document(draw, windows * self.window, windows) for _ in range(count)]
        return {"train": _named("train", train), "val": _named("val", val)}

    def _document(self, draw: np.random.Generator, length: int, windows: int) -> str:
        """One key at random places that follow no grid and do not overlap."""
        text = draw.choice(LETTERS, length)
        key = _key(draw)
        least, most = self.OCCURRENCES
        count = windows * draw.integers(least, most, endpoint=True)
        gaps = np.sort(draw.integers(length - count * self.KEY + 1, size=count))
        for start in gaps + self.KEY * np.arange(count):
            _write(text, start, key)
        return text.tobytes().decode()

    def questions(self, length: int, count: int, seed: int) -> list[Question]:
        """Letters, one key, and at the end its repeat `[ddd`.

        The key of question i lies at random within the i-th of `count` equal parts of all places.
        No such text is in the corpus (its key may be).
        """
        places = length - self.QUESTION - self.KEY + 1
        if places < 1:
            needs = f"a key and its repeat need {self.KEY + self.QUESTION}"
            raise ValueError(f"length {length} is too short for a question: {needs} characters")
        draw = np.random.default_rng([STREAMS["questions"], length, seed])
        made = []
        for i in range(count):
            text = draw.choice(LETTERS, length)
            key = _key(draw)
            start = int((i + draw.random()) / count * places)
            _write(text, start, key)
            _write(text, length - self.QUESTION, key[: self.QUESTION])
            depth = start / max(1, places - 1)
            last = start + self.KEY - 1
            made.append(Question(text.tobytes().decode(), key[1:-1], depth, last))
        return made


def _named(split: str, texts: list[str]) -> list[Document]:
    return [Document(f"{split}/{i}", text) for i, text in enumerate(texts)]


def _key(draw: np.random.Generator) -> str:
    return f"[{draw.integers(10**4):04}]"


def _write(text: np.ndarray, start: int, key: str) -> None:
    text[start : start + len(key)] = list(key.encode())


TASKS: dict[str, Task] = {"passkey": Passkey(128), "passkey-4x": Passkey(512)}
