"""Positions of training windows: what a method draws, and that the same call draws the same."""

from itertools import combinations

import numpy as np

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


def test_a_range_of_the_block_leaves_one_choice():
    assert np.array_equal(draw_positions("random", 3, 5, 5, 0, 0, 0), [[0, 1, 2, 3, 4]] * 3)


def test_positions_are_a_function_of_seed_step_and_micro_step():
    def drawn(*key):
        return draw_positions("random", 2, 8, 1000, *key)

    assert np.array_equal(drawn(1, 2, 3), drawn(1, 2, 3))
    keys = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (0, 0, 0), (2**62, 0, 0)]
    assert len({drawn(*key).tobytes() for key in keys}) == len(keys)
