"""Distances exact within a window W and constant beyond it: ReRoPE, and leaky ReRoPE.

Two texts give YaRN a local window |m - n| < W. YaRN has none; ReRoPE has one (J. Su, 2023,
https://kexue.fm/archives/9708). It computes the scores twice, as RoPE does and as if every key
stood W + (distance - W) / step away, and chooses by distance.

The base class here also serves remapping.py. Letters: T time, S keys, H heads, D head_dim.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

import rope
from experiments.claims import NONE, YARN, Trained, Variant, compare, with_attention
from model import GPT, Attention, GPTConfig
from positions import Place, Position
from runtime import checkpoint, errors


class Part(NamedTuple):
    """Pairs of queries and keys, and where both stand."""

    pairs: Tensor  # (rows, S) bool
    queries: Tensor  # positions (rows,)
    keys: Tensor  # positions (S,)


class Remapped(Attention, ABC):
    """Attention in which pairs of tokens stand where `parts` places them."""

    def use(self, position: Position) -> None:
        super().use(Position(self.config))  # `scores` rotates; the layer's encoding must not

    @abstractmethod
    def parts(self, i: Tensor, j: Tensor, length: int) -> Iterator[Part]:
        """Parts that do not overlap, for queries at i (rows,) and keys at j (S,).

        A key that is in no part is hidden.
        """

    def scores(self, q: Tensor, k: Tensor, at: Place, rows: slice) -> Tensor:
        q, scores = q[:, :, rows], None
        for pairs, queries, keys in self.parts(at.query_positions[rows], at.positions, at.length):
            rotated = self.rotated(q, queries), self.rotated(k, keys)
            product = super().scores(*rotated, at, slice(None))  # (B, H, rows, S)
            hidden = torch.full_like(product, -math.inf) if scores is None else scores
            scores = torch.where(pairs, product, hidden)
        return scores

    def rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        inv_freq, _ = rope.frequencies(self.config.head_size, self.config.rope_theta)
        table = rope.rotation_table(positions, inv_freq)
        return rope.rotate(x, *table, self.config.rope_layout)


class ReRope(Remapped):
    """Attention whose scores depend on a distance that grows slower, or not, beyond W.

    window: W in trained lengths. leaky: the step is such that no key stands farther away than the
    trained length; otherwise it is infinite. Full forward passes only where it is leaky: the step
    depends on the length of the text, and a cache would keep the states of shorter texts.
    """

    def __init__(self, config: GPTConfig, layer: int, window: float, leaky: bool):
        super().__init__(config, layer)
        self.local, self.leaky = int(window * config.train_len), leaky

    def parts(self, i: Tensor, j: Tensor, length: int) -> Iterator[Part]:
        W = min(length, self.local)
        step = self.step(length, W)
        near = i[:, None] - j < W
        yield Part(near, i, j)
        # A key at distance d then stands W + (d - W) / step away.
        yield Part(~near, i / step + W * (1 - 1 / step), j / step)

    def step(self, length: int, window: int) -> float:
        if not self.leaky:
            return math.inf
        return max(1.0, (length - window) / (self.config.train_len - window))


def remapped(label: str, attention: type[Remapped], logn: bool = False, **settings) -> Variant:
    """The variant with this attention, and with a logit scale that grows with the position."""

    def build(state: dict, config: GPTConfig) -> GPT:
        if logn:
            config = replace(config, logit_scaling="logn")
        return with_attention(checkpoint.build(state, config), attention, **settings)

    return Variant(f"{label}, log-n" if logn else label, {}, build)


def rerope(window: float, leaky: bool, logn: bool = False) -> Variant:
    """The variant of this window, in trained lengths."""
    name = "leaky ReRoPE" if leaky else "ReRoPE"
    return remapped(f"{name}, W = {window:g} L", ReRope, logn, window=window, leaky=leaky)


VARIANTS = [NONE, YARN, rerope(0.25, leaky=False), rerope(0.5, leaky=False)]
VARIANTS += [rerope(0.5, leaky=True)]
MODELS = [Trained("rope", VARIANTS)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("rerope", MODELS, argv))
