"""A logit scale that grows with the position, at read time or in training: what does it repair?

The more keys a query sees, the more evenly attention spreads. log-n, SSMax, Llama 4's scale and
1 + c ln(length / L) multiply the scores of later queries to undo that.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

import data
from data import tasks
from data.tokenizer import from_meta
from evaluation.scoring import SEED, token_losses, windows
from experiments.claims import AS_TRAINED, NONE, Trained, Variant, compare, rope_variant
from model import GPT, GPTConfig
from runtime import checkpoint, errors

RATIOS = (1, 2, 4, 8)
CANDIDATES = [0.05 * i for i in range(21)]  # of c
FITTED_AT = 4  # trained lengths
TEXTS = 16  # that c is fitted on, and of each
LAST = 32  # the last tokens


def fitted(state: dict, config: GPTConfig) -> GPT:
    """The model under logit_scaling log_length, with the c of the least loss."""
    c = fit(state["path"], config)
    return checkpoint.build(state, replace(config, logit_scaling="log_length", logit_c=c))


@lru_cache  # of one run: the same for all lengths
def fit(path: str, config: GPTConfig) -> float:
    state = checkpoint.read(path)
    x, y = texts(state, FITTED_AT * config.train_len)
    losses = {}
    for c in CANDIDATES:
        scaled = replace(config, logit_scaling="log_length", logit_c=c)
        losses[c] = token_losses(checkpoint.build(state, scaled), x, y).mean().item()
    best = min(losses, key=losses.get)
    print(f"{path}: c {best:.2f}, loss {losses[best]:.3f} instead of {losses[0.0]:.3f}")
    return best


def texts(state: dict, length: int) -> tuple[Tensor, Tensor]:
    """Texts int64 (N, length) and their last targets, none of which is scored anywhere else.

    Of prose, from the start of each held-out document: `matched` has no targets there. Of a task,
    questions of a different seed.
    """
    run = state["run"]
    if run["dataset"] in tasks.TASKS:
        asked = tasks.TASKS[run["dataset"]].questions(length, TEXTS, SEED + 1)
        encode = from_meta(state["tokenizer"]).encode
        parts = [encode(q.text) for q in asked], [encode(q.answer) for q in asked]
        return tuple(torch.from_numpy(np.stack(part).astype(np.int64)) for part in parts)
    dataset = data.load(run["dataset"], data.root_of(run["data_dir"]))
    documents = dataset.documents("val")
    each = -(-TEXTS // len(documents))  # windows of a document, side by side from its start
    starts = np.array([a + i * length for a, b in documents for i in range(each)])
    rows = windows(dataset.val, starts, length, length)
    return rows[:, :-1], rows[:, -LAST:]


FITTED = Variant("fitted", {}, fitted)
READ_TIME = [Variant(name, {"logit_scaling": name}) for name in ("logn", "llama4")] + [FITTED]
MODELS = [Trained("rope", [NONE, *READ_TIME]), Trained("nope", [AS_TRAINED, *READ_TIME])]
# log-n is 1 within the trained length: training with it is training without.
MODELS += [
    rope_variant("rope-ssmax", [AS_TRAINED], "--pos=rope --logit_scaling=ssmax"),
    rope_variant("nope-ssmax", [AS_TRAINED], "--pos=none --logit_scaling=ssmax"),
]

if __name__ == "__main__":
    errors.run(lambda argv: compare("logit_scale", MODELS, argv, RATIOS))
