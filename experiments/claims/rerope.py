"""Positions exact within a window W and held beyond it: ReRoPE, and leaky ReRoPE.

The texts give YaRN a local window |m - n| < W. No YaRN has one; these do (J. Su, 2023,
https://kexue.fm/archives/9708). Scores are made twice, in the plain way and as if every key were
W + (distance - W) / step away, and chosen by distance: an attention of its own, put into the
trained model in place of the plain one.

Letters: B batch, T time, H heads, D head_dim, F = D/2 planes.
"""

import math

import torch
from torch import Tensor, nn

import rope
from attention import BLOCK, Attention, Scene
from evaluation.variants import Variant
from experiments.claims import NONE, YARN, Trained, judge
from model import GPT, GPTConfig
from runtime import checkpoint, errors


class ReRope(nn.Module):
    """Attention with the weights of another; full forward passes only, no cache."""

    def __init__(self, plain: Attention, window: float, leaky: bool):
        super().__init__()
        self.plain, self.window, self.leaky = plain, window, leaky

    def rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        config = self.plain.config
        inv_freq, _ = rope.frequencies(config.head_dim, config.rope_theta)
        return rope.rotate(x, *rope.rotation_table(positions, inv_freq), config.rope_layout)

    def forward(self, x: Tensor, scene: Scene) -> Tensor:
        c, T = self.plain.config, x.size(1)
        q, k, v = self.plain.c_attn(x).unflatten(-1, (-1, c.head_dim)).transpose(1, 2).chunk(3, 1)
        at = torch.arange(T)
        W = min(T, int(self.window * c.train_len))
        # Leaky: the first key of all stands a trained length away, and no farther.
        step = max(1.0, (T - W) / (c.train_len - W)) if self.leaky else math.inf
        near_q, near_k = self.rotated(q, at), self.rotated(k, at)
        # Of these two a key at distance d stands W + (d - W) / step away.
        far_q = self.rotated(q, at / step + W * (1 - 1 / step))
        far_k = self.rotated(k, at / step)
        found = []
        for start in range(T - (scene.last or T), T, BLOCK):
            rows = slice(start, min(start + BLOCK, T))
            seen = slice(0, rows.stop)  # no key from there on
            distance = at[rows, None] - at[seen]
            near = near_q[:, :, rows] @ near_k[:, :, seen].mT  # (B, H, BLOCK or less, seen)
            far = far_q[:, :, rows] @ far_k[:, :, seen].mT
            scores = scene.scale * torch.where(distance < W, near, far)
            scores = scores.masked_fill(distance < 0, -math.inf)
            found.append(scores.softmax(-1) @ v[:, :, seen])
        y = torch.cat(found, 2)  # (B, H, T or last, D)
        return self.plain.c_proj(y.transpose(1, 2).flatten(2))


def with_window(window: float, leaky: bool):
    """How to build the model: its window in trained lengths."""

    def build(state: dict, config: GPTConfig) -> GPT:
        model = checkpoint.build(state, config)
        for block in model.h:
            block.attn = ReRope(block.attn, window, leaky)
        return model

    return build


FORMS = [NONE, YARN]
for window, leaky in ((0.25, False), (0.5, False), (0.5, True)):
    name = f"{'leaky ' * leaky}ReRoPE, W = {window:g} L"
    FORMS.append(Variant(name, {}, with_window(window, leaky)))

MODELS = [Trained("rope", FORMS)]

if __name__ == "__main__":
    errors.end(lambda argv: judge("rerope", MODELS, argv))
