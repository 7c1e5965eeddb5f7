"""Linear attention with rotated features: RoFormer's eq. 19 (arXiv:2104.09864), trained.

The score of a pair is phi(q) . phi(k) with phi = elu + 1 (arXiv:2006.16236). RoPE rotates both in
the numerator only; the denominator stays unrotated and positive, so that weights can be negative
and need not sum to one. `running` never makes the matrix of scores: its cost is linear in the
length.

Letters: B batch, T time, C channels, H heads, D head_dim.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.claims import (
    AS_TRAINED,
    Trained,
    compare,
    held_out,
    parse,
    record,
    rope_variant,
    with_attention,
)
from experiments.timing import interleaved, spread
from model import GPT, Attention, GPTConfig, KVCache
from positions import Place
from rope import frequencies, rotate, rotation_table
from runtime import checkpoint, errors

CHUNK = 128
LENGTHS = (1024, 4096, 16384)  # at which the cost is measured


class LinearAttention(Attention):
    """Attention without a softmax; full forward passes only, no cache."""

    def forward(
        self, x: Tensor, at: Place, cache: KVCache | None, last: int | None = None
    ) -> Tensor:
        if cache is not None:
            raise ValueError("linear attention has no cache here; ask for a full forward pass")
        q, k, v = self.features(x)
        y = running(q, k, v, *self.position.rotate(q, k, at)).to(x.dtype)
        y = self.c_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)
        return y if last is None else y[:, -last:]

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q), phi(k) and v of x (B, T, C): (B, H, T, D) each."""
        q, k, v = self.qkv(x)
        return phi(q), phi(k), v


def phi(x: Tensor) -> Tensor:
    """elu(x) + 1, as a sum that keeps small values: 1 + (a number near -1) would round them."""
    return F.relu(x) + x.clamp(max=0).exp()


def numerator_scores(rotated_q: Tensor, rotated_k: Tensor) -> Tensor:
    """The scores of rotated features, 0 for the future: (B, H, T, T)."""
    return (rotated_q @ rotated_k.mT).tril()


def running(q: Tensor, k: Tensor, v: Tensor, rotated_q: Tensor, rotated_k: Tensor) -> Tensor:
    """Scores of rotated features times v, over the sum of the unrotated scores: (B, H, T, D).

    It works on CHUNK tokens at a time; a D x D matrix holds all earlier ones. The sum is always
    positive. Both are accumulated in float32.
    """
    sums = (q * k.float().cumsum(2)).sum(-1, keepdim=True)
    memory, chunks = None, []
    for start in range(0, q.size(2), CHUNK):
        rows = slice(start, start + CHUNK)
        rq, rk, values = rotated_q[:, :, rows], rotated_k[:, :, rows], v[:, :, rows]
        within = numerator_scores(rq, rk) @ values
        chunks.append(within if memory is None else within + rq @ memory)
        added = (rk.mT @ values).float()
        memory = added if memory is None else memory + added
    return torch.cat(chunks, 2) / sums


class LinearGPT(GPT):
    """A GPT with linear attention, which starts from the weights that a GPT starts from."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        with_attention(self, LinearAttention)
        self.register_buffer("linear_attention", torch.ones(()))  # a plain GPT refuses to load it


MODELS = [
    Trained("nope", [AS_TRAINED]),
    Trained("rope", [AS_TRAINED]),
    rope_variant("linear", [AS_TRAINED], "--pos=none", LinearGPT),
    rope_variant("linear-rope", [AS_TRAINED], "--pos=rope", LinearGPT),
]


@torch.no_grad()
def negative_share(folder: Path) -> float:
    """Share of negative weights on held-out windows, over all layers and heads."""
    state = checkpoint.read(folder)
    model = checkpoint.build(state, checkpoint.config_of(state), LinearGPT)
    T, shares = model.config.block_size, []

    def count(attention: LinearAttention, arguments: tuple) -> None:
        x, at, *_ = arguments
        q, k, _ = attention.features(x)
        pairs = q.shape[:2].numel() * T * (T + 1) / 2
        scores = numerator_scores(*attention.position.rotate(q, k, at))
        shares.append((scores < 0).sum() / pairs)

    for block in model.h:
        block.attn.register_forward_pre_hook(count)
    model.hidden(held_out(state, T, 8)[:, :-1])
    return torch.stack(shares).mean().item()


@torch.no_grad()
def cost(length: int, rounds: int = 5) -> dict[str, list[float]]:
    """Microseconds a token of causal attention with RoPE, 4 heads of 32: [median, least, most]."""
    table = rotation_table(torch.arange(length), frequencies(32)[0])
    q, k, v = torch.randn(3, 1, 4, length, 32)

    def softmax() -> Tensor:
        rotated = rotate(q, *table), rotate(k, *table)
        return F.scaled_dot_product_attention(*rotated, v, is_causal=True)

    def linear() -> Tensor:
        features = phi(q), phi(k)
        return running(*features, v, *(rotate(x, *table) for x in features))

    results = {}
    for name, seconds in interleaved({"softmax": softmax, "linear": linear}, rounds).items():
        results[name] = [round(1e6 * s / length, 3) for s in spread(seconds)]
    return results


def main(argv: list[str]) -> None:
    compare("linear_attention", MODELS, argv)
    args, with_rope = parse("linear_attention", argv), MODELS[-1]
    for task in args.tasks:
        runs = [with_rope.train_if_missing(task, seed, args.out) for seed in args.seeds]
        record(
            f"linear_attention-{task}",
            {"negative": [round(negative_share(run), 4) for run in runs]},
        )
    if not args.task:  # other processes would disturb the times; one task means a parallel run
        record("linear_attention-cost", {str(length): cost(length) for length in LENGTHS})


if __name__ == "__main__":
    errors.run(main)
