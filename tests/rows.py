"""Made-up rows of evaluate.py, for tests of files, statistics, tables and figures."""

import random


def row(losses, **changes):
    """A row as evaluate.py writes it. losses: one a score; eight of them are two documents."""
    documents = [list(losses[:3]), list(losses[3:])] if len(losses) == 8 else [[x] for x in losses]
    cell = {
        "run": "rope",
        "seed": 1,
        "folder": "out/rope",
        "pos": "rope",
        "scaling": "none",
        "factor": None,
    }
    cell |= {"length": 16, "trained": 16, "protocol": "matched", "metric": "loss"}
    cell |= {"higher_is_better": False, "checkpoint_sha": "c", "target_set": "s", "targets": "t"}
    return cell | {"count": 8, "scores": documents, "seconds": 1.0} | changes


def retrieval(answers, **changes):
    """A row of a task: 1 or 0 a question."""
    fixed = {"protocol": "passkey", "metric": "accuracy", "higher_is_better": True}
    return row(answers, **fixed | {"beyond_window_n": 0, "chance": 1e-4} | changes)


def flat(seed, plus=0.0):
    """Eight losses."""
    return [plus + random.Random(f"{seed}{i}").random() for i in range(8)]
