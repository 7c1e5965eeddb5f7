"""Intervals, differences and groups, by slow loops and by hand; the tables of the terminal."""

import random
import re

import numpy as np
import pytest
from rows import flat, retrieval, row

from evaluation import statistics, terminal
from evaluation.scoring import Prose
from evaluation.statistics import bootstrap, comparable, estimate, summarise, wilson

DOCUMENTS = (3, 5)


def test_the_bootstrap_is_the_two_stage_one_of_a_loop():
    values = np.array(flat(0))
    draw, slow = random.Random(5), []
    for _ in range(20000):
        picked = []
        for _ in DOCUMENTS:
            start, n = draw.choice([(0, 3), (3, 5)])
            picked += [values[start + draw.randrange(n)] for _ in range(n)]
        slow.append(np.mean(picked))
    mean, low, high = bootstrap(values, DOCUMENTS)
    assert mean == pytest.approx(values.mean(), abs=1e-5)
    assert (low, high) == pytest.approx(np.quantile(slow, (0.025, 0.975)), abs=0.02)


def test_with_one_score_a_document_it_is_the_ordinary_bootstrap():
    values = np.array([1.0] * 90 + [0.0] * 10)
    found = bootstrap(values, (1,) * 100)
    assert found == pytest.approx((0.9, 0.84, 0.95), abs=0.011)  # binomial quantiles


def test_wilsons_interval_is_that_of_the_literature():
    """81 of 263: 0.2553 to 0.3662; 15 of 148: 0.0624 to 0.1605 (Newcombe 1998, table I)."""
    assert wilson(81, 263) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.1014, 0.0624, 0.1605), abs=1e-4)


def test_all_right_and_all_wrong_have_wilsons_interval():
    """75 of 75: more than 0.951 (Newcombe 1998, method 3)."""
    right, wrong = np.ones(75), np.zeros(75)
    assert estimate(right, (1,) * 75, "accuracy") == (1, pytest.approx(0.9513, abs=1e-4), 1)
    assert estimate(wrong, (1,) * 75, "accuracy") == (0, 0, pytest.approx(0.0487, abs=1e-4))
    assert estimate(right, (1,) * 75, "loss") == (1, 1, 1)


def test_a_difference_is_paired():
    """Scores that vary by 1 and differ by 0.1 each: the interval is that of the difference."""
    rows = [row(flat(0)), row([x + 0.1 for x in flat(0)], length=32)]
    far = summarise(rows, "rope")[1]
    assert far.gain == pytest.approx([-0.1] * 3, abs=1e-5)
    assert far.score.high - far.score.low > 0.1


def test_seeds_are_grouped_into_mean_and_spread():
    rows = [row(flat(s), seed=s, checkpoint_sha=f"c{s}") for s in (1, 2, 3)]
    (group,) = summarise(rows, "rope")
    means = [np.mean(flat(s)) for s in (1, 2, 3)]
    assert group.key.seed is None
    assert group.seeds == [1, 2, 3]
    assert group.score.mean == pytest.approx(np.mean(means), abs=1e-5)
    assert group.spread == pytest.approx(np.std(means, ddof=1), abs=1e-5)
    assert group.score.low < group.score.mean < group.score.high


def test_differences_are_against_the_unscaled_model_at_its_trained_length():
    rows = [
        row(flat(0)),
        row(flat(1), length=32),
        row(flat(2), scaling="yarn", factor=4.0),
        row(flat(3), scaling="yarn", factor=4.0, length=32),
        row(flat(4), run="tuned", scaling="yarn", length=32, trained=16),
        row(flat(5), run="tuned", scaling="yarn", length=16, trained=16),
    ]
    groups = {(s.key.run, s.key.scaling, s.key.length): s for s in summarise(rows, "rope")}
    mean = [np.mean(flat(i)) for i in range(6)]
    yarn = groups["rope", "yarn", 32]
    assert yarn.gain.mean == pytest.approx(mean[0] - mean[3], abs=2e-5)
    assert yarn.above_window.mean == pytest.approx(mean[3] - mean[0], abs=2e-5)
    assert groups["rope", "yarn", 16].gain.mean == pytest.approx(mean[0] - mean[2], abs=2e-5)
    # A tuned model has no unscaled variant: its gain is over itself at the trained length.
    tuned = groups["tuned", "yarn", 32]
    assert tuned.gain.mean == pytest.approx(mean[5] - mean[4], abs=2e-5)
    assert tuned.above_window.mean == pytest.approx(mean[4] - mean[0], abs=2e-5)


def test_different_targets_and_refusals_are_not_compared():
    rows = [
        row(flat(0)),
        row(flat(1), length=32, targets="other"),
        row(flat(2), length=64) | {"scores": None},
    ]
    _, other, refused = summarise(rows, "rope")
    assert other.gain is other.above_window is None
    assert refused.score is refused.gain is refused.spread is None


def test_in_a_group_seeds_scored_on_older_targets_are_left_out():
    rows = [row(flat(1)), row([9.0] * 4, seed=2, targets="deeper")]
    (group,) = summarise(rows, "rope")
    assert (group.score.mean, group.seeds, group.row["targets"]) == (9.0, [2], "deeper")


def test_rows_of_different_targets_never_stand_in_one_table(capsys):
    old = [row(flat(1)), row(flat(2), run="alibi"), row(flat(3), protocol="windows")]
    new = [row(flat(4), run="nope", target_set="deeper", targets="u")]
    assert comparable(old) == old
    assert capsys.readouterr().err == ""
    assert comparable(old + new) == [old[2], *new]
    assert "2 of 4 rows were scored on older targets and are left out" in capsys.readouterr().err
    changed = row(flat(5), run="nope", targets="u")  # one target set, but other targets
    assert comparable([*old, changed]) == [old[2], changed]


def test_runs_are_compared_on_the_seeds_that_both_have():
    rows = [row(flat(s), seed=s, checkpoint_sha=f"c{s}") for s in (1, 2)]
    rows.append(row([x + 0.3 for x in flat(2)], run="alibi", seed=2))
    rows.append(row(flat(3), run="nope", seed=3))
    groups = {s.key.run: s for s in summarise(rows, "rope")}
    assert groups["alibi"].above_window.mean == pytest.approx(0.3, abs=1e-5)
    assert groups["nope"].above_window is None


def test_a_gain_in_accuracy_is_more_of_it():
    rows = [retrieval([1.0] * 9 + [0.0])]
    rows.append(retrieval([1.0] * 4 + [0.0] * 6, scaling="yarn", factor=4.0))
    assert summarise(rows, "rope")[1].gain.mean == -0.5


def test_accuracy_by_depth_and_beyond_the_window():
    (group,) = summarise([retrieval([0.0] * 30 + [1.0] * 70, beyond_window_n=40)], "rope")
    assert group.score.mean == 0.7
    assert group.depths == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert group.beyond_window.mean == 0.25
    assert group.beyond_window.low < 0.25 < group.beyond_window.high


def test_bins_are_means_over_seeds():
    bins = [[[0, 0, 1.0], [1, 3, 2.0]], [[0, 0, 2.0], [1, 3, 2.5]]]
    rows = [row(flat(s), seed=s, protocol="position", bins=b) for s, b in enumerate(bins)]
    assert summarise(rows, "rope")[0].bins == [[0, 0, 1.5], [1, 3, 2.25]]


def test_tables_are_plain_text_under_80_columns():
    lengths = (4, 8, 16, 32, 64, 128, 131072)
    rows = [row(flat(c, plus=c > 16), length=c) for c in lengths]
    bins = [[2**i, 2 ** (i + 1) - 1, 1.5] for i in range(24)]
    rows.append(row(flat(9), protocol="position", length=131072, bins=bins))
    refused = {"scores": None, "bins": None}
    rows.append(row(flat(9), protocol="position", length=64, run="learned") | refused)
    summaries = summarise(rows, "rope")
    lines = list(terminal.lines(summaries, Prose.protocols, "rope"))
    assert max(len(line) for text in lines for line in text.splitlines()) < 80
    assert "rope (1) none: worse than not extending at 32, 64, 128, 131072" in lines
    asked = summarise([retrieval([1.0] * 10)], "rope")
    assert any("1.000" in line for line in terminal.lines(asked, {"passkey": "keys"}, "rope"))


def test_long_names_of_runs_stay_apart():
    run = "a-name-of-a-run-of-34-characters-"
    rows = [row(flat(c), run=run + c, length=n) for c in "ab" for n in (16, 32)]
    bins = [[2**i, 2 ** (i + 1) - 1, 1.5] for i in range(4)]
    rows += [row(flat(c), run=run + c, protocol="position", bins=bins) for c in "ab"]
    lines = "\n".join(terminal.lines(summarise(rows, run + "a"), Prose.protocols, run + "a"))
    loss, *differences, position = [
        [line for line in part.splitlines() if line.startswith(run)]
        for part in re.split("^.*run \\(seeds\\).*$|^from position.*$", lines, flags=re.MULTILINE)[
            1:
        ]
    ]
    assert len(differences) == 2
    for table in (loss, *differences, position):
        assert [line.split()[:3] for line in table[:2]] == [[run + c, "(1)", "none"] for c in "ab"]
        assert len({len(line) for line in table[:2]}) == 1


def test_losses_by_position_are_headed_by_the_length_of_their_windows():
    def along(run, length, **more):
        bins = [[i, i, 1.5] for i in range(length // 4)]
        return row(flat(0), run=run, protocol="position", length=length, bins=bins) | more

    refused = {"scores": None, "bins": None}
    rows = [along("rope", 32), along("alibi", 64), along("learned", 64, **refused)]
    lines = list(terminal.lines(summarise(rows, "rope"), Prose.protocols, "rope"))
    heads = [i for i, line in enumerate(lines) if "position: loss by position in windows" in line]
    assert [lines[i].split()[-1] for i in heads] == ["32", "64"]
    names = [[line.split()[0] for line in lines[i + 2 :][:2]] for i in heads]
    assert names[0][0] == "rope"
    assert names[1] == ["alibi", "learned"]


def test_resampling_weights_sum_to_one():
    assert statistics.resampling(DOCUMENTS).sum(1) == pytest.approx(1)
