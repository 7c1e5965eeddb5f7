"""What a model scores on held-out text and on tasks: equal targets for every model and length.

Scoring changes nothing of a model and gives the same numbers at every call.

Letters: N windows, B windows in a batch, c context length, V vocabulary.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, pairwise
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import data
from data import tasks
from data.tokenizer import Tokenizer
from model import GPT

RATIOS = (1, 2, 4)  # context lengths that training watches, in trained lengths
SEED = 2026  # of the questions
SPAN = 32  # targets side by side in the matched protocol
FINE = 64  # matched lengths are exact up to the trained length, and to 1 / FINE past it
DOCUMENTS = 4  # at least so many hold the targets of `matched`, if there are as many
BLOCK = 4096  # tokens of a block that `windows` and `position` cut into windows, at most
BATCH_TOKENS = 8192  # tokens of one forward pass: bounds memory, changes no number
LOGITS = 2**24  # numbers of one product with the head: the same


def windows(tokens: np.ndarray, starts: np.ndarray, span: int, length: int) -> Tensor:
    """Cut spans of `span` tokens into windows of `length` inputs: int64 (N, length + 1).

    The last column is the target of the last input. Every target of the spans stands in exactly
    one window, at whatever length, so that lengths are compared on the same tokens.
    """
    cuts = starts[:, None] + np.arange(0, span, length)  # (spans, windows in a span)
    rows = cuts.reshape(-1, 1) + np.arange(length + 1)
    return torch.from_numpy(tokens[rows].astype(np.int64))


def matched_windows(tokens: np.ndarray, starts: np.ndarray, length: int, stride: int) -> Tensor:
    """Windows int64 (N, length + 1) whose last `stride` targets make up spans of SPAN targets.

    At stride 1 each target has exactly `length` tokens before it.
    """
    ends = starts[:, None] + np.arange(stride, SPAN + 1, stride)  # last target of each window
    rows = ends.reshape(-1, 1) + np.arange(-length, 1)
    return torch.from_numpy(tokens[rows].astype(np.int64))


def visible(idx: Tensor, window: int | None) -> Tensor:
    """What a model is shown of idx (N, c): its last `window` tokens; all of it for None."""
    return idx if window is None else idx[:, -window:]


@torch.no_grad()
def token_losses(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    """Losses in nats, float32 (N, t), of the targets y (N, t) that end windows x (N, c); t <= c.

    0 where y is -1. Leaves the model's mode alone.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    size, rows = max(1, BATCH_TOKENS // x.size(1)), LOGITS // model.config.vocab_size + 1
    losses = []
    for x_part, y_part in zip(x.split(size), y.split(size), strict=True):
        hidden = model.hidden(x_part.to(device), last=y.size(1)).flatten(0, 1)
        targets = y_part.to(device).flatten()
        # Logits take more memory than anything else: a piece at a time.
        for h, target in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = model.logits(h)
            losses.append(F.cross_entropy(logits, target, ignore_index=-1, reduction="none").cpu())
    model.train(training)
    return torch.cat(losses).view(y.shape)


class HeldOut:
    """Fixed validation windows at 1x, 2x and 4x the trained length, cut from the same spans.

    The spans depend on the documents and the trained length alone: every encoding is scored on
    the same targets, at those of the lengths that it can place. Documents shorter than 4x give
    fewer lengths. For a task, only targets after the first example in a window count.
    """

    def __init__(
        self, model: GPT, dataset: data.Dataset, eval_tokens: int, rank: int = 0, world: int = 1
    ):
        L, documents = model.config.block_size, dataset.documents("val")
        longest = max(end - start for start, end in documents)
        ratios = [r for r in RATIOS if r == 1 or r * L < longest]
        span = L * ratios[-1]
        starts = data.spans(documents, span, max(1, eval_tokens // span))
        placed = [r for r in ratios if r * L <= model.max_length]
        self.rows = {r: windows(dataset.val, starts, span, r * L) for r in placed}
        self.targets, self.length = dataset.mask_targets, L
        self.rank, self.world = rank, world

    def losses(self, model: GPT, should_stop: Callable[[], object] = lambda: 0) -> dict[str, float]:
        """{"val/loss": ..., "val/loss_2x": ..., "val/loss_4x": ...}, nats a token.

        Processes share the batches and get the same numbers, those of one process to the last bit;
        all of them must call this. {} as soon as `should_stop`, called before each batch, returns
        something true; it must return the same in all processes.
        """
        batches = list(self.batches())
        losses = [torch.zeros(y.shape) for _, _, y in batches]
        for first in range(0, len(batches), self.world):
            if should_stop():
                return {}
            own = first + self.rank
            # A process for which no batch is left repeats the last one: those of a sharded model
            # must run together.
            _, x, y = batches[min(own, len(batches) - 1)]
            scored = token_losses(model, x, y)
            if own < len(batches):
                losses[own] = scored
        losses = self.of_all_processes(losses)
        means = {}
        for ratio in self.rows:
            parts = [i for i, batch in enumerate(batches) if batch[0] == ratio]
            count = sum((batches[i][2] >= 0).sum() for i in parts)
            mean = torch.cat([losses[i] for i in parts]).double().sum() / count
            means["val/loss" + (f"_{ratio}x" if ratio > 1 else "")] = mean.item()
        return means

    def batches(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(ratio, x, y), both int64 (B, ratio * trained length): of all lengths."""
        for ratio, rows in self.rows.items():
            y = torch.from_numpy(self.targets(rows[:, 1:].numpy()))
            size = max(1, BATCH_TOKENS // (ratio * self.length))
            for x_part, y_part in zip(rows.split(size), y.split(size), strict=True):
                yield ratio, x_part[:, :-1], y_part

    def of_all_processes(self, losses: list[Tensor]) -> list[Tensor]:
        """Losses of all batches, from the lists of all processes: 0 where another scored them."""
        if self.world == 1:
            return losses
        flat = torch.cat([part.flatten() for part in losses])
        dist.all_reduce(flat)  # a sum with zeros, so that no digit changes
        parts = flat.split([part.numel() for part in losses])
        return [part.view_as(whole) for part, whole in zip(parts, losses, strict=True)]


@dataclass
class Score:
    """What one protocol gives for one model at one length."""

    scores: list[list[float]] | None  # a list a document; None: the model refuses this length
    targets: str  # a digest of what was scored: only scores on equal ones may be compared
    count: int  # targets, or questions
    details: dict[str, object] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, chain.from_iterable(self.scores or ())))

    @property
    def row(self) -> dict[str, object]:
        fixed = {"count": self.count, "targets": self.targets}
        return fixed | self.details | {"scores": self.scores}


@dataclass
class Request:
    """What a task may need to prepare its targets."""

    task: str
    tokenizer: Tokenizer
    dataset: Callable[[], data.Dataset]  # opened only by a task that is scored on one
    trained: int  # the largest trained length of the runs
    counts: dict[str, int]  # by the names in the task's `counts`


def room_before_targets(documents: list[tuple[int, int]], trained: int, limit: int) -> int:
    """Tokens before every target of `matched`; so the targets do not depend on what is asked for.

    `limit`, or the largest power of two (or `trained`) that at least four documents hold before a
    span of targets. Fewer documents count where four do not hold `trained`: as many as do. Where
    none does, the longest one counts.
    """
    rooms = sorted((end - start - SPAN - 1 for start, end in documents), reverse=True)
    if rooms[0] < 1:
        raise ValueError(f"no held-out document is longer than {SPAN + 1} tokens; hold out more")
    powers = [2**i for i in range(limit.bit_length())]
    sizes = [n for n in (trained, limit, *powers) if n <= max(limit, trained)]
    held = [max(n for n in sizes if n <= room) for room in rooms[:DOCUMENTS] if room >= 1]
    enough = [n for n in held if n >= trained] or held[:1]
    return enough[-1]


class Prose:
    """Loss on held-out documents.

    matched   the same targets at every length, each with that many tokens before it (past the
              trained length up to 1/64 less)
    windows   blocks of text cut into windows of each length, all their targets
    position  the loss along the windows of the longest length of a run

    The targets follow from the documents and the counts alone: neither the lengths nor the models
    that are scored together change them. Only where fewer than four documents hold the largest
    trained length does that length matter (`room_before_targets`).
    """

    metric, unit, higher_is_better = "loss", "nats a token", False
    protocols: ClassVar = {
        "matched": "targets, the same at every length",
        "windows": "targets in windows side by side",
        "position": "targets in windows side by side",
    }
    counts: ClassVar = {  # flags of evaluate.py: default, meaning
        "tokens": (1024, "targets of matched"),
        "window_tokens": (32768, "targets of windows and position"),
        "longest": (
            16384,
            "tokens before each target of matched, and so the longest length; "
            "fewer if fewer than four documents hold them",
        ),
    }
    needs_dataset = True
    along_longest = ("position",)  # scored at the longest length alone

    def __init__(self, dataset: data.Dataset, longest: int, tokens: tuple[int, int]):
        """longest: tokens before each target of `matched`.

        tokens: how many targets `matched` scores, and how many the other two.
        """
        self.name = dataset.name  # of the results file
        self.val, self.documents, self.longest = dataset.val, dataset.documents("val"), longest
        deep = [(a + longest, b) for a, b in self.documents if b - a > longest + SPAN]
        self.spans = data.spans(deep, SPAN, max(1, tokens[0] // SPAN))
        self.window_tokens, self.block = tokens[1], min(BLOCK, longest, tokens[1])
        after = f"{tokens[0]} targets after {longest} tokens"
        blocks = f"{tokens[1]} in blocks of {self.block}"
        self.target_set = f"{after}, {blocks}, in {dataset.fingerprint['val'][:12]}"

    @classmethod
    def open(cls, request: Request) -> "Prose":
        dataset, counts = request.dataset(), request.counts
        if "task" in dataset.meta:
            raise ValueError(f"{dataset.name} is a task, not text; name it with --task")
        longest = room_before_targets(dataset.documents("val"), request.trained, counts["longest"])
        return cls(dataset, longest, (counts["tokens"], counts["window_tokens"]))

    def problem(self, length: int) -> str:
        """Why a length cannot be scored; "" if it can."""
        if length <= self.longest:
            return ""
        return f"targets of {self.name} have {self.longest} tokens before them (see --longest)"

    @staticmethod
    def reference(task: str) -> str:
        """The run whose sliding window all others are compared with."""
        return "rope"

    def score(self, model: GPT, protocol: str, length: int, window: int | None = None) -> Score:
        """window: of how many tokens the model is shown the last ones (None: all)."""
        measure = {"matched": self.matched, "windows": self.windows, "position": self.position}
        return measure[protocol](model, length, window)

    def cost(self, protocol: str, length: int, trained: int) -> int:
        """Tokens of all forward passes, about."""
        if protocol == "matched":
            return SPAN * len(self.spans) * (length if length <= trained else FINE)
        # `position` shares the forward passes of `windows` at the same length.
        starts, covered = self.blocks(length)
        return len(starts) * covered if protocol == "windows" else 0

    def matched(self, model: GPT, length: int, window: int | None = None) -> Score:
        """The same targets at every length, each with that many tokens before it.

        Exact up to the trained length. Past it windows of `length` inputs score their last few
        targets, at most 1 / FINE of them, which costs that much less.
        """
        shown = min(length, window or length)
        # train_len: a tuned model is scored in the strides of those that were not.
        exact = shown <= model.config.train_len
        stride = 1 if exact else min(SPAN, 2 ** int(math.log2(max(1, shown // FINE))))
        losses = None
        if shown <= model.max_length:
            rows = matched_windows(self.val, self.spans, shown, stride)
            losses = token_losses(model, rows[:, :-1], rows[:, -stride:])
        return self._score(losses, self.spans, SPAN)

    def windows(self, model: GPT, length: int, window: int | None = None) -> Score:
        """Windows of `length` side by side, all of their targets.

        Refused past a sliding window: each target would need a forward pass of its own, and
        `matched` has that number.
        """
        return self._score(self._along(model, length, window), *self.blocks(length))

    def position(self, model: GPT, length: int, window: int | None = None) -> Score:
        """The loss along windows of `length`, in bins of the logarithm of the position."""
        losses = self._along(model, length, window)
        score = self._score(losses, *self.blocks(length))
        score.details["bins"] = None if losses is None else _bins(losses)
        return score

    def blocks(self, length: int) -> tuple[np.ndarray, int]:
        """Where blocks start, and how many targets of each are in whole windows of this length.

        They are the same for all lengths that a block holds; a longer window is its own block.
        """
        size = max(self.block, length)
        starts = data.spans(self.documents, size, max(1, self.window_tokens // size))
        return starts, size // length * length

    @lru_cache(1)  # noqa: B019 - `windows` and `position` ask for the same, one after the other
    def _along(self, model: GPT, length: int, window: int | None) -> Tensor | None:
        """Losses (N, length) along all windows of the blocks; None if the model refuses them."""
        if length > min(model.max_length, window or math.inf):
            return None
        rows = windows(self.val, *self.blocks(length), length)
        return token_losses(model, rows[:, :-1], rows[:, 1:])

    def _score(self, losses: Tensor | None, starts: np.ndarray, span: int) -> Score:
        """Mean losses of spans of targets, grouped by document."""
        digest = hashlib.sha256(f"{self.target_set} {starts.tolist()} {span}".encode())
        score = Score(None, digest.hexdigest()[:12], span * len(starts))
        if losses is not None:
            means = losses.view(len(starts), span).double().mean(1)
            borders = [start for start, _ in self.documents[1:]]
            document = np.searchsorted(borders, starts, "right")  # of each span
            score.scores = [
                [round(mean, 5) for mean in means[document == d].tolist()]
                for d in np.unique(document)
            ]
        return score


def _bins(losses: Tensor) -> list[list[float]]:
    """[first position, last position, mean loss] of losses (N, c), at steps of sqrt(2)."""
    length = losses.size(1)
    edges = sorted({0, length, *(round(2 ** (i / 2)) for i in range(64))})
    within = [edge for edge in edges if edge <= length]
    return [[a, b - 1, round(losses[:, a:b].mean().item(), 5)] for a, b in pairwise(within)]


class Retrieval:
    """Share of a task's questions (data/tasks.py) that are answered exactly."""

    metric, unit, higher_is_better = "accuracy", "share of questions", True
    counts: ClassVar = {"keys": (150, "questions of a length")}
    needs_dataset = False
    along_longest = ()

    def __init__(self, tokenizer: Tokenizer, keys: int, task: str = "passkey"):
        self.name = task  # of the results file
        self.tokenizer, self.keys, self.task = tokenizer, keys, tasks.TASKS[task]
        chance = f"{self.task.chance:f}".rstrip("0")
        counted = "share of right characters" if self.task.by_character else "all or nothing"
        self.protocols = {task: f"questions, by depth of the answer, {counted} (chance {chance})"}
        version = f", version {self.task.version}" if self.task.version > 1 else ""
        self.target_set = f"{keys} keys, seed {SEED}{version}"

    @classmethod
    def open(cls, request: Request) -> "Retrieval":
        if request.tokenizer.kind != "char":
            kind = request.tokenizer.kind
            raise ValueError(f"{request.task} needs a char tokenizer; the runs have {kind}")
        task = cls(request.tokenizer, request.counts["keys"], request.task)
        if unknown := task.unknown_characters():
            needs = f"{request.task} needs the characters {' '.join(unknown)}"
            raise ValueError(f"{needs}, which the runs were not trained on")
        return task

    def unknown_characters(self) -> list[str]:
        """Characters of the questions that the tokenizer does not have."""
        asked = self.task.questions(self.task.window, self.keys, SEED)
        used = {*"".join(question.text + question.answer for question in asked)}
        return sorted(used - {*self.tokenizer.characters})

    def problem(self, length: int) -> str:
        """Why a length cannot be scored; "" if it can."""
        try:
            self.task.questions(length, 1, SEED)
        except ValueError as error:
            return str(error)
        return ""

    @staticmethod
    def reference(task: str) -> str:
        """The run whose sliding window all others are compared with."""
        return f"{task}-rope"

    def score(self, model: GPT, protocol: str, length: int, window: int | None = None) -> Score:
        """A number from 0 to 1 a question, sorted by depth; the texts differ by length.

        beyond_window_n of the first ones have their answer before the last trained length. window:
        of how many tokens the model is shown the last ones (None: all).
        """
        questions = self.task.questions(length, self.keys, SEED)
        texts = [self.tokenizer.encode(q.text) for q in questions]
        answers = [self.tokenizer.encode(q.answer) for q in questions]
        x, y = (torch.from_numpy(np.stack(part).astype(np.int64)) for part in (texts, answers))
        x = visible(x, window)
        beyond = sum(q.last < length - model.config.train_len for q in questions)
        digest = hashlib.sha256("".join(q.text for q in questions).encode()).hexdigest()[:12]
        details = {"beyond_window_n": beyond, "chance": self.task.chance}
        score = Score(None, digest, len(questions), details)
        if x.size(1) <= model.max_length:
            right = answered(model, x, y)  # (N, t)
            each = right.mean(1) if self.task.by_character else right.all(1).double()
            score.scores = [[one] for one in each.where(right.isfinite().all(1), math.nan).tolist()]
        return score

    def cost(self, protocol: str, length: int, trained: int) -> int:
        """Tokens of all forward passes."""
        return self.keys * length


@torch.no_grad()
def answered(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    """1 where the likeliest tokens at the end of texts x (N, c) are the answers y, else 0: (N, t).

    NaN where the logits are not finite.

    A text holds all of its answer but the last token: if all t tokens are the likeliest, greedy
    decoding would have written the answer.
    """
    device, size = next(model.parameters()).device, max(1, BATCH_TOKENS // x.size(1))
    right = []
    for x_part, y_part in zip(x.split(size), y.split(size), strict=True):
        logits = model.logits(model.hidden(x_part.to(device), last=y.size(1)))  # (n, t, V)
        highest, likeliest = (part.cpu() for part in logits.max(-1))  # NaN spreads to `highest`
        exact = (likeliest == y_part).double()
        right.append(exact.where(highest.isfinite(), math.nan))
    return torch.cat(right)


# A task of data/tasks.py that has no class of its own here is scored as retrieval.
TASKS = {"prose": Prose}


def task_names() -> list[str]:
    return list(dict.fromkeys([*TASKS, *tasks.TASKS]))


def task_class(name: str) -> type[Prose] | type[Retrieval]:
    """How a task is scored; ValueError for an unknown name."""
    if name not in task_names():
        raise ValueError(f"task is {name!r}; it must be one of {', '.join(task_names())}")
    return TASKS.get(name, Retrieval)


def count_flags() -> dict[str, tuple[int, str]]:
    """Flags of evaluate.py for how much is scored, of all tasks: {name: (default, meaning)}."""
    flags = {}
    for name in task_names():
        flags |= task_class(name).counts
    return flags
