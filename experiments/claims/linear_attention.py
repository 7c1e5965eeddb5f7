"""Linear attention with rotated features: RoFormer's eq. 19 (arXiv:2104.09864), trained.

The score of a pair is phi(q) . phi(k) with phi = elu + 1 (arXiv:2006.16236). RoPE turns both in
the numerator only; the sum that divides stays unturned and positive, so weights can be negative
and need not sum to one. `running` never makes the matrix of scores, so that its cost grows with
the length alone.

Letters: B batch, T time, H heads, D head_dim.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from attention import Attention, Scene
from experiments.claims import AS_TRAINED, SEEDS, Trained, held_out, judge, like_rope, parse, record
from experiments.timing import in_turn, spread
from model import GPT, GPTConfig
from rope import frequencies, rotate, rotation_table
from runtime import checkpoint, errors

CHUNK = 128
LENGTHS = (1024, 4096, 16384)  # at which the cost is measured


class LinearAttention(Attention):
    """Attention without a softmax; full forward passes only, no cache."""

    def forward(self, x: Tensor, scene: Scene) -> Tensor:
        if scene.cache is not None:
            raise ValueError("linear attention has no cache here; ask for a full forward pass")
        y = running(*self.features(x), scene.rotate).to(x.dtype)
        return self.c_proj(y.transpose(1, 2).reshape(x.shape))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q), phi(k), v: (B, H, T, D)."""
        heads = self.c_attn(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
        q, k, v = heads.chunk(3, 1)
        return phi(q), phi(k), v


def phi(x: Tensor) -> Tensor:
    """elu(x) + 1, without the steps of 1/256 that bfloat16 would leave of its small values."""
    return F.relu(x) + x.clamp(max=0).exp()


def above(q: Tensor, k: Tensor, rotated) -> Tensor:
    """The scores of the numerator (B, H, T, T): of the turned features, 0 for the future."""
    return (rotated(q) @ rotated(k).mT).tril()


def running(q: Tensor, k: Tensor, v: Tensor, rotated) -> Tensor:
    """Turned scores times v, over the sum of the unturned ones, (B, H, T, D).

    CHUNK tokens at a time: what went before is one D x D. The sum is always positive. Both are
    added up in float32.
    """
    turned_q, turned_k = rotated(q), rotated(k)
    sums = (q * k.float().cumsum(2)).sum(-1, keepdim=True)
    memory, found = 0.0, []
    for a in range(0, q.size(2), CHUNK):
        tq, tk, values = (x[:, :, a : a + CHUNK] for x in (turned_q, turned_k, v))
        inner = (tq @ tk.mT).tril() @ values
        found.append(inner + tq @ memory if a else inner)
        memory = memory + (tk.mT @ values).float()
    return torch.cat(found, 2) / sums


class LinearGPT(GPT):
    """A GPT whose blocks have linear attention, on the weights that softmax would have."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        for layer, block in enumerate(self.h):
            plain, block.attn = block.attn, LinearAttention(config, layer)
            block.attn.load_state_dict(plain.state_dict())
        self.register_buffer("linear_attention", torch.ones(()))  # no GPT reads its checkpoints


MODELS = [
    Trained("nope", [AS_TRAINED]),
    Trained("rope", [AS_TRAINED]),
    like_rope("linear", [AS_TRAINED], "--pos=none", LinearGPT),
    like_rope("linear-rope", [AS_TRAINED], "--pos=rope", LinearGPT),
]


@torch.no_grad()
def negative(folder: Path) -> float:
    """Share of negative weights, of held-out windows, over all layers and heads."""
    state = checkpoint.read(folder)
    model = checkpoint.build(state, checkpoint.config_of(state), LinearGPT)
    T, shares = model.config.block_size, []

    def count(attn: LinearAttention, given: tuple[Tensor, Scene]) -> None:
        q, k, _ = attn.features(given[0])
        pairs = q.shape[:2].numel() * T * (T + 1) / 2
        shares.append((above(q, k, given[1].rotate) < 0).sum() / pairs)

    for block in model.h:
        block.attn.register_forward_pre_hook(count)
    model.hidden(held_out(state, T, 8)[:, :-1])
    return torch.stack(shares).mean().item()


@torch.no_grad()
def cost(length: int, rounds: int = 5) -> dict[str, list[float]]:
    """Microseconds a token of causal attention with RoPE, 4 heads of 32: [median, least, most]."""
    table = rotation_table(torch.arange(length), frequencies(32)[0])
    q, k, v = torch.randn(3, 1, 4, length, 32)

    def turn(x: Tensor) -> Tensor:
        return rotate(x, *table)

    took = in_turn(
        {
            "softmax": lambda: F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True),
            "linear": lambda: running(phi(q), phi(k), v, turn),
        },
        rounds,
    )
    return {
        name: [round(1e6 * s / length, 3) for s in spread(times)] for name, times in took.items()
    }


def main(argv: list[str]) -> None:
    judge("linear_attention", MODELS, argv)
    given, rotated = parse("linear_attention", argv), MODELS[-1]
    for task in given.tasks:
        runs = [rotated.folder(task, seed, given.out) for seed in SEEDS[: given.seeds]]
        record(f"linear_attention-{task}", {"negative": [round(negative(run), 4) for run in runs]})
    if not given.task:  # alone on the machine, or the times mean nothing
        record("linear_attention-cost", {str(length): cost(length) for length in LENGTHS})


if __name__ == "__main__":
    errors.end(main)
