"""At which positions a training window is shown: one function a method.

A method takes (draw, B, T, position_range) and returns int64 (B, T), each row in rising order and
below position_range, or None for 0 to T - 1. Add one by adding its name to TRAIN_POSITIONS.
Evaluation always shows windows at 0 to T - 1.

Letters: B windows in a micro-step, T block_size.
"""

import numpy as np

STREAM = (1,)  # a random stream of its own: the windows and the dropout masks are drawn from others


def sequential(draw: np.random.Generator, B: int, T: int, position_range: int) -> None:
    """0 to T - 1 in every window."""
    return


def random(draw: np.random.Generator, B: int, T: int, position_range: int) -> np.ndarray:
    """T of the positions below position_range, drawn for each window (arXiv:2305.16843)."""
    rows = [draw.choice(position_range, T, replace=False, shuffle=False) for _ in range(B)]
    return np.sort(np.stack(rows).astype(np.int64), axis=1)


TRAIN_POSITIONS = {"sequential": sequential, "random": random}


def draw_positions(
    method: str, B: int, T: int, position_range: int, seed: int, step: int, micro: int
) -> np.ndarray | None:
    """Positions int64 (B, T) of one micro-step, or None for 0 to T - 1.

    A pure function of its arguments, as data.batch is.
    """
    sequence = np.random.SeedSequence([seed, step, micro], spawn_key=STREAM)
    return TRAIN_POSITIONS[method](np.random.default_rng(sequence), B, T, position_range)
