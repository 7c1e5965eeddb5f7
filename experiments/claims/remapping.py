"""Read-time changes of distance: Self-Extend, Dual Chunk Attention, StreamingLLM and ReRoPE.

All keep the distances that a model trained with RoPE is shown within those it has seen, and need no
training. (Self-Extend with G = 8 does so up to 4.5 L alone: its authors' limit is (L - W) G + W.)
Each is scored with and without a logit scale that grows with the position (log-n).

Letters: S keys, L trained length.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from experiments.claims import NONE, YARN, Trained, Variant, compare
from experiments.claims.rerope import Part, Remapped, remapped, rerope
from model import GPTConfig
from runtime import errors

SINKS = 4  # first tokens that StreamingLLM always keeps


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
    """Dual Chunk Attention (arXiv:2402.17463), in the proportions of its code, not of its paper:
    chunks of 5/8 L and a local window of L/8.

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
    VARIANTS += [rerope(0.5, leaky, logn) for leaky in (False, True)]
VARIANTS += [
    Variant("none, log-n", {"rope_scaling": "none", "logit_scaling": "logn"}),
    Variant("yarn, log-n", {"rope_scaling": "dynamic_yarn", "logit_scaling": "logn"}),
]
MODELS = [Trained("rope", VARIANTS)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("remapping", MODELS, argv))
