"""Positions of training windows: what a method draws, and that the same call draws the same."""

import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from data.training_positions import draw_positions


def test_sequential_positions_need_no_drawing():
    assert draw_positions("sequential", 4, 8, 8, 1, 2, 3) is None


def test_random_positions_rise_stay_in_range_and_differ_between_windows():
    drawn = draw_positions("random", 50, 8, 20, 1337, 0, 0)
    assert (drawn.shape, drawn.dtype) == ((50, 8), np.int64)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert (drawn.min(), drawn.max()) == (0, 19)
    assert len(np.unique(drawn, axis=0)) == 50


def test_every_subset_of_positions_is_as_likely_as_another():
    """By counting: 6 subsets of 2 of 4, 6,000 windows, chi-square below its 99.9 % quantile."""
    drawn = draw_positions("random", 6000, 2, 4, 7, 0, 0)
    counts = [int((drawn == pair).all(axis=1).sum()) for pair in combinations(range(4), 2)]
    assert sum(counts) == 6000
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 20.5


@pytest.mark.parametrize("method", ["random", "pose"])
@pytest.mark.parametrize("T", [1, 5])
def test_a_range_of_the_block_leaves_one_choice(method, T):
    assert np.array_equal(draw_positions(method, 3, T, T, 0, 0, 0), [list(range(T))] * 3)


@pytest.mark.parametrize("method", ["random", "pose"])
def test_positions_are_a_function_of_seed_step_and_micro_step(method):
    def drawn(*key):
        return draw_positions(method, 2, 8, 1000, *key)

    assert np.array_equal(drawn(1, 2, 3), drawn(1, 2, 3))
    keys = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (0, 0, 0), (2**62, 0, 0)]
    assert len({drawn(*key).tobytes() for key in keys}) == len(keys)


def test_pose_has_one_gap_of_any_size_and_keeps_the_range():
    drawn = draw_positions("pose", 5000, 8, 20, 1337, 0, 0)
    assert (drawn.shape, drawn.dtype) == ((5000, 8), np.int64)
    assert (drawn[:, 0] == 0).all()
    steps = np.diff(drawn, axis=1) - 1
    assert (steps >= 0).all()
    assert ((steps > 0).sum(axis=1) <= 1).all()
    assert set(drawn[:, -1]) == set(range(7, 20))  # shifts of 0 to 12, both ends included
    rows, columns = steps.nonzero()
    assert set(columns + 1) == {1, 2, 3, 4}  # tokens before the gap: at most half of the window
    assert len(set(columns[np.diff(rows, prepend=-1) > 0])) == 4


@pytest.mark.parametrize(("T", "position_range", "quantile"), [(5, 8, 27.9), (6, 8, 22.5)])
def test_every_split_and_shift_of_pose_is_as_likely_as_another(T, position_range, quantile):
    """By enumeration: chi-square of 60,000 windows below its 99.9 % quantile."""
    pairs = Counter()
    for split in range(1, (T + 1) // 2 + 1):
        for shift in range(position_range - T + 1):
            pairs[(*range(split), *range(split + shift, T + shift))] += 1
    drawn = Counter(map(tuple, draw_positions("pose", 60000, T, position_range, 7, 0, 0).tolist()))
    assert drawn.keys() == pairs.keys()
    each = 60000 / pairs.total()
    assert sum((drawn[row] - n * each) ** 2 / (n * each) for row, n in pairs.items()) < quantile


def plain_pose(draw: random.Random, T: int, position_range: int) -> list[int]:
    """Equation 4 of arXiv:2309.10400 for two chunks and u_0 = 0, a token at a time."""
    first_length = draw.randint(1, (T + 1) // 2)
    u_1 = draw.randint(0, position_range - T)
    return [i if i < first_length else u_1 + i for i in range(T)]


def test_pose_covers_distances_as_an_independent_loop_does():
    """The share of pairs of tokens at each distance, from 2,000 windows of 16 of 64 positions."""
    T, size, n = 16, 64, 2000
    draw = random.Random(0)
    ours = draw_positions("pose", n, T, size, 0, 0, 0)
    theirs = np.array([plain_pose(draw, T, size) for _ in range(n)])
    shares = []
    for rows in (ours, theirs):
        distances = rows[:, :, None] - rows[:, None, :]
        shares.append(np.bincount(distances[distances > 0], minlength=size) / n)
    assert (shares[0][1:] > 0).all()  # every distance below 4x occurs
    assert np.allclose(*shares, atol=0.4)  # 5 standard deviations where they are largest
