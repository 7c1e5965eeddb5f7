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


def pose(draw: np.random.Generator, B: int, T: int, position_range: int) -> np.ndarray:
    """Two chunks of each window, the second at positions further on (PoSE, arXiv:2309.10400).

    Both numbers are uniform, as in the authors' code: the first chunk has 1 to (T + 1) // 2 tokens,
    and the second is shifted by 0 to position_range - T. The text has no gap between them, which
    the paper's appendix A finds to make little difference.
    """
    split = draw.integers(1, (T + 1) // 2, size=(B, 1), endpoint=True)
    shift = draw.integers(0, position_range - T, size=(B, 1), endpoint=True)
    order = np.arange(T)
    return np.where(order < split, order, order + shift)  # (B, T)


TRAIN_POSITIONS = {"sequential": sequential, "random": random, "pose": pose}


def draw_positions(
    method: str, B: int, T: int, position_range: int, seed: int, step: int, micro: int
) -> np.ndarray | None:
    """Positions int64 (B, T) of one micro-step, or None for 0 to T - 1.

    A pure function of its arguments, as data.batch is.
    """
    sequence = np.random.SeedSequence([seed, step, micro], spawn_key=STREAM)
    return TRAIN_POSITIONS[method](np.random.default_rng(sequence), B, T, position_range)
