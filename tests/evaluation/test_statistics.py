"""Rows, intervals and groups, by slow loops and by hand."""

import json
import random

import numpy as np
import pytest

from evaluation import statistics

DOCUMENTS = (3, 5)


def row(loss, **changes):
    """A row as evaluate.py writes it; `loss` is one a part."""
    parts = [list(loss[:3]), list(loss[3:])] if len(loss) == 8 else [[x] for x in loss]
    fixed = {"run": "rope", "seed": 1, "pos": "rope", "scaling": "none", "factor": None}
    fixed |= {"length": 16, "trained": 16, "protocol": "matched", "targets": "t", "tokens": 8}
    return fixed | {"checkpoint_sha": "c", "seconds": 1.0, "parts": parts} | changes


def flat(seed, plus=0.0):
    return [plus + random.Random(f"{seed}{i}").random() for i in range(8)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "made.json"


def fill(path, *rows):
    for one in rows:
        statistics.add(path, one)


def test_the_bootstrap_is_the_two_stage_one_of_a_loop():
    values = np.array(flat(0))
    draw, slow = random.Random(5), []
    for _ in range(20000):
        picked = []
        for _ in DOCUMENTS:
            start, n = draw.choice([(0, 3), (3, 5)])
            picked += [values[start + draw.randrange(n)] for _ in range(n)]
        slow.append(np.mean(picked))
    mean, low, high = statistics.interval(values, DOCUMENTS)
    assert mean == pytest.approx(values.mean(), abs=1e-5)
    assert (low, high) == pytest.approx(np.quantile(slow, (0.025, 0.975)), abs=0.02)


def test_with_one_part_a_document_it_is_the_ordinary_bootstrap():
    values = np.array([1.0] * 90 + [0.0] * 10)
    mean, low, high = statistics.interval(values, (1,) * 100)
    assert (mean, low, high) == pytest.approx((0.9, 0.84, 0.95), abs=0.011)  # binomial quantiles


def test_a_difference_is_paired(path):
    """Parts that vary by 1 and differ by 0.1 each: the interval is that of the difference."""
    fill(path, row(flat(0)), row([x + 0.1 for x in flat(0)], length=32))
    far = next(r for r in statistics.settle(path, "rope") if r["length"] == 32)
    assert (far["gain"], far["gain_low"], far["gain_high"]) == pytest.approx([-0.1] * 3, abs=1e-5)
    assert far["ci_high"] - far["ci_low"] > 0.1


def test_seeds_are_grouped_into_mean_and_spread(path):
    seeds = [row(flat(s), seed=s, checkpoint_sha=f"c{s}") for s in (1, 2, 3)]
    fill(path, *seeds)
    (group,) = statistics.settle(path, "rope")
    means = [np.mean(flat(s)) for s in (1, 2, 3)]
    assert group["seed"] is None
    assert group["seeds"] == [1, 2, 3]
    assert group["loss"] == pytest.approx(np.mean(means), abs=1e-5)
    assert group["spread"] == pytest.approx(np.std(means, ddof=1), abs=1e-5)
    assert group["ci_low"] < group["loss"] < group["ci_high"]
    assert not {"parts", "checkpoint_sha", "seconds"} & group.keys()
    assert len(statistics.read(path)) == 4
    assert len(statistics.settle(path, "rope")) == 1  # again: groups are not grouped
    assert len(statistics.read(path)) == 4


def test_differences_are_against_the_unscaled_model_at_its_trained_length(path):
    fill(
        path,
        row(flat(0)),
        row(flat(1), length=32),
        row(flat(2), scaling="yarn", factor=4.0),
        row(flat(3), scaling="yarn", factor=4.0, length=32),
        row(flat(4), run="tuned", scaling="yarn", length=32, trained=16),
        row(flat(5), run="tuned", scaling="yarn", length=16, trained=16),
    )
    found = {(r["run"], r["scaling"], r["length"]): r for r in statistics.settle(path, "rope")}
    mean = [np.mean(flat(i)) for i in range(6)]

    def differences(*key):
        return [found[key][name] for name in ("gain", "over_window", "against_none")]

    close = {"abs": 2e-5}
    assert differences("rope", "yarn", 32) == pytest.approx(
        [mean[0] - mean[3], mean[3] - mean[0], mean[3] - mean[1]], **close
    )
    assert differences("rope", "yarn", 16)[0] == pytest.approx(mean[0] - mean[2], **close)
    # A tuned model has no unscaled one of its own: its gain is over itself at the trained length.
    assert differences("tuned", "yarn", 32) == pytest.approx(
        [mean[5] - mean[4], mean[4] - mean[0], mean[4] - mean[1]], **close
    )


def test_other_targets_and_refusals_are_not_compared(path):
    fill(
        path,
        row(flat(0)),
        row(flat(1), length=32, targets="other"),
        row(flat(2), length=64) | {"parts": None},
    )
    far, refused = statistics.settle(path, "rope")[1:]
    assert far["gain"] is far["over_window"] is None
    assert refused["loss"] is refused["ci_low"] is refused["gain"] is None


def test_seeds_scored_on_older_targets_are_left_out(path):
    fill(path, row(flat(1)), row([9.0] * 4, seed=2, targets="deeper"))
    (group,) = statistics.settle(path, "rope")
    assert (group["loss"], group["seeds"], group["targets"]) == (9.0, [2], "deeper")


def test_runs_are_compared_on_the_seeds_that_both_have(path):
    fill(path, *(row(flat(s), seed=s, checkpoint_sha=f"c{s}") for s in (1, 2)))
    fill(path, row([x + 0.3 for x in flat(2)], run="alibi", seed=2))
    fill(path, row(flat(3), run="nope", seed=3))
    found = {r["run"]: r for r in statistics.settle(path, "rope")}
    assert found["alibi"]["over_window"] == pytest.approx(0.3, abs=1e-5)
    assert found["nope"]["over_window"] is None
    assert found["alibi"]["against"] == "rope"


def test_a_new_row_takes_away_the_means_that_it_makes_untrue(path):
    fill(path, row(flat(0)), row(flat(1), run="alibi"))
    statistics.settle(path, "rope")
    fill(path, row(flat(2)))
    assert [(r["run"], r["seed"]) for r in statistics.read(path)] == [
        *(("alibi", 1), ("alibi", None), ("rope", 1))
    ]


def test_all_right_and_all_wrong_have_wilsons_interval(path):
    """Of 75: 75 right are 95 % sure to be more than 0.951 (Newcombe 1998, method 3)."""
    right = row([1.0] * 75, protocol="passkey", outside_n=0)
    fill(path, right, row([0.0] * 75, protocol="passkey", outside_n=0, run="x"))
    first, second = statistics.settle(path, "rope")
    assert (first["ci_low"], first["ci_high"]) == (pytest.approx(0.9513, abs=1e-4), 1)
    assert (second["ci_low"], second["ci_high"]) == (0, pytest.approx(0.0487, abs=1e-4))


def test_a_gain_in_accuracy_is_more_of_it(path):
    fill(path, row([1.0] * 9 + [0.0], protocol="passkey", outside_n=0))
    worse = row([1.0] * 4 + [0.0] * 6, protocol="passkey", outside_n=0, scaling="yarn", factor=4.0)
    fill(path, worse)
    assert statistics.settle(path, "rope")[1]["gain"] == -0.5


def test_accuracy_by_depth_and_outside_of_the_window(path):
    right = [0.0] * 30 + [1.0] * 70
    fill(path, row(right, protocol="passkey", outside_n=40, chance=1e-4))
    (group,) = statistics.settle(path, "rope")
    assert group["loss"] is None
    assert group["accuracy"] == 0.7
    assert group["depths"] == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert group["outside"] == 0.25
    assert group["outside_low"] < 0.25 < group["outside_high"]


def test_a_row_takes_the_place_of_the_same_one_of_older_weights(path):
    fill(path, row(flat(0)), row(flat(1), length=32), row(flat(2), seed=2), row(flat(3)))
    assert [(r["seed"], r["length"]) for r in statistics.read(path)] == [(1, 32), (2, 16), (1, 16)]
    fill(path, row(flat(4), length=64, checkpoint_sha="new"))  # trained anew: the rest is void
    assert [(r["seed"], r["length"]) for r in statistics.read(path)] == [(2, 16), (1, 64)]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"run": 1}]', "[", "\x00"])
def test_another_file_is_refused_and_left_alone(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=r"made\.json does not hold rows of evaluate\.py"):
        statistics.add(path, row(flat(0)))
    assert path.read_text() == text


def test_a_failed_write_leaves_the_rows(path, monkeypatch):
    fill(path, row(flat(0)))
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        statistics.add(path, row([float("nan")] * 8, length=32))
    assert path.read_text() == before
    assert len(json.loads(before)) == 1


def test_tables_are_plain_text_under_80_columns(path):
    lengths = (4, 8, 16, 32, 64, 128, 131072)
    fill(path, *(row(flat(c, plus=c > 16), length=c) for c in lengths))
    bins = [[2**i, 2 ** (i + 1) - 1, 1.5] for i in range(24)]
    fill(path, row(flat(9), protocol="position", length=131072, bins=bins))
    fill(
        path,
        row(flat(9), protocol="position", length=64, run="learned") | {"parts": None, "bins": None},
    )
    fill(path, row([1.0] * 10, protocol="passkey", outside_n=0, chance=1e-4))
    lines = list(statistics.lines(statistics.settle(path, "rope")))
    assert max(len(line) for text in lines for line in text.splitlines()) < 80
    assert "rope (1) none: worse than not extending at 32, 64, 128, 131072" in lines
    assert any("1.000" in line for line in lines)
