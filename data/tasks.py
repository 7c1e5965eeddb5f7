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
NAMES = list("ABCDEF")  # of facts: few, so that models of this size learn them in minutes
STREAMS = {"train": 0, "val": 1, "questions": 2}  # independent random numbers for each


class Question(NamedTuple):
    """A text, and the answer that a model should give at its last len(answer) positions."""

    text: str  # ends with all of the answer but its last character
    answer: str
    depth: float  # of the evidence: 0 at the start of the text, 1 just before the question
    last: int = 0  # index of the last character of the evidence


class Asking(NamedTuple):
    """Something that can be asked about facts: `?`, the prompt, and the answer."""

    prompt: str
    answer: str  # in digits
    last: int  # index of the last character of the evidence


class Task(ABC):
    """What every task offers. `window`: characters of a training window, one document each."""

    version: ClassVar[int]  # raised when the documents change, so that old folders are noticed
    scored: ClassVar[str]  # characters that count in the loss; the rest cannot be predicted
    after: ClassVar[str]  # they count only after one of these in a window
    until: ClassVar[str] = ""  # and no longer after one of these
    chance: float  # accuracy of a guess: among the values in a text, where there are several
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
    """Answers in digits that follow a `?` and are determined by the text before it.

    The loss counts digits after a `?`, until a `=` begins a fact. A training document asks often
    and shows few facts at first, or models of this size do not learn the task; a question comes
    once, at the end of a text of any length.
    """

    version = 2
    scored = DIGITS
    after, until = "?", "="
    TOKENS = 1_300_000  # of the training part, about: 10,000 windows of 128
    HELD_OUT = 256  # documents
    ASKED = len("?A407")  # characters of a question

    def __init__(self, window: int, name: str):
        super().__init__(window)
        self.name = name  # its own in TASKS: tasks draw independent random numbers

    def teaches(self, other: Task | None) -> bool:
        return isinstance(other, Asked) and self.name == other.name

    @abstractmethod
    def document(self, draw: np.random.Generator) -> str:
        """A training document of window + 1 characters."""

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

    def questions(self, length: int, count: int, seed: int) -> list[Question]:
        """One of the things that can be asked, spread evenly by depth."""
        draw = np.random.default_rng([STREAMS["questions"], length, seed, *self.name.encode()])
        made = [self.question(draw, length, (i + draw.random()) / count) for i in range(count)]
        return sorted(made, key=lambda question: question.depth)

    def question(self, draw: np.random.Generator, length: int, depth: float) -> Question:
        """A question whose evidence lies near a depth of 0 to 1."""
        text, askings = self.facts(draw, length - self.ASKED)
        askings.sort(key=lambda asking: asking.last)
        prompt, answer, last = askings[min(int(depth * len(askings)), len(askings) - 1)]
        return Question(f"{text}?{prompt}{answer[:-1]}", answer, last / length, last)


class Lookup(Asked):
    """Find the value of one key among `keys`, each written `writes` times: the last value counts.

    `=K4071` stands among random letters, for names of NAMES; at any length the load is the same,
    and the distance grows. Once written: multikey (NIAH multikey of RULER, arXiv:2404.06654).
    Twice: overwrite (MQAR with repeated keys, arXiv:2312.04927), which asks for order too.
    """

    ITEMS = 10, 20  # facts and answers in a training document, least and most
    REWRITTEN = 0.4  # of the places where a known key comes again

    def __init__(self, window: int, name: str, keys: int, writes: int):
        super().__init__(window, name)
        self.keys, self.writes, self.chance = keys, writes, 1 / (keys * writes)

    def document(self, draw: np.random.Generator) -> str:
        """Facts and answers mixed, about one to `keys` keys."""
        names = _names(draw, int(draw.integers(1, self.keys, endpoint=True)))
        values, items = {}, []
        for _ in range(draw.integers(*self.ITEMS, endpoint=True)):
            name = names[draw.integers(len(names))]
            again = self.writes > 1 and draw.random() < self.REWRITTEN
            if name in values and not again:
                items.append(f"?{name}{values[name]}")
            else:
                (values[name],) = _values(draw, 1)
                items.append(f"={name}{values[name]}")
        return _scatter(draw, self.window + 1, items)[0]

    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        names = draw.permutation(list(_names(draw, self.keys) * self.writes))
        values = _values(draw, len(names))  # different ones: one alone is right
        items = [f"={name}{value}" for name, value in zip(names, values, strict=True)]
        text, ends = _scatter(draw, room, items)
        last = {name: Asking(*fact) for name, *fact in zip(names, names, values, ends, strict=True)}
        return text, [*last.values()]


class Hops(Asked):
    """Follow a chain of one or two steps (variable tracking of RULER, arXiv:2404.06654).

    `=A4071`, `=BA` and `=CB` stand in this order at random places, for CHAINS chains.
    """

    CHAINS, STEPS = 2, 2
    chance = 1 / CHAINS

    def document(self, draw: np.random.Generator) -> str:
        """Facts and answers mixed: one or two chains, of none to two steps.

        A name is asked for once: the answer to a second time can be copied, and was.
        """
        chains, steps = draw.integers(1, self.CHAINS + 1), draw.integers(self.STEPS + 1)
        coming, known, items = self.links(draw, int(chains), int(steps)), [], []
        while coming or known:
            if coming and (not known or draw.random() < 0.5):
                item, name, value, _ = coming.pop(0)
                known.append(f"?{name}{value}")
                items.append(item)
            else:
                items.append(known.pop(draw.integers(len(known))))
        return _scatter(draw, self.window + 1, items)[0]

    def links(self, draw: np.random.Generator, chains: int, steps: int) -> list[tuple]:
        """(fact, name, value at its chain's start, steps to it), each chain in its own order."""
        names, values = _names(draw, chains * (steps + 1)), _values(draw, chains)
        made, done = [], [0] * chains
        for chain in draw.permutation(np.repeat(np.arange(chains), steps + 1)):
            own, step = names[chain::chains], done[chain]
            before = own[step - 1] if step else values[chain]
            made.append((f"={own[step]}{before}", own[step], values[chain], step))
            done[chain] += 1
        return made

    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        links = self.links(draw, self.CHAINS, self.STEPS)
        text, ends = _scatter(draw, room, [fact for fact, *_ in links])
        parts = zip(links, ends, strict=True)
        return text, [Asking(name, value, end) for (_, name, value, step), end in parts if step]


class Copy(Asked):
    """Repeat a text: position relative to all of it (arXiv:2402.01032).

    Random digits, a `?`, and the same digits. The answer is the last of them, ANSWER at most. The
    symbols are few, so that what follows the last three of them is rarely unique.
    """

    chance = 0.1
    by_character = True
    ROOM = 16, 64  # digits in a training document, least and most
    ANSWER = 16

    def document(self, draw: np.random.Generator) -> str:
        """A text and its copy, after random letters."""
        text, _ = self.facts(draw, int(draw.integers(*self.ROOM, endpoint=True)))
        copied = f"{text}?{text}"
        return _letters(draw, self.window + 1 - len(copied)) + copied

    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        return "".join(map(str, draw.integers(10, size=room))), []

    def question(self, draw: np.random.Generator, length: int, depth: float) -> Question:
        if length < 4:
            raise ValueError(f"length {length} is too short for a question: it needs 4 characters")
        text, _ = self.facts(draw, length // 2)
        # One character less than text, ? and text, and a letter before it at odd lengths.
        shown = _letters(draw, length % 2) + f"{text}?{text[:-1]}"
        last = shown.index("?") - 1
        return Question(shown, text[-self.ANSWER :], last / length, last)


class Place(Asked):
    """Read a digit by its place from the start of the text (PosGen's absolute distance,
    arXiv:2403.00071, as a question).

    DIGITS digits begin the text, random letters follow, and `?C` asks for the third digit.
    """

    DIGITS = 6
    ASKED = len("?A")
    chance = 0.1

    def document(self, draw: np.random.Generator) -> str:
        """Asked for every digit once, after some of the letters."""
        room = self.window + 1 - self.DIGITS * len("?A4")
        text, askings = self.facts(draw, int(draw.integers(self.DIGITS, room, endpoint=True)))
        text += "".join(
            f"?{askings[i].prompt}{askings[i].answer}" for i in draw.permutation(self.DIGITS)
        )
        return text + _letters(draw, self.window + 1 - len(text))

    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        if room < self.DIGITS:
            raise ValueError(f"{self.DIGITS} digits and a question do not fit into {room}")
        text = "".join(map(str, draw.integers(10, size=self.DIGITS)))
        askings = [Asking(chr(ord("A") + i), digit, i) for i, digit in enumerate(text)]
        return text + _letters(draw, room - self.DIGITS), askings


class Series(Asked):
    """Read at a distance that is constant or growing (PosGen, arXiv:2403.00071, made smaller).

    Letters a to e and digits 0 to 4 alternate, both for the numbers 0 to 4. Letters are random. A
    digit is the sum of the letter before it and a far symbol, modulo 5: that 13 back (recurrent),
    or that halfway back to the start (growing). The letters leave no way around the far symbol.
    """

    SYMBOLS, FAR = 5, 13
    chance = 1 / SYMBOLS

    def __init__(self, window: int, name: str, growing: bool):
        super().__init__(window, name)
        self.growing = growing
        self.start = 2 if growing else self.FAR + 1  # symbols before the `?`

    def far(self, i: int) -> int:
        """The index of the symbol that digit i depends on; below 0 there is none."""
        return i // 2 if self.growing else i - self.FAR

    def symbols(self, draw: np.random.Generator, count: int) -> str:
        numbers = draw.integers(self.SYMBOLS, size=count)
        for i in range(self.start + 1, count, 2):
            numbers[i] = (numbers[self.far(i)] + numbers[i - 1]) % self.SYMBOLS
        return "".join(str(n) if i % 2 else ascii_lowercase[n] for i, n in enumerate(numbers))

    def facts(self, draw: np.random.Generator, room: int) -> tuple[str, list[Asking]]:
        text = self.symbols(draw, room - 1)
        return f"{text[: self.start]}?{text[self.start :]}", []

    def document(self, draw: np.random.Generator) -> str:
        return self.facts(draw, self.window + 1)[0]

    def question(self, draw: np.random.Generator, length: int, depth: float) -> Question:
        """The last digit, of texts of even length."""
        if length % 2 or length < self.start + 2:
            needs = f"it must be even, and at least {self.start + 2}"
            raise ValueError(f"length {length} does not fit {self.name}: {needs}")
        text, _ = self.facts(draw, length + 1)
        far = self.far(length - 1)
        last = far + (far >= self.start)  # the ? stands before it
        return Question(text[:-1], text[-1], last / length, last)


class Mixture(Task):
    """Documents of several tasks in equal shares: one model is asked all their questions."""

    version = 2
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


def _names(draw: np.random.Generator, count: int) -> list[str]:
    """Different names of NAMES."""
    return draw.choice(NAMES, count, replace=False).tolist()


def _values(draw: np.random.Generator, count: int) -> list[str]:
    """Different values of four digits."""
    return [f"{value:04}" for value in draw.choice(10**4, count, replace=False)]


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
    "multikey": Lookup(128, "multikey", keys=4, writes=1),
    "overwrite": Lookup(128, "overwrite", keys=3, writes=2),
    "hops": Hops(128, "hops"),
    "copy": Copy(128, "copy"),
    "locate-recurrent": Series(128, "locate-recurrent", growing=False),
    "locate-absolute": Place(128, "locate-absolute"),
    "locate-growing": Series(128, "locate-growing", growing=True),
}
TASKS: dict[str, Task] = PARTS | {
    "passkey-4x": Passkey(512),
    "mixture": Mixture([*PARTS.values()]),
}
