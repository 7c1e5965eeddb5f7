"""Loss on the tokens that profit from a longer context alone, after LongPPL (arXiv:2410.23771).

A token counts if models that were trained at four times the length gain more than 2 nats on it from
the longer context, and then lose less than 2. For the models of a seed, those of the other seeds
choose: no model judges itself.
"""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

import data
from evaluation.scoring import SPAN, matched_windows, token_losses
from experiments.claims import SEEDS, parse, record
from runtime import checkpoint, errors

L, LONG = 256, 1024  # trained length, and that of the models that choose
SPANS = 128  # of SPAN targets each
GAIN, LOSS = 2.0, 2.0  # nats
METHODS = {  # label: run, settings
    "rope": ("rope", {}),
    "rope, dynamic_yarn": ("rope", {"rope_scaling": "dynamic_yarn"}),
    "alibi": ("alibi", {}),
    "nope": ("nope", {}),
    "rope-4x": ("rope-4x", {}),
}


def chosen(models: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The targets that profit, bool (N,), by losses with L and with 4 L tokens of each model.

    They are chosen by the means over the models.
    """
    short, long = (torch.stack(part).mean(0) for part in zip(*models, strict=True))
    return (short - long > GAIN) & (long < LOSS)


def losses(folder: Path, length: int, **overrides) -> Tensor:
    """The loss of every target with `length` tokens before it: (SPANS * SPAN,)."""
    model, info = checkpoint.load(folder, **overrides)
    dataset = data.load(info["run"]["dataset"], data.root_of(info["run"]["data_dir"]))
    deep = [(a + LONG, b) for a, b in dataset.documents("val")]
    starts = data.spans(deep, SPAN, SPANS)
    rows = matched_windows(dataset.val, starts, length, stride=1)
    return token_losses(model, rows[:, :-1], rows[:, -1:]).flatten()


def measure(args: Namespace) -> dict:
    out = Path(args.out)
    choosing = {
        seed: tuple(losses(out / f"rope-4x-{seed}", length) for length in (L, LONG))
        for seed in SEEDS
    }
    results = {"targets": SPANS * SPAN, "chosen": [], "losses": {label: [] for label in METHODS}}
    # Of a single model, and so at least what the mean of two models gains.
    results["largest_gains"] = [round((a - b).max().item(), 3) for a, b in choosing.values()]
    for seed in args.seeds:
        others = [losses for other, losses in choosing.items() if other != seed]
        profit = chosen(others)
        results["chosen"].append(int(profit.sum()))
        if not profit.any():  # there is nothing to score
            continue
        for label, (run, settings) in METHODS.items():
            with_window = losses(out / f"{run}-{seed}", L)[profit].mean().item()
            with_all = losses(out / f"{run}-{seed}", LONG, **settings)[profit].mean().item()
            results["losses"][label].append([with_window, with_all])
    return results


def main(argv: list[str]) -> None:
    args = parse("long_tokens", argv)
    results = measure(args)
    print(results)
    record("long_tokens", results)


if __name__ == "__main__":
    errors.run(main)
