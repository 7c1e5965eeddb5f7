"""Dynamic scaling along a generation: keys cached as they were rotated, or rotated on each read.

The factor grows with every token past the trained length. A cache of rotated keys keeps those of
older factors (so does transformers, with dynamic NTK); one of plain keys rotates all of them anew
each time it is read. Neither is what a forward pass at that length gives, since all layers but the
first computed their keys from states that saw an older factor. Texts are read a token at a time, as
if written.

Letters: B texts, T time, H heads, D head_dim.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from data import tasks
from data.tokenizer import from_meta
from experiments.claims import SEEDS, Trained, held_out, parse, record
from model import GPT
from runtime import checkpoint, errors

SCALINGS = ("dynamic_yarn", "dynamic_ntk")
WAYS = ("forward pass", "rotated on read", "rotated on write")
TEXTS, KEYS = 12, 40
EVERY = 16  # losses are compared at every 16th token past the trained length
SEED = 2026  # of the keys
PASSKEY = tasks.TASKS["passkey"]


@torch.no_grad()
def stepwise(model: GPT, idx: Tensor, on_read: bool) -> Iterator[Tensor]:
    """Logits (B, V) after each token of idx (B, T), with a cache of plain or of rotated keys."""
    c, p, T = model.config, model.position, idx.size(1)
    caches = [torch.zeros(2, idx.size(0), c.n_head, T, c.head_dim) for _ in model.h]
    for length in range(1, T + 1):
        x = model.wte(idx[:, length - 1 : length])
        table = p.table(torch.arange(length), length)
        now = [part[-1:] for part in table]
        for block, (keys, values) in zip(model.h, caches, strict=True):
            heads = block.attn.c_attn(block.ln_1(x)).unflatten(-1, (-1, c.head_dim))
            q, k, v = heads.transpose(1, 2).chunk(3, 1)
            keys[:, :, length - 1 : length] = k if on_read else p.rotate(k, *now)
            values[:, :, length - 1 : length] = v
            seen = keys[:, :, :length]
            seen = p.rotate(seen, *table) if on_read else seen
            scale = p.sharpness(length) / c.head_dim**0.5
            q = p.rotate(q, *now)
            y = F.scaled_dot_product_attention(q, seen, values[:, :, :length], scale=scale)
            x = x + block.attn.c_proj(y.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_2(x))
        yield model.logits(model.ln_f(x))[:, 0]


def logits(model: GPT, idx: Tensor, at: list[int], way: str) -> Tensor:
    """(B, len(at), V): what follows the first n tokens, for each n of `at`."""
    if way == "forward pass":
        return torch.stack([model(idx[:, :n])[:, -1] for n in at], 1)
    steps = stepwise(model, idx[:, : at[-1]], on_read=way == "rotated on read")
    return torch.stack([step for n, step in enumerate(steps, 1) if n in set(at)], 1)


def prose(model: GPT, state: dict, way: str) -> list[float]:
    """Mean loss from 1x to 2x, 2x to 3x and 3x to 4x the trained length, of held-out text."""
    L = model.config.train_len
    idx, at = held_out(state, 4 * L, TEXTS), list(range(L + EVERY, 4 * L, EVERY))
    found = logits(model, idx, at, way).transpose(1, 2)  # (B, V, len(at))
    losses = F.cross_entropy(found, idx[:, at], reduction="none").mean(0)
    return [round(part.mean().item(), 5) for part in losses.tensor_split(3)]


def keys(model: GPT, state: dict, way: str) -> list[float]:
    """Share of keys named at 2x and at 4x the trained length."""
    tokenizer, found = from_meta(state["tokenizer"]), []
    for length in (2 * model.config.train_len, 4 * model.config.train_len):
        asked = PASSKEY.questions(length, KEYS, SEED)
        idx, answers = (
            torch.tensor([tokenizer.encode(text).tolist() for text in texts])
            for texts in zip(*[(q.text, q.answer) for q in asked], strict=True)
        )
        at = list(range(length - answers.size(1) + 1, length + 1))
        right = logits(model, idx, at, way).argmax(-1) == answers
        found.append(right.all(1).float().mean().item())
    return found


@torch.no_grad()
def main(argv: list[str]) -> None:
    given = parse("kv_cache", argv)
    folders = {
        task: [Trained("rope", []).folder(task, seed, given.out) for seed in SEEDS[: given.seeds]]
        for task in given.tasks
    }
    for task, runs in folders.items():
        found = {}
        for run in runs:
            state = checkpoint.read(run)
            for scaling in SCALINGS:
                config = checkpoint.adapt(checkpoint.config_of(state), rope_scaling=scaling)
                model = checkpoint.build(state, config).eval()
                for way in WAYS:
                    row = found.setdefault(f"{task}, {scaling}, {way}", [])
                    row.append({"prose": prose, "keys": keys}[task](model, state, way))
                    print(run, scaling, way, *row[-1])
        record(f"kv_cache-{task}", found)


if __name__ == "__main__":
    errors.end(main)
