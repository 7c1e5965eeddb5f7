"""Loss by context length, on the same tokens for every model and every length.

Letters: B windows in a batch, T context length.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import data
from model import GPT

RATIOS = (1, 2, 4)  # context lengths that training watches, in trained lengths
BATCH_TOKENS = 8192  # tokens read at once: bounds memory, changes nothing


def windows(tokens: np.ndarray, starts: np.ndarray, span: int, length: int) -> Tensor:
    """Cut spans of `span` tokens into windows of `length` inputs: int64 (N, length + 1).

    The last column is the target of the last input. Every target of the spans stands in exactly
    one window, at whatever length, so that lengths are compared on the same tokens.
    """
    cuts = starts[:, None] + np.arange(0, span, length)  # (spans, windows in a span)
    rows = cuts.reshape(-1, 1) + np.arange(length + 1)
    return torch.from_numpy(tokens[rows].astype(np.int64))


@torch.no_grad()
def window_loss(model: GPT, rows: Tensor, device: torch.device | str = "cpu") -> float:
    """Mean loss in nats over all targets of the windows (N, T + 1). Leaves the model's mode alone.

    Uses no randomness and no global state, so that evaluating cannot disturb training.
    """
    training, length = model.training, rows.size(1) - 1
    model.eval()
    total = 0.0
    for part in rows.split(max(1, BATCH_TOKENS // length)):
        x, y = part[:, :-1].to(device), part[:, 1:].to(device)  # (B, T)
        losses = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none")
        total += losses.sum().item()  # added up in float64, which not every device has
    model.train(training)
    return total / (rows.size(0) * length)


class HeldOut:
    """Fixed validation windows at 1x, 2x and 4x the trained length, cut from the same spans.

    The spans depend on the documents and the trained length alone: every encoding is watched on
    the same targets, at those of the lengths that it can place. Under beyond=slide nothing is
    read past 1x, so there is nothing to watch there. Documents shorter than 4x give fewer lengths.
    """

    def __init__(self, model: GPT, dataset: data.Dataset, eval_tokens: int):
        L, documents = model.config.block_size, dataset.documents("val")
        longest = max(end - start for start, end in documents)
        ratios = [r for r in RATIOS if r == 1 or r * L < longest]
        span = L * ratios[-1]
        starts = data.spans(documents, span, max(1, eval_tokens // span))
        able = L if model.config.beyond == "slide" else model.reach
        self.rows = {r: windows(dataset.val, starts, span, r * L) for r in ratios if r * L <= able}

    def losses(self, model: GPT, device: torch.device | str) -> dict[str, float]:
        """{"val/loss": ..., "val/loss_2x": ..., "val/loss_4x": ...}, nats a token."""
        return {
            "val/loss" + (f"_{ratio}x" if ratio > 1 else ""): window_loss(model, rows, device)
            for ratio, rows in self.rows.items()
        }
