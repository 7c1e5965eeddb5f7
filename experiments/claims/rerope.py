"""Distances exact within a window W and constant beyond it: ReRoPE, and leaky ReRoPE.

Two texts give YaRN a local window |m - n| < W. YaRN has none; ReRoPE has one (J. Su, 2023,
https://kexue.fm/archives/9708). It computes the scores twice, as RoPE does and as if every key
stood W + (distance - W) / step away, and chooses by distance.

Letters: B batch, T time, S keys, H heads, D head_dim.
"""

import math

import torch
from torch import Tensor

import rope
from experiments.claims import NONE, YARN, Trained, Variant, compare, with_attention
from model import GPT, Attention, GPTConfig
from positions import Place, Position
from runtime import checkpoint, errors


class ReRope(Attention):
    """Attention whose scores depend on a distance that grows slower, or not, beyond W.

    window: W in trained lengths. leaky: the step is such that no key stands farther away than the
    trained length; otherwise it is infinite. Full forward passes only where it is leaky: the step
    depends on the length of the text, and a cache would keep the states of shorter texts.
    """

    def __init__(self, config: GPTConfig, layer: int, window: float, leaky: bool):
        super().__init__(config, layer)
        self.local, self.leaky = int(window * config.train_len), leaky

    def use(self, position: Position) -> None:
        super().use(Position(self.config))  # `scores` rotates; the layer's encoding must not

    def scores(self, q: Tensor, k: Tensor, at: Place, rows: slice) -> Tensor:
        queries, keys = at.query_positions[rows], at.positions
        q, W = q[:, :, rows], min(at.length, self.local)
        step = self.step(at.length, W)
        near = self.product(q, k, queries, keys, at)
        # A key at distance d then stands W + (d - W) / step away.
        far = self.product(q, k, queries / step + W * (1 - 1 / step), keys / step, at)
        return torch.where(at.distance(rows) < W, near, far)  # (B, H, rows, S)

    def step(self, length: int, window: int) -> float:
        if not self.leaky:
            return math.inf
        return max(1.0, (length - window) / (self.config.train_len - window))

    def product(self, q: Tensor, k: Tensor, queries: Tensor, keys: Tensor, at: Place) -> Tensor:
        """Scores of q and k, rotated to these positions."""
        return super().scores(self.rotated(q, queries), self.rotated(k, keys), at, slice(None))

    def rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        inv_freq, _ = rope.frequencies(self.config.head_dim, self.config.rope_theta)
        table = rope.rotation_table(positions, inv_freq)
        return rope.rotate(x, *table, self.config.rope_layout)


def rerope(window: float, leaky: bool) -> Variant:
    """The variant of this window, in trained lengths."""

    def build(state: dict, config: GPTConfig) -> GPT:
        model = checkpoint.build(state, config)
        return with_attention(model, ReRope, window=window, leaky=leaky)

    name = "leaky ReRoPE" if leaky else "ReRoPE"
    return Variant(f"{name}, W = {window:g} L", {}, build)


VARIANTS = [NONE, YARN, rerope(0.25, leaky=False), rerope(0.5, leaky=False)]
VARIANTS += [rerope(0.5, leaky=True)]
MODELS = [Trained("rope", VARIANTS)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("rerope", MODELS, argv))
