"""Dynamic scaling in generation: are keys cached as rotated when written, or rotated when read?

The factor grows with every token past the trained length. A cache of rotated keys keeps rotations
of smaller factors (as transformers' dynamic NTK does); a cache of unrotated keys rotates all of
them at each step. Neither equals a forward pass at that length, because in all layers but the
first the keys come from states that saw a smaller factor. Texts are processed a token at a time,
as in generation.

Letters: B texts, T time, V vocabulary.
"""

from argparse import Namespace
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from data import tasks
from data.tokenizer import from_meta
from experiments.claims import Trained, held_out, parse, record, with_attention
from model import GPT, Attention, KVCache, attend
from positions import Place
from runtime import checkpoint, errors

SCALINGS = ("dynamic_yarn", "dynamic_ntk")
METHODS = ("forward pass", "rotated on read", "rotated on write")
TEXTS, KEYS = 12, 40
STRIDE = 16  # losses are compared at every 16th token past the trained length
SEED = 2026  # of the questions


class StaleCache(KVCache):
    """A cache that keeps what it holds when the interpolation factor changes."""

    def check(self, factors: tuple[float, ...]) -> None:
        self.tables = {}  # the next token is rotated under the present factor


class RotatedOnRead(Attention):
    """Attention that caches keys unrotated and rotates all of them at each step."""

    def forward(self, x: Tensor, at: Place, cache: KVCache, last: int | None = None) -> Tensor:
        q, k, v = self.qkv(x)
        k, v = cache.append(self.layer, k, v)  # (B, H_kv, S, D)
        table = self.position.table(at.positions, at.length)
        all_keys = replace(at, T=at.length, table=table)
        q, _ = self.position.rotate(q, q, at)
        _, k = self.position.rotate(k, k, all_keys)
        y = attend(self, q, k, v, at)
        return self.c_proj(y.transpose(1, 2).flatten(2))


def stepwise(model: GPT, idx: Tensor) -> Iterator[Tensor]:
    """Logits (B, V) after each token of idx (B, T), with a cache that is never filled again."""
    cache = StaleCache(idx.size(1))
    for token in idx.split(1, 1):
        yield model.logits(model.hidden(token, cache))[:, 0]


@torch.no_grad()
def logits_after(model: GPT, idx: Tensor, lengths: list[int], method: str) -> Tensor:
    """What follows the first n tokens, for each n of the lengths: (B, len(lengths), V)."""
    if method == "forward pass":
        return torch.stack([model(idx[:, :n])[:, -1] for n in lengths], 1)
    if method == "rotated on read":
        model = with_attention(deepcopy(model), RotatedOnRead)
    steps = enumerate(stepwise(model, idx[:, : lengths[-1]]), 1)
    kept = set(lengths)
    return torch.stack([logits for n, logits in steps if n in kept], 1)


def losses(model: GPT, state: dict, method: str) -> list[float]:
    """Mean loss from 1x to 2x, 2x to 3x and 3x to 4x the trained length, on held-out text."""
    L = model.config.train_len
    idx, lengths = held_out(state, 4 * L, TEXTS), list(range(L + STRIDE, 4 * L, STRIDE))
    logits = logits_after(model, idx, lengths, method).transpose(1, 2)  # (B, V, len(lengths))
    means = F.cross_entropy(logits, idx[:, lengths], reduction="none").mean(0)
    return [round(part.mean().item(), 5) for part in means.tensor_split(3)]


def accuracies(model: GPT, state: dict, method: str) -> list[float]:
    """Retrieval accuracy at 2x and at 4x the trained length."""
    tokenizer, results = from_meta(state["tokenizer"]), []
    for length in (2 * model.config.train_len, 4 * model.config.train_len):
        questions = tasks.TASKS["passkey"].questions(length, KEYS, SEED)
        idx = torch.tensor([tokenizer.encode(q.text).tolist() for q in questions])
        answers = torch.tensor([tokenizer.encode(q.answer).tolist() for q in questions])
        lengths = list(range(length - answers.size(1) + 1, length + 1))
        correct = logits_after(model, idx, lengths, method).argmax(-1) == answers
        results.append(correct.all(1).float().mean().item())
    return results


MEASURES = {"prose": losses, "keys": accuracies}


def measure(task: str, runs: list[Path]) -> dict[str, list]:
    """The results of each scaling and method, a list entry a run."""
    results: dict[str, list] = {}
    for run in runs:
        state = checkpoint.read(run)
        for scaling in SCALINGS:
            config = checkpoint.with_overrides(checkpoint.config_of(state), rope_scaling=scaling)
            model = checkpoint.build(state, config).eval()
            for method in METHODS:
                result = MEASURES[task](model, state, method)
                print(run, scaling, method, *result)
                results.setdefault(f"{task}, {scaling}, {method}", []).append(result)
    return results


def runs_of(task: str, args: Namespace) -> list[Path]:
    return [Trained("rope", []).train_if_missing(task, seed, args.out) for seed in args.seeds]


def main(argv: list[str]) -> None:
    args = parse("kv_cache", argv)
    runs = {task: runs_of(task, args) for task in args.tasks}  # refused before hours of measuring
    for task in args.tasks:
        record(f"kv_cache-{task}", measure(task, runs[task]))


if __name__ == "__main__":
    errors.run(main)
