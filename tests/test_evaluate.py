"""The command: what it measures, keeps, resumes, prints and refuses."""

import base64
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, history

import data
import data.prepare
import evaluate
import train
from data import tasks
from data.corpora import Document
from evaluation import results, scoring
from evaluation.scoring import Prose, room_before_targets
from evaluation.statistics import summarise
from evaluation.variants import Variant
from runtime import checkpoint, errors

FAST = ["--tokens=64", "--window_tokens=256"]
FIELDS = (
    "run seed pos scaling factor length trained protocol metric higher_is_better checkpoint_sha "
    "target_set targets count scores git torch device seconds"
).split()


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Four small trained runs, by name."""
    root = tmp_path_factory.mktemp("runs")
    made = {
        "rope-1": ["--pos=rope", "--seed=1"],
        "rope-2": ["--pos=rope", "--seed=2"],
        "learned": ["--pos=learned"],
        "sinusoidal": ["--pos=sinusoidal"],
    }
    for name, more in made.items():
        flags = [*SMALL, *more, f"--data_dir={corpus}", f"--out_dir={root / name}"]
        assert train.main(flags) == errors.DONE
    return {name: str(root / name) for name in made}


@pytest.fixture
def score(corpus, tmp_path):
    """Run the command on a file of its own; returns all of its rows."""
    path = tmp_path / "rows.jsonl"

    def run(*argv):
        fast = [] if {"--passkey", "--task=passkey", "--task=echo"} & {*argv} else FAST
        where = [f"--data_dir={corpus}", f"--json={path}", "--wandb=disabled"]
        evaluate.main([*where, *fast, *argv])
        return results.read(path)

    return run


def pick(rows, **wanted):
    return [row for row in rows if wanted.items() <= row.items()]


def test_one_command_measures_every_scaling_at_every_length(runs, score, capsys):
    rows = score(runs["rope-1"], runs["rope-2"], "--lengths=1/4x,1x,2x")
    scalings = "linear ntk ntk_by_parts yarn llama3".split()
    dynamic = {f"dynamic_{scaling}" for scaling in scalings}
    assert {row["scaling"] for row in rows} == {"none", "clip", *scalings, *dynamic}
    assert {row["length"] for row in rows} == {4, 16, 32}
    assert len(pick(rows, protocol="matched")) == 12 * 3 * 2  # two seeds
    assert len(pick(rows, protocol="position", seed=1)) == 12
    assert all({*FIELDS} <= row.keys() for row in rows)
    assert {row["factor"] for row in pick(rows, scaling="yarn")} == {4.0}
    assert {row["factor"] for row in pick(rows, scaling="clip")} == {None}
    short = pick(rows, length=4, protocol="matched", seed=1)
    assert len({str(row["scores"]) for row in short if row["scaling"] in {"none", *dynamic}}) == 1
    assert {row["count"] for row in pick(rows, protocol="matched")} == {64}
    assert {(row["metric"], row["higher_is_better"]) for row in rows} == {("loss", False)}
    out = capsys.readouterr().out
    assert "rope (2) dynamic_yarn" in out
    assert "rope (2) yarn x4" in out


@pytest.mark.parametrize(
    ("overrides", "is_shared"),
    [
        ({"rope_scaling": "none"}, True),
        ({"rope_scaling": "dynamic_yarn"}, True),
        ({"rope_scaling": "yarn", "rope_factor": 4.0}, False),
        ({"rope_scaling": "clip"}, False),
        ({"logit_scaling": "llama4"}, False),
    ],
)
def test_variants_that_change_nothing_at_the_trained_length_share_a_score(
    runs, overrides, is_shared
):
    plan = evaluate.plan_of(str(runs["rope-1"]), evaluate.parse(["RUN"]))
    for length, expected in ((16, is_shared), (17, False)):
        cell = evaluate.Cell(plan, Variant("some", overrides), "matched", length)
        assert cell.is_unextended == expected


def test_logit_scales_are_scored_beside_the_model_as_it_is(runs, score):
    flags = ["--lengths=1x,2x", "--rope_scaling=none,dynamic_yarn"]
    flags += ["--logit_scaling=none,logn,log_length", "--logit_c=0.5"]
    rows = score(runs["rope-1"], *flags)
    labels = {"none", "dynamic_yarn"}
    labels |= {f"{label} {scale}" for label in labels for scale in ("logn", "log_length")}
    assert {row["scaling"] for row in rows} == labels
    plan = evaluate.plan_of(str(runs["rope-1"]), evaluate.parse(["RUN", *flags]))
    made = {variant.label: variant.overrides for variant in plan.variants}
    assert made["none"] == {"rope_scaling": "none", "logit_scaling": "none", "logit_c": None}
    assert made["dynamic_yarn log_length"] == {
        "rope_scaling": "dynamic_yarn",
        "logit_scaling": "log_length",
        "logit_c": 0.5,
    }
    with pytest.raises(ValueError, match="logit_c does nothing without --logit_scaling log_len"):
        evaluate.parse(["RUN", "--logit_c=0.5"])
    with pytest.raises(ValueError, match="logit_scaling is 'loud'; it must be one of none, logn"):
        score(runs["rope-1"], "--logit_scaling=loud")
    with pytest.raises(ValueError, match="logit_c is None; it must be given with"):
        score(runs["rope-1"], "--logit_scaling=log_length")


def test_rows_hold_what_scoring_gives(runs, score, corpus):
    rows = score(runs["rope-1"], "--lengths=4,32", "--rope_scaling=none,yarn,dynamic_ntk")
    small = data.load("small", corpus)
    prose = Prose(small, room_before_targets(small.documents("val"), 16, 16384), (64, 256))
    for scaling, more in (("none", {}), ("yarn", {"rope_factor": 4.0}), ("dynamic_ntk", {})):
        model, info = checkpoint.load(runs["rope-1"], rope_scaling=scaling, **more)
        for length in (4, 32):  # 4: within the trained length, where it may reuse what it has
            for protocol in ("matched", "windows"):
                (row,) = pick(rows, seed=1, scaling=scaling, length=length, protocol=protocol)
                assert row["scores"] == prose.score(model, protocol, length).scores
                assert row["checkpoint_sha"] == info["sha256"][:12]


def test_what_learned_positions_cannot_read_is_a_dash(runs, score, capsys):
    rows = pick(score(runs["learned"], "--lengths=1x,2x"), protocol="matched")
    losses = {(row["scaling"], row["length"]): row["scores"] for row in rows}
    assert losses.keys() == {(s, n) for s in ("none", "interpolate", "slide") for n in (16, 32)}
    assert losses["none", 32] is None
    assert losses["slide", 32] == losses["slide", 16] == losses["none", 16]
    assert losses["interpolate", 32] not in (None, losses["none", 16])
    assert ["learned", "(1)", "none"] in [
        line.split()[:3] for line in capsys.readouterr().out.splitlines() if line.endswith("-")
    ]


def test_sinusoidal_positions_are_read_straight_on_and_interpolated(runs, score):
    rows = score(runs["sinusoidal"], "--lengths=1x,2x")
    assert {row["scaling"] for row in rows} == {"none", "interpolate"}


def test_a_killed_evaluation_goes_on_with_the_cells_it_lacks(runs, score, capsys, monkeypatch):
    lengths, whole = [], Prose.matched

    def counted(self, model, length, window):
        if len(lengths) == 2:
            raise KeyboardInterrupt
        lengths.append(length)
        return whole(self, model, length, window)

    monkeypatch.setattr(Prose, "matched", counted)
    argv = (runs["rope-1"], "--lengths=8,16,32", "--rope_scaling=none,dynamic_yarn")
    with pytest.raises(KeyboardInterrupt):
        score(*argv)
    monkeypatch.undo()
    rows = score(*argv)
    assert "4 of 14 cells are in" in capsys.readouterr().err
    assert len(pick(rows, seed=1)) == 14
    fresh = score(*argv)
    assert "14 of 14 cells" in capsys.readouterr().err
    assert fresh == rows


def test_other_targets_or_weights_are_measured_again(runs, score, capsys, tmp_path):
    folder = changed(runs["rope-1"], tmp_path / "copy", lambda s: None)
    argv = (folder, "--rope_scaling=none", "--lengths=16,32")
    score(*argv)
    first = score(*argv, "--tokens=96")
    assert len(pick(first, seed=1)) == 10
    assert "cells are in" not in capsys.readouterr().err
    changed(folder, tmp_path / "copy", lambda s: s["model"]["wte.weight"].mul_(2))
    again = score(*argv)
    outdated = "has other weights than the rows of 'rope', seed 1: those no longer count"
    assert f"{folder} {outdated}" in capsys.readouterr().err
    assert len(again) == 5
    before = [row["scores"] for row in first]
    assert all(row["scores"] not in before for row in again)


def test_lengths_that_are_asked_for_later_change_no_target(runs, score, capsys):
    """Also those of `windows`: the row of 1x stays, and the new ones are compared with it."""
    argv = (runs["rope-1"], "--rope_scaling=none")
    first = score(*argv, "--lengths=1x,2x", "--tokens=64")
    rows = score(*argv, "--lengths=1x,16x")
    err = capsys.readouterr().err
    assert "2 of 5 cells are in" in err
    assert rows[: len(first)] == first
    for protocol in ("matched", "windows"):
        assert len({row["targets"] for row in pick(rows, protocol=protocol)}) == 1
    at_1x, _, at_16x = (s for s in summarise(rows, None) if s.key.protocol == "matched")
    assert at_16x.gain.mean == pytest.approx(at_1x.score.mean - at_16x.score.mean, abs=2e-5)


def test_the_curves_are_in_wandb(runs, score, offline_wandb):
    rows = score(runs["rope-1"], "--lengths=16,32", "--rope_scaling=dynamic_yarn", "--wandb=auto")
    (folder,) = offline_wandb.glob("offline-run-*")
    logged = [row for row in history(folder) if "ctx/loss" in row]
    summaries = [s for s in summarise(rows, None) if s.key.protocol == "matched"]
    expected = [s.key.length for s in summaries], [s.score.mean for s in summaries]
    assert [row["ctx/len"] for row in logged] == expected[0]
    assert [row["ctx/loss"] for row in logged] == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lengths=0"], "lengths has '0'; it must be tokens (1024) or trained lengths"),
        (["--lengths=1/3x"], "lengths has '1/3x'"),
        (["--lengths=4y"], "lengths has '4y'"),
        (["--lengths=1x,,2x"], "lengths has ''"),
        (["--lengths=1x,,2x"], "--lengths has ''"),
        (["--lengths="], "--lengths has ''"),
        (["--lengths=1x,9999,99999999"], "--lengths has 9999, 99999999: targets of small have "),
        (["--rope_scaling=yran"], "rope_scaling is 'yran'; it must be one of none, linear"),
        (["--rope_factor=0.5"], "rope_factor is 0.5; it must be at least 1"),
        (["--tokens=0"], "tokens is 0; it must be at least 1"),
        (["--passkey"], "passkey needs the characters 0 1 2 3 4 5 6 7 8 9 [ ]"),
        (["--rope_factor=nan"], "rope_factor is nan; it must be a finite number"),
        (["--passkey", "--tokens=9"], "tokens does nothing with --task passkey; leave it out"),
        (["--keys=9"], "keys does nothing with --task prose; leave it out"),
        (["--task=poems"], "task is 'poems'; it must be one of prose, passkey"),
        (["--passkey", "--dataset=small"], "dataset does nothing with --task passkey"),
        (["--plot=a.pdf"], "plot is 'a.pdf'; it must end with .svg or .png"),
        (["--length=4"], "unrecognized arguments: --length=4; --help lists all flags"),
        (["out/nothing"], "out/nothing: No such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence(runs, score, argv, message):
    with pytest.raises(ValueError, match=r"^.+$") as error:
        score(runs["rope-1"], *argv)
    assert message in str(error.value)


# What is left out, and what is refused


def with_config(folder, tmp_path, **settings):
    """A copy of a run whose model has other settings."""
    return changed(folder, tmp_path, lambda s: s["config"].update(settings))


@pytest.mark.parametrize(
    ("trained", "lengths"), [(10, (5, 10, 20, 40, 80, 160)), (7, (7, 14, 28, 56, 112)), (1, ())]
)
def test_default_lengths_are_whole(runs, score, tmp_path, trained, lengths, capsys):
    folder = with_config(runs["rope-1"], tmp_path / "run", block_size=trained)
    rows = score(folder, "--rope_scaling=none")
    assert {row["length"] for row in rows} == {*(lengths or (1, 2, 4, 8, 16))}
    assert capsys.readouterr().err.count("left out") == 0
    with pytest.raises(ValueError, match=rf"^--lengths has '1/4x'; .* \(1x is {trained}\)$"):
        score(folder, "--lengths=1x,1/4x")


def test_default_lengths_fit_the_documents(runs, score, monkeypatch, capsys):
    short = [(i, i + 100) for i in range(0, 800, 100)]
    monkeypatch.setattr(data.Dataset, "documents", lambda self, split: short)
    rows = score(runs["rope-1"], "--rope_scaling=none", "--tokens=999999")
    assert {row["length"] for row in rows} == {4, 8, 16, 32, 64}
    assert {row["count"] for row in pick(rows, protocol="matched")} == {8 * scoring.SPAN}
    reason = "128, 256: targets of small have 64 tokens before them (see --longest)\n"
    assert capsys.readouterr().err.count(f"left out of the default lengths {reason}") == 1
    with pytest.raises(ValueError, match=r"^--lengths has 128: targets of small have 64 tokens"):
        score(runs["rope-1"], "--lengths=1x,8x")


def test_a_space_after_a_comma_separates_lengths_too(runs, score):
    rows = score(runs["rope-1"], "--lengths", "1x, 2x", "--rope_scaling=none")
    assert {row["length"] for row in rows} == {16, 32}


def test_default_scalings_that_a_model_cannot_have_are_left_out(runs, score, tmp_path, capsys):
    two_channels = with_config(runs["rope-1"], tmp_path / "run", rope_fraction=0.25)
    scalings = {row["scaling"] for row in score(two_channels, "--lengths=16")}
    assert scalings >= {"none", "linear", "dynamic_linear"}
    assert not scalings & {"ntk", "dynamic_ntk"}
    assert f"{two_channels}: left out ntk, dynamic_ntk: " in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"^{two_channels}: .*needs 4 or more"):
        score(two_channels, "--rope_scaling=none,ntk")


def test_a_scaling_that_applies_to_no_layer_is_named(runs, score, capsys):
    argv = (runs["learned"], "--lengths=16", "--rope_scaling=yarn")
    score(runs["rope-1"], *argv)
    assert f"{runs['learned']} is scored without rope_scaling: no layer" in capsys.readouterr().err
    score(*argv, "--rope_scaling=none")
    assert "without rope_scaling" not in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^rope_scaling does nothing for .*learned: no layer"):
        score(*argv)


def test_a_reference_without_rows_is_named(runs, score, capsys):
    argv = (runs["learned"], "--lengths=16")
    score(*argv)
    assert "--against" not in capsys.readouterr().err
    score(*argv, "--against=nobody")
    assert "--against: no rows of 'nobody' at its trained length" in capsys.readouterr().err
    score(*argv, "--against=learned")
    assert "--against" not in capsys.readouterr().err


def test_a_score_that_is_not_finite_is_one_sentence(runs, score, tmp_path):
    other = changed(runs["rope-1"], tmp_path / "run", lambda s: s["model"]["wte.weight"].mul_(1e38))
    message = f"^the loss of {other} none at 16 tokens is not finite; score an earlier checkpoint"
    with pytest.raises(errors.DivergedError, match=message):
        score(other, *ONE_CELL)
    assert not (tmp_path / "rows.jsonl").exists()


def test_rows_of_another_call_are_not_shown(runs, score, tmp_path, capsys):
    """Two trained lengths: the losses by position of each under the length of its windows."""
    half = with_config(runs["sinusoidal"], tmp_path / "half", block_size=8)
    score(half, "--lengths=1x")
    capsys.readouterr()
    score(half, runs["rope-1"], "--lengths=1x,4x", "--rope_scaling=none")
    out = capsys.readouterr().out
    tables = out.split("position: loss by position in windows of ")[1:]
    assert [table.split("\n")[0] for table in tables] == ["32", "64"]
    assert [[line.split()[0] for line in t.splitlines()[2:4] if line] for t in tables] == [
        ["sinusoidal", "sinusoidal"],
        ["rope"],
    ]


def test_a_link_to_a_file_of_rows_stays_a_link(runs, corpus, tmp_path):
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(target)
    where = [f"--data_dir={corpus}", f"--json={link}", "--wandb=disabled"]
    evaluate.main([*where, *FAST, runs["rope-1"], *ONE_CELL])
    assert link.is_symlink()
    assert len(results.read(target)) == 3


def test_runs_of_several_datasets_are_not_mixed(runs, score, corpus, tmp_path):
    raw = checkpoint.read(runs["rope-1"])
    raw["run"]["dataset"] = "other"
    checkpoint.save(tmp_path, {k: v for k, v in raw.items() if k not in ("sha256", "path")})
    with pytest.raises(ValueError, match="trained on other and small; evaluate one at a time"):
        score(runs["rope-1"], str(tmp_path))


def changed(folder, tmp_path, change):
    """A copy of a run's checkpoint with something in it changed."""
    state = checkpoint.read(folder)
    change(state)
    tmp_path.mkdir(exist_ok=True)
    checkpoint.save(tmp_path, {k: v for k, v in state.items() if k not in ("sha256", "path")})
    return str(tmp_path)


# Names


@pytest.fixture
def other(runs, tmp_path):
    """A run of the name and seed of rope-1, with other weights, in a folder of its own."""
    return changed(runs["rope-1"], tmp_path / "other", lambda s: s["model"]["wte.weight"].mul_(2))


ONE_CELL = ("--lengths=16", "--rope_scaling=none")


def names(rows):
    return {row["run"]: row["folder"] for row in rows}


def test_two_runs_of_one_name_and_seed_are_told_apart_by_their_folders(runs, score, other, capsys):
    rows = score(runs["rope-1"], other, *ONE_CELL)
    folders = {
        name: os.path.relpath(path) for name, path in (("rope", runs["rope-1"]), ("other", other))
    }
    assert names(rows) == folders
    out, err = capsys.readouterr()
    assert f"{other} is named 'other', as its folder: 'rope', seed 1, stands for other" in err
    assert "rope (1) none" in out
    assert "other (1) none" in out
    assert score(other, *ONE_CELL) == score(runs["rope-1"], *ONE_CELL) == rows  # and they stay
    assert capsys.readouterr().err.count("3 of 3 cells are in") == 2


def test_a_run_takes_no_rows_from_another_folder(runs, score, other):
    first = score(runs["rope-1"], *ONE_CELL)
    rows = score(other, *ONE_CELL)
    assert rows[: len(first)] == first
    assert names(rows).keys() == {"rope", "other"}


def test_seeds_of_one_name_are_one_group(runs, score, capsys):
    assert names(score(runs["rope-1"], runs["rope-2"], *ONE_CELL)).keys() == {"rope"}
    assert "is named" not in capsys.readouterr().err


def test_rows_of_the_first_release_do_not_know_their_folder(runs, score, other, tmp_path, capsys):
    rows = score(runs["rope-1"], *ONE_CELL)
    path = tmp_path / "rows.jsonl"
    for row in rows:
        del row["folder"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert len(score(other, *ONE_CELL)) == 3
    assert "those no longer count" in capsys.readouterr().err


def test_a_label_names_a_run(runs, score, other, capsys):
    rows = score(runs["rope-1"], other, *ONE_CELL, "--label=a,b")
    assert names(rows).keys() == {"a", "b"}
    rows = score(other, runs["rope-1"], *ONE_CELL, "--label=c", "--label", "d")
    assert list(names(rows)) == ["a", "b", "c", "d"]
    assert "d (1) none" in capsys.readouterr().out


def test_a_name_that_is_taken_is_refused_with_the_way_out(runs, score, other, tmp_path):
    taken = "seed 1, stands for other weights, here or in .*; give it a --label$"
    with pytest.raises(ValueError, match=f"^{other}: a, {taken}"):
        score(runs["rope-1"], other, *ONE_CELL, "--label=a,a")
    score(runs["rope-1"], *ONE_CELL, "--label=other")
    score(runs["rope-1"], *ONE_CELL)
    with pytest.raises(ValueError, match=f"^{other}: rope and other, {taken}"):
        score(other, *ONE_CELL)
    (tmp_path / "other/ckpt.prev.pt").write_bytes((Path(runs["rope-1"]) / "ckpt.pt").read_bytes())
    both = f"{other}/ckpt.pt", f"{other}/ckpt.prev.pt"
    with pytest.raises(ValueError, match=taken):  # two checkpoints of one folder
        score(*both, *ONE_CELL)
    assert names(score(*both, *ONE_CELL, "--label=last,before")).keys() >= {"last", "before"}


def test_labels_that_do_not_fit_the_runs_are_refused(runs, score):
    for labels, message in (
        ("a,b", "there are 2 labels and 1 runs; name the runs, and give each a --label"),
        ("a b", "label has 'a b'; it must be letters, digits, . _ or -"),
        ("", "label has ''"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            score(runs["rope-1"], f"--label={labels}")


def test_data_that_changed_since_training_are_refused(runs, score, tmp_path):
    other = changed(runs["rope-1"], tmp_path, lambda s: s["data"].update(val="other"))
    with pytest.raises(data.DataError, match=r"small is not the data that .* was trained on"):
        score(other)


def test_keys_need_characters(runs, score, tmp_path):
    words = {"kind": "bpe", "pattern": ".", "merges": [b64(bytes([b])) for b in range(256)]}
    other = changed(runs["rope-1"], tmp_path, lambda s: s.update(tokenizer=words))
    with pytest.raises(ValueError, match="passkey needs a char tokenizer; the runs have bpe"):
        score(other, "--passkey")


def b64(raw):
    return base64.b64encode(raw).decode()


def test_a_model_that_goes_on_training_is_not_mixed(runs, score, tmp_path, monkeypatch):
    """All variants are scored with the weights that were read first, and named by their hash."""
    flags = ("--lengths=16", "--rope_scaling=none,yarn")
    expected = {results.key_of(row): row["scores"] for row in score(runs["rope-1"], *flags)}
    folder = changed(runs["rope-1"], tmp_path / "copy", lambda s: None)
    (tmp_path / "rows.jsonl").unlink()
    whole = Prose.matched

    def meanwhile(self, model, length, window):
        changed(runs["rope-1"], tmp_path / "copy", lambda s: s["model"]["wte.weight"].mul_(2))
        return whole(self, model, length, window)

    sha = checkpoint.read(folder)["sha256"][:12]
    monkeypatch.setattr(Prose, "matched", meanwhile)
    rows = score(folder, *flags)
    assert {results.key_of(row): row["scores"] for row in rows} == expected
    assert {row["checkpoint_sha"] for row in rows} == {sha}


def test_a_run_that_has_changed_since_it_was_planned_is_not_scored(
    runs, score, tmp_path, monkeypatch
):
    folder = changed(runs["rope-1"], tmp_path / "copy", lambda s: None)
    original = evaluate.fit_lengths

    def meanwhile(*args):
        changed(runs["rope-1"], tmp_path / "copy", lambda s: s["model"]["wte.weight"].mul_(2))
        return original(*args)

    monkeypatch.setattr(evaluate, "fit_lengths", meanwhile)
    with pytest.raises(
        checkpoint.CheckpointError, match="changed meanwhile; stop its training, or"
    ):
        score(folder, "--lengths=16", "--rope_scaling=none")


def test_a_bad_line_is_skipped_and_its_cell_measured_again(runs, score, tmp_path, capsys):
    argv = (runs["rope-1"], "--lengths=16,32", "--rope_scaling=none")
    rows = score(*argv)
    path = tmp_path / "rows.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(first[: len(first) // 2] + "\n" + "".join(rest))
    again = score(*argv)
    err = capsys.readouterr().err
    assert f"{path}:1: skipped a bad line" in err
    assert f"{len(rows) - 1} of {len(rows)} cells are in" in err
    assert sorted(map(results.key_of, again)) == sorted(map(results.key_of, rows))


def test_the_help_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        evaluate.parse(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) < 80


# All runs of out/


@pytest.fixture
def out(runs, tmp_path, monkeypatch):
    """A folder out/ with three of the runs, the working directory beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("rope-1", "rope-2", "learned"):
        (tmp_path / "out" / name).symlink_to(runs[name])
    (tmp_path / "out/logs").mkdir()
    return tmp_path / "out"


def test_without_a_run_all_of_out_are_scored(out, score, capsys):
    rows = score("--lengths=16", "--rope_scaling=none")
    assert {(row["run"], row["seed"]) for row in rows} == {
        ("rope", 1),
        ("rope", 2),
        ("learned", 1337),
    }
    assert "left out" not in capsys.readouterr().err


def test_runs_of_out_that_do_not_fit_are_named(runs, out, score, capsys):
    for name in ("broken", "elsewhere", "words", "task"):
        (out / name).mkdir()
    (out / "broken/ckpt.pt").write_text("no checkpoint")
    changed(runs["sinusoidal"], out / "elsewhere", lambda s: s["run"].update(dataset="other"))
    changed(runs["sinusoidal"], out / "words", lambda s: s["tokenizer"].update(characters="xyz"))
    changed(runs["sinusoidal"], out / "task", lambda s: s["run"].update(dataset="passkey"))
    newest = out / "rope-1" / checkpoint.NEWEST
    newest.touch()
    rows = score("--lengths=16", "--rope_scaling=none")
    assert {row["run"] for row in rows} == {"rope", "learned"}
    err = capsys.readouterr().err
    assert "left out out/broken: out/broken/ckpt.pt is damaged" in err
    assert "left out out/elsewhere: it was trained on other, out/rope-1 on small" in err
    assert "left out out/words: it has a different tokenizer" in err
    assert "left out out/task: it was trained on passkey, which does not fit --task prose" in err


def test_an_empty_out_is_one_sentence(tmp_path, monkeypatch, score):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^no run in out/ to score with --task prose$"):
        score()


# Another dataset, a figure


def test_another_dataset_has_a_file_of_its_own(runs, score, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    root.mkdir()
    (root / "small").symlink_to(corpus / "small")
    text = tmp_path / "other.txt"
    text.write_text((corpus / "text.txt").read_text()[::-1])
    data.prepare.prepare("other", [text], root=root)
    argv = [runs["rope-1"], f"--data_dir={root}", "--wandb=disabled", "--rope_scaling=none"]
    argv += [*FAST, "--lengths=16"]
    evaluate.main(argv)
    evaluate.main([*argv, "--dataset=other"])
    own, other = (results.read(tmp_path / f"results/{n}.jsonl") for n in ("small", "other"))
    assert own[0]["target_set"] != other[0]["target_set"]
    assert own[0]["scores"] != other[0]["scores"]
    (tmp_path / "b.txt").write_text("To be, or not: 12 questions.\n" * 400)
    data.prepare.prepare("b", [tmp_path / "b.txt"], root=root)
    with pytest.raises(data.DataError, match=r"^b has a different tokenizer than "):
        evaluate.main([*argv, "--dataset=b"])


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_figure_of_the_runs_that_are_named(runs, score, tmp_path, kind):
    path = tmp_path / f"figures/loss.{kind}"
    argv = (
        runs["rope-1"],
        runs["learned"],
        "--lengths=8,16,32",
        "--rope_scaling=none,dynamic_yarn",
    )
    score(*argv, f"--plot={path}")
    if kind == "png":
        assert path.read_bytes()[1:4] == b"PNG"
    else:
        for words in ("rope (1) dynamic_yarn", "learned (1) slide", "context length", "trained"):
            assert words in path.read_text()


# A task of ten lines


class Echo(tasks.Task):
    """The two letters before the colon come again after it; a window of 17 characters."""

    version, scored, after, chance = 1, "ab", ":", 0.25

    def text(self, draw, length):
        word = "".join(draw.choice(["a", "b"], 2))
        return word, "." * (length - 5) + word + ":" + word

    def corpus(self):
        draw = np.random.default_rng(0)
        return {
            split: [Document(f"{split}/{i}", n * self.text(draw, size)[1]) for i in range(40)]
            for split, size, n in (("train", self.window + 1, 1), ("val", self.window, 8))
        }

    def questions(self, length, count, seed):
        draw = np.random.default_rng([length, seed])
        made = [self.text(draw, length + 1) for _ in range(count)]
        return [tasks.Question(text[:-1], word, 1.0, length - 3) for word, text in made]


def test_a_task_that_is_added_is_prepared_trained_scored_and_printed(
    monkeypatch, tmp_path, score, capsys
):
    monkeypatch.setitem(tasks.TASKS, "echo", Echo(16))
    data.prepare.prepare("echo", root=tmp_path)
    flags = [flag for flag in SMALL if not flag.startswith(("--dataset", "--max_iters", "--eval"))]
    flags += ["--dataset=echo", f"--data_dir={tmp_path}", "--max_iters=2", "--eval_interval=2"]
    flags += ["--eval_tokens=64", "--name=echo-rope", f"--out_dir={tmp_path / 'run'}"]
    assert train.main(flags) == errors.DONE
    argv = ("--task=echo", "--keys=5", "--lengths=16,32", "--rope_scaling=none")
    argv = (str(tmp_path / "run"), *argv)
    rows = score(*argv)
    assert [(r["protocol"], r["metric"], r["count"]) for r in rows] == [("echo", "accuracy", 5)] * 2
    out = capsys.readouterr().out
    assert "echo: accuracy by context length, 5 questions, by depth of the answer" in out
    assert "echo-rope (1) none" in out
    assert "echo" in scoring.task_names()
    for keys in (1, 9):  # fewer than the tenths in which their depths are shown
        rows = score(*argv, f"--keys={keys}")
        assert [row["count"] for row in rows[-2:]] == [keys] * 2
    assert len(rows) == 6
