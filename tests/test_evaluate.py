"""The command: what it measures, keeps, resumes, prints and refuses."""

import base64
import json

import pytest
from conftest import SMALL, history

import data
import evaluate
import train
from evaluation import statistics
from evaluation.scoring import Prose
from runtime import checkpoint, errors

FAST = ["--tokens=64", "--window_tokens=256"]
FIELDS = (
    "run seed pos scaling factor length ratio protocol loss ci_low ci_high gain tokens documents "
    "checkpoint_sha git torch device seconds"
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
def judge(corpus, tmp_path):
    """Run the command on a file of its own; returns all of its rows."""
    path = tmp_path / "rows.json"

    def run(*argv):
        fast = [] if "--passkey" in argv else FAST
        where = [f"--data_dir={corpus}", f"--json={path}", "--wandb=disabled"]
        evaluate.main([*where, *fast, *argv])
        return statistics.read(path)

    return run


def pick(rows, **wanted):
    return [row for row in rows if wanted.items() <= row.items()]


def test_one_command_measures_every_scaling_at_every_length(runs, judge, capsys):
    rows = judge(runs["rope-1"], runs["rope-2"], "--lengths=1/4x,1x,2x")
    scalings = "none linear ntk ntk_by_parts yarn llama3".split()
    assert {row["scaling"] for row in rows} == {*scalings, *(f"dynamic_{s}" for s in scalings[1:])}
    assert {row["length"] for row in rows} == {4, 16, 32}
    assert len(pick(rows, protocol="matched")) == 11 * 3 * 3  # two seeds and their mean
    assert len(pick(rows, protocol="position", seed=None)) == 11
    assert all(set(FIELDS) <= row.keys() for row in pick(rows, seed=1))
    assert {row["factor"] for row in pick(rows, scaling="yarn")} == {4.0}
    assert {row["ratio"] for row in rows} == {0.25, 1, 2}
    for row in pick(rows, protocol="matched", seed=1):
        assert row["tokens"] == 64
        (same,) = pick(rows, protocol="matched", seed=1, scaling="none", length=16)
        assert row["gain"] == pytest.approx(same["loss"] - row["loss"], abs=2e-5)
    out = capsys.readouterr().out
    assert "rope (2) dynamic_yarn" in out
    assert "rope (2) yarn x4" in out


def test_what_it_reports_is_what_the_judge_measures(runs, judge, corpus):
    rows = judge(runs["rope-1"], "--lengths=4,32", "--rope_scaling=none,yarn,dynamic_ntk")
    prose = Prose(data.load("small", corpus), 32, (64, 256))
    for scaling, more in (("none", {}), ("yarn", {"rope_factor": 4.0}), ("dynamic_ntk", {})):
        model, info = checkpoint.load(runs["rope-1"], rope_scaling=scaling, **more)
        for length in (4, 32):  # 4: within the trained length, where it may reuse what it has
            for protocol in ("matched", "windows"):
                (row,) = pick(rows, seed=1, scaling=scaling, length=length, protocol=protocol)
                assert row["parts"] == getattr(prose, protocol)(model, length).parts
                assert row["checkpoint_sha"] == info["sha256"][:12]


def test_what_learned_positions_cannot_read_is_a_dash(runs, judge, capsys):
    rows = pick(judge(runs["learned"], "--lengths=1x,2x"), protocol="matched", seed=None)
    losses = {(row["scaling"], row["length"]): row["loss"] for row in rows}
    assert losses.keys() == {(s, n) for s in ("none", "interpolate", "slide") for n in (16, 32)}
    assert losses["none", 32] is None
    assert losses["slide", 32] == losses["slide", 16] == losses["none", 16]
    assert losses["interpolate", 32] not in (None, losses["none", 16])
    assert ["learned", "(1)", "none"] in [
        line.split()[:3] for line in capsys.readouterr().out.splitlines() if line.endswith("-")
    ]


def test_sinusoidal_positions_are_read_straight_on_and_interpolated(runs, judge):
    rows = judge(runs["sinusoidal"], "--lengths=1x,2x")
    assert {row["scaling"] for row in rows} == {"none", "interpolate"}


def test_a_killed_evaluation_goes_on_with_the_cells_it_lacks(runs, judge, capsys, monkeypatch):
    asked, whole = [], Prose.matched

    def counted(self, model, length):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(length)
        return whole(self, model, length)

    monkeypatch.setattr(Prose, "matched", counted)
    argv = (runs["rope-1"], "--lengths=8,16,32", "--rope_scaling=none,dynamic_yarn")
    with pytest.raises(KeyboardInterrupt):
        judge(*argv)
    monkeypatch.undo()
    rows = judge(*argv)
    assert "4 of 14 cells are in" in capsys.readouterr().err
    assert len(pick(rows, seed=1)) == 14
    fresh = judge(*argv)
    assert "14 of 14 cells" in capsys.readouterr().err
    assert fresh == rows


def test_other_targets_or_weights_are_measured_anew(runs, judge, capsys, tmp_path):
    argv = (runs["rope-1"], "--rope_scaling=none")
    judge(*argv, "--lengths=16")
    judge(*argv, "--lengths=16,32")  # deeper spans: other targets
    assert "cells are in" not in capsys.readouterr().err
    rows = judge(runs["rope-2"], "--rope_scaling=none", "--lengths=16,32")
    assert {row["seed"] for row in rows} == {1, 2, None}
    state = checkpoint.read(runs["rope-1"])
    state["model"]["wte.weight"] *= 2
    checkpoint.save(tmp_path, {k: v for k, v in state.items() if k not in ("sha256", "path")})
    again = judge(str(tmp_path), "--rope_scaling=none", "--lengths=16,32")
    assert pick(again, seed=2) == pick(rows, seed=2)
    assert all(row["loss"] not in [r["loss"] for r in rows] for row in pick(again, seed=1))


def test_the_curves_are_in_wandb(runs, judge, offline_wandb):
    rows = judge(runs["rope-1"], "--lengths=16,32", "--rope_scaling=dynamic_yarn", "--wandb=auto")
    (folder,) = offline_wandb.glob("offline-run-*")
    logged = [row for row in history(folder) if "ctx/loss" in row]
    wanted = [(r["length"], r["loss"]) for r in pick(rows, seed=1, protocol="matched")]
    assert [(row["ctx/len"], row["ctx/loss"]) for row in logged] == wanted


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lengths=0"], "lengths has '0'; it must be tokens (1024) or trained lengths"),
        (["--lengths=1/3x"], "lengths has '1/3x'"),
        (["--lengths=4y"], "lengths has '4y'"),
        (["--lengths=1x,,2x"], "lengths has ''"),
        (["--lengths=99999999"], "length 99999999 does not fit: the longest held-out document"),
        (["--rope_scaling=yran"], "rope_scaling is 'yran'; it must be one of none, linear"),
        (["--rope_factor=0.5"], "rope_factor is 0.5; it must be at least 1"),
        (["--tokens=0"], "tokens is 0; it must be at least 1"),
        (["--passkey", "--lengths=64"], "is not among the"),
        (["--passkey", "--tokens=9"], "tokens does nothing with --passkey; leave it out"),
        (["--keys=9"], "keys does nothing without --passkey; leave it out"),
        (["--length=4"], "unrecognized arguments: --length=4; --help lists all flags"),
        (["out/nothing"], "out/nothing: No such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence(runs, judge, argv, message):
    with pytest.raises(ValueError, match=r"^.+$") as error:
        judge(runs["rope-1"], *argv)
    assert message in str(error.value)


def test_runs_of_several_datasets_are_not_mixed(runs, judge, corpus, tmp_path):
    raw = checkpoint.read(runs["rope-1"])
    raw["run"]["dataset"] = "other"
    checkpoint.save(tmp_path, {k: v for k, v in raw.items() if k not in ("sha256", "path")})
    with pytest.raises(ValueError, match="trained on other and small; evaluate one at a time"):
        judge(runs["rope-1"], str(tmp_path))


def changed(folder, tmp_path, change):
    """A copy of a run's checkpoint with something in it changed."""
    state = checkpoint.read(folder)
    change(state)
    checkpoint.save(tmp_path, {k: v for k, v in state.items() if k not in ("sha256", "path")})
    return str(tmp_path)


def test_two_models_of_one_name_and_seed_are_refused(runs, judge, tmp_path, capsys):
    other = changed(runs["rope-1"], tmp_path, lambda s: s["model"]["wte.weight"].mul_(2))
    with pytest.raises(ValueError, match="are both 'rope', seed 1; train one with another --name"):
        judge(runs["rope-1"], other)
    judge(runs["rope-1"], "--lengths=16", "--rope_scaling=none")
    judge(other, "--lengths=16", "--rope_scaling=none")
    assert "has other weights than the rows of 'rope', seed 1: they go" in capsys.readouterr().err


def test_other_data_than_the_run_knew_are_refused(runs, judge, tmp_path):
    other = changed(runs["rope-1"], tmp_path, lambda s: s["data"].update(val="other"))
    with pytest.raises(data.DataError, match=r"small is not the data that .* was trained on"):
        judge(other)


def test_keys_need_characters(runs, judge, tmp_path):
    words = {"kind": "bpe", "pattern": ".", "merges": [b64(bytes([b])) for b in range(256)]}
    other = changed(runs["rope-1"], tmp_path, lambda s: s.update(tokenizer=words))
    with pytest.raises(ValueError, match="passkey needs a char tokenizer; the runs have bpe"):
        judge(other, "--passkey")


def b64(raw):
    return base64.b64encode(raw).decode()


def test_a_model_that_goes_on_training_is_not_mixed(runs, judge, tmp_path, monkeypatch):
    folder = changed(runs["rope-1"], tmp_path, lambda s: None)
    whole = Prose.matched

    def meanwhile(self, model, length):
        changed(runs["rope-1"], tmp_path, lambda s: s["model"]["wte.weight"].mul_(2))
        return whole(self, model, length)

    monkeypatch.setattr(Prose, "matched", meanwhile)
    with pytest.raises(checkpoint.CheckpointError, match="changed meanwhile; start again"):
        judge(folder, "--lengths=16", "--rope_scaling=none,yarn")


def test_rows_are_json_that_others_can_read(runs, judge, tmp_path):
    judge(runs["rope-1"], "--lengths=16", "--rope_scaling=none")
    text = (tmp_path / "rows.json").read_text()
    assert len(json.loads(text)) == len(text.splitlines()) - 2  # a row a line


def test_the_help_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        evaluate.parse(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) < 80
