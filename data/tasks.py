"""Synthetic tasks: text that teaches one skill, and questions that test it at any length.

A task is a class with the interface of `Task` and a name in TASKS. `data.prepare`, `train.py` and
`evaluate.py --task` find it there by its name.
"""

from abc import ABC, abstractmethod
from string import ascii_lowercase
from string import digits as DIGITS
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


class Asking(NamedTuple):
    """Something that can be asked about facts."""

    prompt: str
    answer: str  # in digits
    close: str  # ends the answer
    last: int  # index of the last character of the evidence


class Task(ABC):
    """What every task offers. `window`: characters of a training window, one document each."""

    version: ClassVar[int]  # raised when the documents change, so that old folders are noticed
    scored: ClassVar[str]  # characters that count in the loss; the rest cannot be predicted
    after: ClassVar[str]  # they count only after one of these in a window
    until: ClassVar[str] = ""  # and no longer after one of these
    chance: ClassVar[float]  # accuracy of a guess
    by_character: ClassVar[bool] = False  # score the share of an answer's characters, not all or 0

    def __init__(self, window: int):
        self.window = window

    def teaches(self, other: "Task | None") -> bool:
        """Whether a model trained on this one can be asked the questions of another one."""
        return type(self) is type(other)

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
    scored = DIGITS
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


class Asked(Task):
    """Facts, and answers in digits that follow a `?` and are determined by the text before it.

    The loss counts digits after a `?`, until a `=` begins another fact. A training document asks
    several times, a question once, at the end of a text of any length.
    """

    version = 1
    scored = DIGITS
    after, until = "?", "="
    MARK = "?"  # between facts and answers
    ROOM = 56, 112  # characters of facts in a training document, least and most
    TOKENS = 1_300_000  # of the training part, about: 10,000 windows of 128
    HELD_OUT = 256  # documents

    @abstractmethod
    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        """`room` characters, and what can be asked about them; ValueError if that is too few."""

    def corpus(self) -> Split:
        counts = {"train": self.TOKENS // (self.window + 1), "val": self.HELD_OUT}
        made = {}
        for split, count in counts.items():
            draw = np.random.default_rng([STREAMS[split], self.window, *self.name.encode()])
            made[split] = _named(split, [self.document(draw) for _ in range(count)])
        return made

    @property
    def name(self) -> str:
        """Its own in TASKS: tasks draw independent random numbers."""
        return type(self).__name__

    def document(self, draw: np.random.Generator) -> str:
        """Random letters, facts, and every question about them once, in random order.

        Asked twice, most answers could be copied from the first time: models then learn that.
        """
        text, askings = self.facts(draw, int(draw.integers(*self.ROOM, endpoint=True)))
        text += self.MARK
        for i in draw.permutation(len(askings)):
            text += askings[i].prompt + askings[i].answer + askings[i].close
        size = self.window + 1
        return (_letters(draw, max(0, size - len(text))) + text)[:size]

    def questions(self, length: int, count: int, seed: int) -> list[Question]:
        """One of the things that can be asked, spread evenly by depth."""
        draw = np.random.default_rng([STREAMS["questions"], length, seed, *self.name.encode()])
        made = [self.question(draw, length, (i + draw.random()) / count) for i in range(count)]
        return sorted(made, key=lambda question: question.depth)

    def question(self, draw: np.random.Generator, length: int, depth: float) -> Question:
        """A question whose evidence lies near a depth of 0 to 1."""
        asked = len(self.END)
        text, askings = self.facts(draw, length - asked)
        asking = askings[min(int(depth * len(askings)), len(askings) - 1)]
        shown = self.MARK + asking.prompt + asking.answer[:-1]
        assert len(shown) == asked
        return Question(text + shown, asking.answer, asking.last / length, asking.last)


class Multikey(Asked):
    """Find one key among many like it (NIAH multikey 2 of RULER, arXiv:2404.06654).

    The whole text is `<kk:dddd>` with different keys of two letters; the end asks for one.
    """

    chance = 10.0**-4
    ITEM = len("<kk:dddd>")
    END = "?<kk:ddd"

    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        count = room // self.ITEM
        if not 1 <= count <= 26**2:
            raise ValueError(f"{room} characters hold {count} keys; from 1 to {26**2} can differ")
        keys = [_pair(i) for i in draw.choice(26**2, count, replace=False)]
        values = [f"{draw.integers(10**4):04}" for _ in keys]
        rest = _letters(draw, room - count * self.ITEM)
        text = rest + "".join(f"<{k}:{v}>" for k, v in zip(keys, values, strict=True))
        ends = [len(rest) + (i + 1) * self.ITEM - 1 for i in range(count)]
        parts = zip(keys, values, ends, strict=True)
        return text, [Asking(f"<{k}:", v, ">", end) for k, v, end in parts]


class Overwrite(Asked):
    """The last of several values counts (MQAR with repeated keys, arXiv:2312.04927).

    `k=d;` stands among random letters, PAIRS times for KEYS keys: at any length the load is the
    same, and the distance grows. A model that finds the key and not the order is right in one of
    PAIRS / KEYS cases. Training documents mix facts and answers, `k?d;`.
    """

    KEYS, PAIRS = 5, 10
    GAP = 6  # letters between two of them in a training document, at most
    chance = KEYS / PAIRS
    MARK, END = "", "k?"

    def document(self, draw: np.random.Generator) -> str:
        names = [ascii_lowercase[k] for k in draw.permutation(26)[: self.KEYS]]
        text, values = "", {}
        while len(text) <= self.window:
            text += _letters(draw, int(draw.integers(self.GAP, endpoint=True)))
            name = str(draw.choice(names))
            if name in values and draw.random() < 0.5:
                text += f"{name}?{values[name]};"
            else:
                values[name] = draw.integers(10)
                text += f"{name}={values[name]};"
        return text[: self.window + 1]

    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        keys = draw.permutation(26)[: self.KEYS]
        order = draw.permutation(np.repeat(keys, self.PAIRS // self.KEYS))
        # Different values, so that one alone is right.
        values = draw.permutation(10)[: self.PAIRS]
        names = [ascii_lowercase[k] for k in order]
        items = [f"{k}={v};" for k, v in zip(names, values, strict=True)]
        text, ends = _scatter(draw, room, items)
        last = {k: (str(v), end) for k, v, end in zip(names, values, ends, strict=True)}
        askings = [Asking(f"{k}?", value, ";", end) for k, (value, end) in last.items()]
        return text, sorted(askings, key=lambda asking: asking.last)


class Hops(Asked):
    """Follow a chain of one or two steps (variable tracking of RULER, arXiv:2404.06654).

    `a=4;`, `b=a;` and `c=b;` stand in this order at random places, for CHAINS chains. A model that
    names any digit of the text is right in one of CHAINS cases.
    """

    CHAINS, LENGTH = 3, 3
    chance = 1 / CHAINS
    MARK, END = "", "k?"

    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        names = draw.permutation(26)[: self.CHAINS * self.LENGTH].reshape(self.CHAINS, -1)
        values = draw.permutation(10)[: self.CHAINS]
        # Whose turn it is: each chain in its own order, the chains mixed.
        turns = draw.permutation(np.repeat(np.arange(self.CHAINS), self.LENGTH))
        step, items, asked = [0] * self.CHAINS, [], []
        for chain in turns:
            name = ascii_lowercase[names[chain][step[chain]]]
            before = str(values[chain])
            if step[chain]:
                before = ascii_lowercase[names[chain][step[chain] - 1]]
            items.append(f"{name}={before};")
            asked.append((name, str(values[chain]), step[chain]))
            step[chain] += 1
        text, ends = _scatter(draw, room, items)
        parts = zip(asked, ends, strict=True)
        return text, [Asking(f"{k}?", v, ";", end) for (k, v, hops), end in parts if hops]


class Copy(Asked):
    """Repeat a text: position relative to all of it (arXiv:2402.01032).

    Random digits, a `?`, and the same digits. The answer is the last of them, ANSWER at most. The
    symbols are few, so that what follows the last three of them is rarely unique.
    """

    chance = 0.1
    by_character = True
    ROOM = 16, 64
    ANSWER = 16

    def document(self, draw: np.random.Generator) -> str:
        """A text and its copy, after random letters."""
        text, _ = self.facts(draw, int(draw.integers(*self.ROOM, endpoint=True)))
        copied = f"{text}?{text}"
        return _letters(draw, self.window + 1 - len(copied)) + copied

    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        text = "".join(map(str, draw.integers(10, size=room)))
        return text, []

    def question(self, draw: np.random.Generator, length: int, depth: float) -> Question:
        if length < 4:
            raise ValueError(f"length {length} is too short for a question: it needs 4 characters")
        text, _ = self.facts(draw, length // 2)
        # One character less than text, ? and text, and a letter before it at odd lengths.
        shown = _letters(draw, length % 2) + f"{text}?{text[:-1]}"
        return Question(shown, text[-self.ANSWER :], 0.5, length // 2)


class Locate(Asked):
    """Read at a distance that is constant, absolute or growing (PosGen, arXiv:2403.00071).

    A text of SYMBOLS digits begins at random. Then each is the sum of the one before it and a far
    one, modulo SYMBOLS. The far one is FAR symbols back (recurrent), the first one (absolute), or
    one that advances every second symbol (growing). The first character names the kind. The paper
    adds three near symbols of more kinds, which models of this size do not learn in minutes.
    """

    KINDS: ClassVar = {"recurrent": "r", "absolute": "a", "growing": "g"}
    SYMBOLS, FAR, ANSWER = 5, 12, 16
    ROOM = 96, 112
    chance = 1 / SYMBOLS
    by_character = True

    def __init__(self, window: int, kind: str):
        super().__init__(window)
        self.kind = kind

    @property
    def name(self) -> str:
        return self.kind

    def teaches(self, other: Task | None) -> bool:
        return super().teaches(other) and self.kind == other.kind

    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        """The letter of the kind, FAR random symbols, and those that follow from them."""
        symbols = draw.integers(self.SYMBOLS, size=self.FAR).tolist()
        while len(symbols) < room - 1:
            i = len(symbols)
            far = {"recurrent": i - self.FAR, "absolute": 0, "growing": i // 2}[self.kind]
            symbols.append((symbols[far] + symbols[-1]) % self.SYMBOLS)
        return self.KINDS[self.kind] + "".join(map(str, symbols)), []

    def document(self, draw: np.random.Generator) -> str:
        text, room = self.facts(draw, self.window)[0], int(draw.integers(*self.ROOM, endpoint=True))
        return f"{text[:room]}?{text[room:]}"

    def question(self, draw: np.random.Generator, length: int, depth: float) -> Question:
        needs = self.FAR + self.ANSWER + 1
        if length < needs:
            raise ValueError(f"length {length} is too short for a question: it needs {needs}")
        text, answer = self.facts(draw, length)[0], self.ANSWER
        return Question(f"{text[:-answer]}?{text[-answer:-1]}", text[-answer:], 0.0, self.FAR)


class Mixture(Task):
    """Documents of several tasks in equal shares: one model is asked all their questions."""

    version = 1
    scored = DIGITS
    chance = 0.0

    def __init__(self, parts: list[Task]):
        super().__init__(parts[0].window)
        self.parts = parts
        self.after = "".join(dict.fromkeys(part.after for part in parts))
        self.until = "".join(dict.fromkeys(part.until for part in parts))

    def teaches(self, other: Task | None) -> bool:
        return any(part.teaches(other) for part in self.parts) or other is self

    def corpus(self) -> Split:
        """Held out are documents of one window: a cut would part questions from facts."""
        made: Split = {"train": [], "val": []}
        share = Asked.TOKENS // (self.window + 1)
        for part in self.parts:
            split = part.corpus()
            made["train"] += split["train"][:share]
            spare = split["train"][share:] or split["val"]  # passkey has longer ones held out
            made["val"] += spare[: Asked.HELD_OUT // 4]
        return made

    def questions(self, length: int, count: int, seed: int) -> list[Question]:
        raise ValueError("a mixture has no questions of its own; name one of its tasks with --task")


def _letters(draw: np.random.Generator, count: int) -> str:
    return draw.choice(LETTERS, count).tobytes().decode()


def _pair(i: int) -> str:
    return ascii_lowercase[i // 26] + ascii_lowercase[i % 26]


def _scatter(draw: np.random.Generator, room: int, items: list[str]) -> tuple[str, list[int]]:
    """Items in their order at random places among random letters, and where each ends."""
    free = room - sum(map(len, items))
    if free < 0:
        raise ValueError(f"the facts need {room - free} characters; there is room for {room}")
    letters, text, ends = _letters(draw, free), "", []
    places = np.sort(draw.integers(free + 1, size=len(items)))
    for item, before, after in zip(items, [0, *places[:-1]], places, strict=True):
        text += letters[before:after] + item
        ends.append(len(text) - 1)
    return text + letters[places[-1] :], ends


def _named(split: str, texts: list[str]) -> list[Document]:
    return [Document(f"{split}/{i}", text) for i, text in enumerate(texts)]


def _key(draw: np.random.Generator) -> str:
    return f"[{draw.integers(10**4):04}]"


def _write(text: np.ndarray, start: int, key: str) -> None:
    text[start : start + len(key)] = list(key.encode())


PARTS = {
    "passkey": Passkey(128),
    "multikey": Multikey(128),
    "overwrite": Overwrite(128),
    "hops": Hops(128),
    "copy": Copy(128),
    **{f"locate-{kind}": Locate(128, kind) for kind in Locate.KINDS},
}
TASKS: dict[str, Task] = PARTS | {
    "passkey-4x": Passkey(512),
    "mixture": Mixture([*PARTS.values()]),
}
