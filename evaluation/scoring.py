"""What a model scores on held-out text: the same targets for every model and every length.

The same numbers at every call: nothing here changes what it measures.

Letters: N windows, B windows in a batch, c context length, V vocabulary.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import data
from data import tasks
from data.tokenizer import Tokenizer
from model import GPT

RATIOS = (1, 2, 4)  # context lengths that training watches, in trained lengths
SEED = 2026  # of the keys to be named
SPAN = 32  # targets side by side in the matched protocol
FINE = 64  # matched lengths are exact up to the trained length, and to 1 / FINE past it
BATCH_TOKENS = 8192  # tokens read at once: bounds memory, changes nothing
LOGITS = 2**24  # numbers held at once: the same


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


@torch.no_grad()
def token_losses(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    """Losses in nats, float32 (N, t), of the targets y (N, t) that end windows x (N, c); t <= c.

    0 where y is -1. Leaves the model's mode alone.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    size, rows = max(1, BATCH_TOKENS // x.size(1)), LOGITS // model.config.vocab_size + 1
    found = []
    for part, wanted in zip(x.split(size), y.split(size), strict=True):
        hidden = model.hidden(part.to(device), last=y.size(1)).flatten(0, 1)
        targets = wanted.to(device).flatten()
        # Logits are the largest thing there is: a piece at a time.
        for h, target in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = model.logits(h)
            found.append(F.cross_entropy(logits, target, ignore_index=-1, reduction="none").cpu())
    model.train(training)
    return torch.cat(found).view(y.shape)


class HeldOut:
    """Fixed validation windows at 1x, 2x and 4x the trained length, cut from the same spans.

    The spans depend on the documents and the trained length alone: every encoding is watched on
    the same targets, at those of the lengths that it can place. Under beyond=slide nothing is
    read past 1x, so there is nothing to watch there. Documents shorter than 4x give fewer lengths.
    Of a task, what follows the first example in a window counts, which a longer one has more of.
    """

    def __init__(self, model: GPT, dataset: data.Dataset, eval_tokens: int):
        L, documents = model.config.block_size, dataset.documents("val")
        longest = max(end - start for start, end in documents)
        ratios = [r for r in RATIOS if r == 1 or r * L < longest]
        span = L * ratios[-1]
        starts = data.spans(documents, span, max(1, eval_tokens // span))
        able = L if model.config.beyond == "slide" else model.reach
        self.rows = {r: windows(dataset.val, starts, span, r * L) for r in ratios if r * L <= able}
        self.targets, self.length = dataset.targets, L

    def losses(self, model: GPT, asked: Callable[[], int] = lambda: 0) -> dict[str, float]:
        """{"val/loss": ..., "val/loss_2x": ..., "val/loss_4x": ...}, nats a token.

        {} as soon as `asked`, which is looked at before each batch, asks to stop.
        """
        found = {}
        for ratio, rows in self.rows.items():
            y, losses = torch.from_numpy(self.targets(rows[:, 1:].numpy())), []
            size = max(1, BATCH_TOKENS // (ratio * self.length))
            for part, wanted in zip(rows.split(size), y.split(size), strict=True):
                if asked():
                    return {}
                losses.append(token_losses(model, part[:, :-1], wanted))
            mean = torch.cat(losses).double().sum() / (y >= 0).sum()
            found["val/loss" + (f"_{ratio}x" if ratio > 1 else "")] = mean.item()
        return found


@dataclass
class Score:
    """What one protocol found at one length."""

    parts: list[list[float]] | None  # mean loss a span, a list a document; None: model refuses
    targets: str  # a digest of what was scored: only equal ones may be compared
    tokens: int  # or keys
    more: dict[str, object]

    @property
    def row(self) -> dict[str, object]:
        fixed = {"tokens": self.tokens, "documents": len(self.parts or ())}
        return fixed | self.more | {"targets": self.targets, "parts": self.parts}


class Prose:
    """Held-out documents, and the spans of them that are scored at lengths up to `longest`.

    tokens: how many targets the matched protocol scores, and how many the other two.
    """

    def __init__(self, dataset: data.Dataset, longest: int, tokens: tuple[int, int]):
        documents = dataset.documents("val")
        deep = [(a + longest, b) for a, b in documents if b - a > longest + SPAN]
        if not deep:
            most = max(b - a for a, b in documents) - SPAN - 1
            raise ValueError(f"length {longest} does not fit: the longest held-out document of "
                             f"{dataset.name} takes {max(most, 0)} at most")  # fmt: skip
        self.val, self.documents, self.longest = dataset.val, documents, longest
        self.spans = data.spans(deep, SPAN, max(1, tokens[0] // SPAN))
        self.blocks = data.spans(documents, longest, max(1, tokens[1] // longest))
        self.name = f"{tokens} tokens up to {longest} deep in {dataset.fingerprint['val'][:12]}"

    def matched(self, model: GPT, length: int) -> Score:
        """The same targets at every length, each with that many tokens before it.

        Exact up to the trained length. Past it windows of `length` inputs score their last few
        targets, at most 1 / FINE of them, which costs that much less.
        """
        c = model.config
        seen = min(length, c.block_size) if c.beyond == "slide" else length
        # Of a tuned model the length it was first trained at: it is read as the others are.
        stride = 1 if seen <= c.train_len else min(SPAN, 2 ** int(math.log2(max(1, seen // FINE))))
        rows = matched_windows(self.val, self.spans, seen, stride)
        able = seen <= model.reach
        losses = token_losses(model, rows[:, :-1], rows[:, -stride:]) if able else None
        return self._score(losses, self.spans, SPAN)

    def windows(self, model: GPT, length: int) -> Score:
        """Windows of `length` side by side, all of their targets.

        A sliding model is not asked past its window: it would read all of it anew for each token,
        and `matched` has that number.
        """
        return self._score(self._along(model, length), self.blocks, self._block(length))

    def position(self, model: GPT, length: int) -> Score:
        """The loss along windows of `length`, in bins of the logarithm of the position."""
        losses = self._along(model, length)
        score = self._score(losses, self.blocks, self._block(length))
        edges = sorted({0, length, *(round(2 ** (i / 2)) for i in range(64))})
        bins = pairwise(edge for edge in edges if edge <= length)
        score.more["bins"] = score.parts and [
            [a, b - 1, round(losses[:, a:b].mean().item(), 5)] for a, b in bins
        ]
        return score

    def _block(self, length: int) -> int:
        """Targets of each block that whole windows of this length cover."""
        return self.longest // length * length

    @lru_cache(1)  # noqa: B019 - `windows` and `position` ask for the same, one after the other
    def _along(self, model: GPT, length: int) -> Tensor | None:
        """Losses (N, length) along all windows of the blocks; None where the model refuses."""
        able = model.config.block_size if model.config.beyond == "slide" else model.reach
        if length > able:
            return None
        rows = windows(self.val, self.blocks, self._block(length), length)
        return token_losses(model, rows[:, :-1], rows[:, 1:])

    def _score(self, losses: Tensor | None, starts: np.ndarray, span: int) -> Score:
        digest = hashlib.sha256(f"{self.name} {starts.tolist()} {span}".encode())
        score = Score(None, digest.hexdigest()[:12], span * len(starts), {})
        if losses is not None:
            means = losses.view(len(starts), span).double().mean(1)
            borders = [a for a, _ in self.documents[1:]]
            of = np.searchsorted(borders, starts, "right")  # the document of each span
            score.parts = [[round(x, 5) for x in means[of == d].tolist()] for d in np.unique(of)]
        return score


class Retrieval:
    """Keys to be named again at the end of a text of random letters: see data/passkey.py."""

    def __init__(self, tokenizer: Tokenizer, keys: int):
        self.tokenizer, self.keys = tokenizer, keys
        self.name = f"{keys} keys, seed {SEED}"

    def passkey(self, model: GPT, length: int) -> Score:
        """Share of keys named exactly, all digits the likeliest; the texts differ by length."""
        asked = tasks.TASKS["passkey"].questions(length, self.keys, SEED)
        texts = np.stack([self.tokenizer.encode(q.text) for q in asked]).astype(np.int64)
        y = np.stack([self.tokenizer.encode(q.answer) for q in asked]).astype(np.int64)
        L = model.config.block_size
        x = texts[:, -L:] if model.config.beyond == "slide" else texts
        outside = sum(q.text.index("]") < length - model.config.train_len for q in asked)
        digest = hashlib.sha256("".join(q.text for q in asked).encode()).hexdigest()[:12]
        score = Score(None, digest, len(asked), {"outside_n": outside, "chance": 10.0**-4})
        if x.shape[1] <= model.reach:
            right = named(model, torch.from_numpy(x), torch.from_numpy(y))
            score.parts = [[float(r)] for r in right]
        return score


@torch.no_grad()
def named(model: GPT, x: Tensor, y: Tensor) -> list[bool]:
    """Whether the likeliest tokens that end texts x (N, c) are y (N, t), one answer a text.

    The text holds the answer but for its last token; where all are the likeliest, greedy
    decoding would have written them.
    """
    device, size = next(model.parameters()).device, max(1, BATCH_TOKENS // x.size(1))
    found = []
    for part, answer in zip(x.split(size), y.split(size), strict=True):
        likeliest = model.logits(model.hidden(part.to(device), last=y.size(1))).argmax(-1)
        found += (likeliest.cpu() == answer).all(1).tolist()
    return found
