"""Read-time changes of distance: Self-Extend, Dual Chunk Attention and StreamingLLM.

All three show a model that was trained with RoPE no distance that it has not seen. They need no
training, and work for keys at any place of the text. Each pair of a query i and a key j belongs to
one part of the scores, and each part places queries and keys in its own way: a key's score is that
of a rotation by the difference. ReRoPE (rerope.py) has two such parts.

Letters: T time, S keys, H heads, D head_dim, L trained length.
"""

import math
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

SINKS = 4  # first tokens that StreamingLLM always keeps


class Part(NamedTuple):
    """Pairs of queries and keys, and where both stand."""

    pairs: Tensor  # (rows, S) bool
    queries: Tensor  # positions (rows,)
    keys: Tensor  # positions (S,)


class Remapped(Attention):
    """Attention in which pairs of tokens stand where `parts` places them."""

    def use(self, position: Position) -> None:
        super().use(Position(self.config))  # `scores` rotates; the layer's encoding must not

    def parts(self, i: Tensor, j: Tensor, length: int) -> Iterator[Part]:
        """Parts that do not overlap, for queries at i (rows,) and keys at j (S,).

        A key that is in no part is hidden.
        """
        raise NotImplementedError

    def scores(self, q: Tensor, k: Tensor, at: Place, rows: slice) -> Tensor:
        q, scores = q[:, :, rows], None
        for pairs, queries, keys in self.parts(at.query_positions[rows], at.positions, at.length):
            rotated = self.rotated(q, queries), self.rotated(k, keys)
            product = super().scores(*rotated, at, slice(None))  # (B, H, rows, S)
            hidden = torch.full_like(product, -math.inf) if scores is None else scores
            scores = torch.where(pairs, product, hidden)
        return scores

    def rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        inv_freq, _ = rope.frequencies(self.config.head_dim, self.config.rope_theta)
        table = rope.rotation_table(positions, inv_freq)
        return rope.rotate(x, *table, self.config.rope_layout)


class SelfExtend(Remapped):
    """Exact distances below W; farther keys in groups of G tokens that share a position
    (arXiv:2401.01325)."""

    def __init__(self, config: GPTConfig, layer: int, group: int, window: float):
        super().__init__(config, layer)
        self.group, self.local = group, int(window * config.train_len)

    def parts(self, i: Tensor, j: Tensor, length: int) -> Iterator[Part]:
        G, W = self.group, self.local
        near = i[:, None] - j < W
        yield Part(near, i, j)
        # At distance W the two parts meet: grouped positions are shifted by W - W // G.
        yield Part(~near, i // G + W - W // G, j // G)


class DualChunk(Remapped):
    """Dual Chunk Attention (arXiv:2402.17463): chunks of 5/8 L, a local window of L/8.

    A key stands where it is within its chunk. A query stands where it is within its own chunk for
    keys of that chunk, one chunk farther for the chunk before, at most at 3/4 L, and at 3/4 L for
    all older ones.
    """

    def parts(self, i: Tensor, j: Tensor, length: int) -> Iterator[Part]:
        L = self.config.train_len
        chunk, farthest = 5 * L // 8, 3 * L // 4
        behind = (i // chunk)[:, None] - j // chunk  # chunks between query and key
        yield Part(behind == 0, i % chunk, j % chunk)
        yield Part(behind == 1, (i % chunk + chunk).clamp(max=farthest), j % chunk)
        yield Part(behind > 1, torch.full_like(i, farthest), j % chunk)


class Streaming(Remapped):
    """The first SINKS tokens and the last L - SINKS, at their places among these
    (StreamingLLM, arXiv:2309.17453)."""

    def parts(self, i: Tensor, j: Tensor, length: int) -> Iterator[Part]:
        window = self.config.train_len - SINKS
        distance = i[:, None] - j
        yield Part(distance < window, i, j)
        sink = (j < SINKS) & (distance >= window)
        yield Part(sink, i.clamp(max=self.config.train_len - 1), j)


def remapped(label: str, attention: type[Remapped], logn: bool = False, **settings) -> Variant:
    """The variant with this attention, and with a logit scale that grows with the position."""

    def build(state: dict, config: GPTConfig) -> GPT:
        if logn:
            config = replace(config, logit_scaling="logn")
        return with_attention(checkpoint.build(state, config), attention, **settings)

    return Variant(f"{label}, log-n" if logn else label, {}, build)


METHODS = [
    ("Self-Extend, G = 8, W = L/2", SelfExtend, {"group": 8, "window": 0.5}),
    ("Self-Extend, G = 16, W = L/2", SelfExtend, {"group": 16, "window": 0.5}),
    ("Self-Extend, G = 16, W = L/4", SelfExtend, {"group": 16, "window": 0.25}),
    ("Dual Chunk", DualChunk, {}),
    ("StreamingLLM", Streaming, {}),
]
VARIANTS = [NONE, YARN]
for logn in (False, True):
    VARIANTS += [
        remapped(label, attention, logn, **settings) for label, attention, settings in METHODS
    ]
VARIANTS += [
    Variant("none, log-n", {"rope_scaling": "none", "logit_scaling": "logn"}),
    Variant("yarn, log-n", {"rope_scaling": "dynamic_yarn", "logit_scaling": "logn"}),
]
MODELS = [Trained("rope", VARIANTS)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("remapping", MODELS, argv))
