"""Linear attention with rotated features: RoFormer's eq. 19 (arXiv:2104.09864), trained.

The score of a pair is phi(q) . phi(k) with phi = elu + 1 (arXiv:2006.16236). RoPE turns both in
the numerator only; the sum that divides stays unturned and positive, so weights can be negative
and need not sum to one. Trained as the full matrix of scores; `running` is the same at a cost that
grows with the length alone.

Letters: B batch, T time, H heads, D head_dim.
"""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import checkpoint
import cli
import data
from attention import Attention, Scene
from experiments import AS_TRAINED, SEEDS, Trained, judge, like_rope, parse, record
from model import GPT, GPTConfig
from rope import frequencies, rotate, rotation_table

CHUNK = 128
LENGTHS = (1024, 4096, 16384)  # at which the cost is measured


class LinearAttention(Attention):
    """Attention without a softmax; full forward passes only, no cache."""

    def forward(self, x: Tensor, scene: Scene) -> Tensor:
        q, k, v = self.features(x)
        y = weights(q, k, scene.rotate).to(v.dtype) @ v
        return self.c_proj(y.transpose(1, 2).reshape(x.shape))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q), phi(k), v: (B, H, T, D)."""
        heads = self.c_attn(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
        q, k, v = heads.chunk(3, 1)
        return F.elu(q) + 1, F.elu(k) + 1, v


def weights(q: Tensor, k: Tensor, rotated) -> Tensor:
    """What each value is multiplied by: float32 (B, H, T, T)."""
    above = (rotated(q) @ rotated(k).mT).float().tril()
    return above / (q @ k.mT).float().tril().sum(-1, keepdim=True)


def running(q: Tensor, k: Tensor, v: Tensor, rotated) -> Tensor:
    """weights(q, k) @ v of (B, H, T, D), CHUNK tokens at a time: what went before is one D x D."""
    turned_q, turned_k = rotated(q), rotated(k)
    memory, total, found = 0.0, 0.0, []
    for a in range(0, q.size(2), CHUNK):
        at = slice(a, a + CHUNK)
        tq, tk, values = (x[:, :, at] for x in (turned_q, turned_k, v))
        inner = (tq @ tk.mT).tril() @ values + (tq @ memory if a else 0.0)
        sums = total + k[:, :, at].cumsum(2)  # (B, H, chunk, D)
        found.append(inner / (q[:, :, at] * sums).sum(-1, keepdim=True))
        memory = memory + tk.mT @ values
        total = sums[:, :, -1:]
    return torch.cat(found, 2)


class LinearGPT(GPT):
    """A GPT whose blocks have linear attention, on the weights that softmax would have."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        for layer, block in enumerate(self.h):
            plain, block.attn = block.attn, LinearAttention(config, layer)
            block.attn.load_state_dict(plain.state_dict())


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
    val = data.load(state["run"]["dataset"]).val[: 8 * T]

    def count(attn: LinearAttention, given: tuple[Tensor, Scene]) -> None:
        q, k, _ = attn.features(given[0])
        pairs = q.shape[:2].numel() * T * (T + 1) / 2
        shares.append((weights(q, k, given[1].rotate) < 0).sum() / pairs)

    for block in model.h:
        block.attn.register_forward_pre_hook(count)
    model.hidden(torch.from_numpy(val.astype("int64")).view(8, T))
    return torch.stack(shares).mean().item()


@torch.no_grad()
def cost(length: int, rounds: int = 5) -> dict[str, float]:
    """Microseconds a token of causal attention, 4 heads of 32: the softmax's, and `running`."""
    table = rotation_table(torch.arange(length), frequencies(32)[0])
    q, k, v = torch.rand(3, 1, 4, length, 32)
    ways = {
        "softmax": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "linear": lambda: running(q, k, v, lambda x: rotate(x, *table)),
    }
    found = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            found[name].append(time.perf_counter() - start)
    return {name: round(1e6 * min(times) / length, 3) for name, times in found.items()}


def main(argv: list[str]) -> None:
    judge("linear", MODELS, argv)
    given, rotated = parse("linear", argv), MODELS[-1]
    found: dict[str, object] = {f"cost at {length}": cost(length) for length in LENGTHS}
    for task in given.tasks:
        runs = [rotated.folder(task, seed, given.out) for seed in SEEDS[: given.seeds]]
        found[f"negative, {task}"] = [round(negative(run), 4) for run in runs]
    record("linear", found)


if __name__ == "__main__":
    cli.end(main)
