"""Figures and tables from made-up rows, and whether the committed ones are up to date."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from rows import retrieval, row

import rope
from evaluation import drawing, figures, results, tables
from evaluation.statistics import Estimate
from evaluation.tables import Method, Scores
from experiments import lead, report
from positions import POSITIONS, Position

NAMES = ("headline", "all", "room", "prose", "windows", "passkey", "faults", "bench", "gqa")
FIGURES = (
    "lead extrapolation training decoding planes tuning bases wavelengths angles scores".split()
)
FAULTS = {
    "crash points of one save": {
        "points": 55,
        "lost": 0,
        "points_in_place": 19,
        "lost_in_place": 14,
        "seconds": 4.8,
    },
    "kill at random moments": {
        "kills": 100,
        "kills_in_a_save": 19,
        "lost": 0,
        "runs_completed": 15,
        "not_bit_equal": 0,
    },
    "corruption of a checkpoint": {
        "flips": 1000,
        "flips_noticed": 999,
        "cuts": 300,
        "cuts_noticed": 300,
        "flips_noticed_by_torch": 87,
    },
    "resume points, bit-exact": {
        "steps": 20,
        "float32_points": 57,
        "float32_exact": 57,
        "float16_points": 57,
        "float16_exact": 56,
    },
    "SIGTERM": {"sent": 20, "saved": 20, "resumed_bit_equal": 20, "seconds_longest": 0.11},
    "fuzz": {"seconds": 600, "total": 213312, "tracebacks": 0},
}


def bench_row(work, unit, ours, peer="", theirs=(), ratio=()):
    compared = {"peer": peer, "theirs": theirs, "ratio": ratio}
    return {"work": work, "unit": unit, "ours": ours} | compared


BENCH = {
    "rows": [
        bench_row(
            "a step", "ms", [395.2, 352, 441], "nanoGPT", [664, 643, 714], [1.651, 1.56, 1.94]
        ),
        bench_row("limit: memory copy", "GB/s", [8.123, 8, 9]),
        *(
            bench_row(f"a token at position {n:,}", "tokens/s", [9e6 / n, 8e6 / n, 1e7 / n])
            for n in (256, 131072)
        ),
    ],
    "date": "2026-11-22",
    "cpu": "some",
    "threads": 2,
    "torch": "2.13.0",
}
SEEDS = (1, 2, 3)


def text(run, scaling, excess, length, protocol="matched", seeds=SEEDS, trained=256, **more):
    """Rows of results/prose.jsonl, one a seed; `excess` nats above a window of 1.6.

    The seeds are 0.01 apart, the four spans of a model 0.02 to either side of its mean.
    """
    spread = np.array([-0.02, 0.02, -0.02, 0.02])
    cell = {"run": run, "scaling": scaling, "length": length, "protocol": protocol}
    made = []
    for seed in seeds:
        losses = 1.6 + 0.01 * (seed - 2) + excess * (1 + spread)
        own = {"seed": seed, "trained": trained, "checkpoint_sha": f"{run}{seed}", "count": 64}
        made.append(row(losses.tolist(), **cell, **own) | more)
    return made


def keys(run, scaling, accuracy, length, beyond=0, **more):
    """Rows of results/passkey.jsonl: of 100 questions the last ones are answered."""
    answers = [0.0] * (100 - round(100 * accuracy)) + [1.0] * round(100 * accuracy)
    cell = {"run": f"passkey-{run}", "scaling": scaling, "length": length, "trained": 128}
    cell |= {"beyond_window_n": beyond, "targets": str(length), "pos": run}
    return [retrieval(answers, **cell, seed=seed) | more for seed in SEEDS]


def prose_rows():
    made = []
    for protocol in ("matched", "windows"):
        for length, none, yarn in ((256, 0, 0.1), (512, 0.64, 0.12), (1024, 2.5, 0.266)):
            made += text("rope", "none", none, length, protocol)
            made += text("rope", "yarn", yarn, length, protocol, factor=4.0)
        made += text("alibi", "none", 0.045, 1024, protocol, seeds=SEEDS[:2], pos="alibi")
        made += text("rope-4x", "none", -0.05, 1024, protocol, trained=1024, seeds=SEEDS[:1])
        made += text("finetune-yarn", "yarn", -0.2, 1024, protocol)
    refused = {"pos": "learned", "scores": None}
    return made + text("learned", "none", 0, 512, **refused)


def passkey_rows():
    made = keys("rope", "none", 0.96, 128) + keys("rope", "none", 0.25, 512, beyond=75)
    return made + keys("rope", "dynamic_yarn", 0.7, 512, beyond=60)


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


@pytest.fixture
def root(tmp_path):
    """A repository of made-up results, the committed claims, and pages with markers alone."""
    for folder in ("results", "docs"):
        (tmp_path / folder).mkdir()
    shutil.copytree(report.ROOT / "results/claims", tmp_path / "results/claims")
    losses = {"val/loss": 2.5, "val/loss_2x": 2.0}
    training = [{"run": "rope", "seed": s, "iter": i} | losses for s in (1, 2) for i in (50, 100)]
    write(tmp_path / "results/prose.jsonl", prose_rows())
    write(tmp_path / "results/passkey.jsonl", passkey_rows())
    write(tmp_path / "results/training.jsonl", training)
    for name, record in (("faults", FAULTS), ("bench", BENCH)):
        (tmp_path / f"results/{name}.json").write_text(json.dumps(record))
    marks = {name: f"<!-- report {name} -->\n<!-- /report {name} -->\n" for name in NAMES}
    (tmp_path / "README.md").write_text(f"before\n{marks['headline']}after\n")
    others = "".join(mark for name, mark in marks.items() if name != "headline")
    (tmp_path / "docs/results.md").write_text(others + "as in `<!-- report NAME -->`\n")
    (tmp_path / "docs/log.md").write_text("no marker\n")
    return tmp_path


@pytest.fixture(autouse=True)
def some_figures(monkeypatch, request):
    """Only the figures that a test names are drawn."""
    wanted = request.node.get_closest_marker("parametrize")
    if "root" in request.fixturenames and wanted is None:
        whole = report.figure_makers

        def few(r):
            return {name: make for name, make in whole(r).items() if name == "extrapolation"}

        monkeypatch.setattr(report, "figure_makers", few)


def table(root, name):
    return report.table_makers(report.Results(root))[name]().splitlines()


def test_all_methods_have_two_numbers_at_4x(root):
    """A fixed factor of 4 is not repeated beside the dynamic scaling."""
    lines = table(root, "all")
    assert lines[0] == "| method | excess loss at 4x | retrieval beyond the window at 4x |"
    assert lines[2] == "| `alibi` | **+0.045 [0.044, 0.046]** | - |"
    assert lines[3] == "| `rope` | +2.500 [2.450, 2.550] | 0.00 [0.00, 0.05] |"
    assert lines[4].startswith("| `rope` `dynamic_yarn` | - | **0.50 [0.")
    assert lines[5].startswith("| `finetune-yarn` | -0.200 [")
    assert lines[6].startswith("| `rope-4x` (ceiling) | -0.050 [")
    assert "(1-3 seeds)" in lines[-1]


def test_the_headline_has_ten_rows(root):
    lines = table(root, "headline")
    assert len(lines) == 2 + 10
    assert lines[2].startswith("| `hybrid` | 1.5")
    assert lines[-1].startswith("| `rope` `yarn` | 1.547 ± 0.011 | +0.32 ± 0.06 | +0.69 ± 0.11 |")


def test_every_method_of_the_lead_has_been_measured(root):
    for scores in report.Results(root).claims():
        assert {entry.method for entry in lead.ENTRIES} <= {*scores.methods}


def test_a_column_a_length_and_the_loss_itself_at_the_trained_one(root):
    lines = table(root, "prose")
    assert lines[0] == "| method | seeds | 1x | 2x | 4x |"
    assert "| `learned` | 3 | - | - | - |" in lines
    assert "| `rope` | 3 | 1.600 ± 0.010 | +0.64 ± 0.01 | +2.50 ± 0.05 |" in lines
    windows = "| `rope` | 3 | 1.600 ± 0.010 | 2.240 ± 0.010 | 4.100 ± 0.010 |"
    assert windows in table(root, "windows")
    assert "| `rope` | 3 | 0.96 ± 0.00 | 0.25 ± 0.00 |" in table(root, "passkey")


def test_numbers_of_the_faults_are_those_of_the_record():
    made = tables.faults(FAULTS)
    for words in (
        "| 0 of 55 lost a run; a writer in place loses 14 of 19 |",
        "| 999 of 1000 and 300",
        "19 of them within a save: 0 saves lost, 0 of 15 runs with other weights |",
        "| 113 of 114 bit-exact, over 20 steps in float32, float16,",
        "0.11 s at most |",
        "| 213,312 inputs in 10 minutes, 0 tracebacks |",
    ):
        assert words in made


def test_speed_shows_peers_and_the_limits_of_the_machine():
    lines = tables.speed(BENCH).splitlines()
    expected = (
        "| a step | ms | 395 (352 to 441) | nanoGPT | 664 (643 to 714) | 1.65 (1.56 to 1.94) |"
    )
    assert lines[2] == expected
    assert lines[-1].endswith("Limits of the machine: memory copy 8.12 (8 to 9) GB/s.")
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([1.54, 1.56], "+0.050 [0.040, 0.060] nats a token over the sliding window of 256 (1 seed"),
        ([1.54, 1.56], "positive."),
        ([1.5, 1.7], "not distinguishable from zero."),
        ([1.64, 1.66], "negative."),
    ],
)
def test_the_room_is_the_gain_of_training_at_4x(root, losses, says):
    path = root / "results/prose.jsonl"
    rows = [r for r in prose_rows() if r["run"] != "rope-4x"]
    made = text("rope-4x", "none", 0, 1024, trained=1024, seeds=(2,))
    made[0]["scores"] = [[loss] for loss in 2 * losses]
    write(path, rows + made)
    assert says in table(root, "room")[0]


def test_a_model_is_compared_with_itself_where_models_are(root):
    """docs/claims.md: above the window of rope, or above the same model at 1x."""
    summary = report.Results(root).main("matched").at(Method("rope", "yarn", 4.0), 4)
    assert tables.excess(summary) == "+0.27 ± 0.01"
    assert tables.excess_over_itself(summary) == "+0.27 ± 0.01"
    assert tables.excess(None) == tables.excess_over_itself(None) == "-"
    assert tables.with_half(Estimate(0.5, 0.4, 0.7)) == "+0.50 ± 0.15"


def test_what_is_made_is_up_to_date_and_what_changes_is_not(root, capsys):
    assert report.main([], root) == 0
    readme = (root / "README.md").read_text()
    assert readme.startswith("before\n<!-- report headline -->\n| method |")
    assert readme.endswith("<!-- /report headline -->\nafter\n")
    assert "| prose 1x |" in (root / "docs/results.md").read_text().replace("method | ", "| ")
    assert (root / "docs/log.md").read_text() == "no marker\n"
    assert {path.name for path in (root / "docs").glob("ext*")} == {
        "extrapolation.svg",
        "extrapolation.png",
    }
    assert report.main(["--check"], root) == 0  # also: a figure drawn twice has the same bytes
    (root / "README.md").write_text(readme.replace("+0.32", "+0.31"))
    (root / "docs/extrapolation.svg").write_text("<svg/>")
    assert report.stale(root) == ["README.md", "docs/extrapolation.svg"]
    assert report.main(["--check"], root) == 1
    assert "README.md, docs/extrapolation.svg out of date" in capsys.readouterr().err


def test_only_what_a_different_matplotlib_would_draw_alike_is_alike():
    drawn = '<path d="M 1.5000 2.25"/><text y="7.1">rope 4.10</text>'
    assert drawing.is_alike(drawn, drawn.replace("1.5000", "1.5001").replace("7.1", "7.4"))
    assert not drawing.is_alike(drawn, drawn.replace("2.25", "2.30"))
    assert not drawing.is_alike(drawn, drawn.replace("4.10", "4.11"))
    assert not drawing.is_alike(drawn, drawn.replace("rope", "yarn"))


def test_settings_of_the_machine_change_nothing(root):
    before = report.pictures(root)
    with drawing.style.context({"lines.linewidth": 9, "axes.grid": True}):
        assert report.pictures(root) == before


@pytest.mark.parametrize("name", ["prose", "passkey", "training"])
def test_what_is_not_measured_yet_is_left_out(root, name):
    (root / f"results/{name}.jsonl").write_text("")
    makers = report.figure_makers(report.Results(root))
    for figure in ("extrapolation", "training"):
        makers[figure]()
    for made in NAMES:
        table(root, made)


# A new encoding and a new scaling


def test_an_encoding_and_a_scaling_that_are_added_appear_without_an_edit(root, monkeypatch):
    before = report.figure_makers(report.Results(root))["extrapolation"]()
    monkeypatch.setitem(POSITIONS, "spiral", type("Spiral", (Position,), {}))
    monkeypatch.setitem(rope.SCALINGS, "halves", rope.linear)
    new = text("spiral", "none", 0.3, 256, pos="spiral")
    new += text("spiral", "none", 0.5, 1024, pos="spiral")
    new += text("rope", "dynamic_halves", 0.4, 1024)
    write(root / "results/prose.jsonl", prose_rows() + new)
    for name in ("all", "prose"):
        lines = table(root, name)
        at = {line.split("|")[1].strip(): i for i, line in enumerate(lines) if line[:1] == "|"}
        assert at["`alibi`"] < at["`spiral`"] < at["`rope`"] < at["`rope` `dynamic_halves`"]
    figure = report.figure_makers(report.Results(root))["extrapolation"]()
    looks, old = (colours(f) for f in (figure, before))
    assert looks.keys() - old.keys() == {"spiral", "halves"}
    assert all(looks[label] == colour for label, colour in old.items())
    encodings = [looks[label] for label in ("alibi", "rope", "spiral")]
    assert len(set(encodings)) == 3


def colours(figure):
    """Colour and line style by the label of a line; `none` is a scaling, rope an encoding."""
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    return {
        line.get_label(): (line.get_color(), line.get_linestyle())
        for line in lines
        if not line.get_label().startswith("_")
    }


def test_looks_differ_also_when_colours_run_out():
    looks = [drawing.look(i) for i in range(28)]
    assert len(set(looks)) == 28
    runs = {*POSITIONS, *(f"new-{i}" for i in range(5))} - {"none"} | {"nope"}
    made = figures.run_looks(runs, {"nope": "none", "new-0": "rope"})
    assert len(set(made.values())) == len(runs)
    fixed = {"learned": drawing.ORANGE, "rope": drawing.BLACK, "nope": drawing.BLUE}
    assert {run: made[run].colour for run in fixed} == fixed


# Training


def test_validation_losses_are_condensed(root, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"name": null, "pos": "alibi", "seed": 7}')
    rows = [{"iter": 1, "train/loss": 3.0}, {"iter": 2, "val/loss": 2.123456, "val/loss_4x": 1.5}]
    write(run / "metrics.jsonl", rows)
    assert report.main(["--training", str(run)], root) == 0
    assert "training.jsonl now holds 1 runs and no other" in capsys.readouterr().err
    (kept,) = map(json.loads, (root / "results/training.jsonl").read_text().splitlines())
    assert kept == {"run": "alibi", "seed": 7, "iter": 2, "val/loss": 2.12346, "val/loss_4x": 1.5}


@pytest.mark.parametrize(
    ("config", "metrics", "says"),
    [
        ('{"name": "a", "seed": 1}', '{"iter": 1, "val/loss": 2.0}\n{"it', "not the whole folder"),
        ('{"name": "a"}', '{"iter": 1, "val/loss": 2.0}', "not the whole folder"),
        ('{"name": "a", "seed": 1}', '{"iter": 1, "val/loss": 2.0}', "second run a of seed 1"),
    ],
)
def test_a_run_that_cannot_be_condensed_is_named(root, config, metrics, says):
    (root / "config.json").write_text(config)
    (root / "metrics.jsonl").write_text(metrics)
    with pytest.raises(ValueError, match=says):
        report.main(["--training", str(root), str(root)], root)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results/prose.jsonl", None, "prose.jsonl is missing; experiments/README.md says what"),
        ("results/bench.json", None, "bench.json is missing; experiments/README.md says what"),
        ("results/passkey.jsonl", "[1]", "passkey.jsonl is a JSON array"),
        ("results/bench.json", "{", "bench.json is damaged: "),
        ("README.md", "<!-- report rooms -->\n", "<!-- report rooms --> marks no table; there"),
        ("README.md", "<!-- report room -->\n", "<!-- /report room --> must be lines of the page"),
        (
            "README.md",
            2 * "<!-- report room -->\n<!-- /report room -->\n",
            "must be lines of the page, once each",
        ),
    ],
)
def test_what_is_missing_is_named(root, file, content, message):
    path = root / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=r"^.+$") as error:
        report.pages(root)
    assert message in str(error.value)


def test_a_figure_is_not_drawn_of_a_missing_file(root):
    (root / "results/training.jsonl").unlink()
    with pytest.raises(ValueError, match=r"training\.jsonl is missing; experiments/README\.md"):
        report.Results(root).training()


def test_pages_are_utf_8_whatever_the_locale(root):
    """In a process of its own, since Python reads the locale once."""
    report.main([], root)
    assert "±".encode() in (root / "docs/results.md").read_bytes()
    code = "import sys; from pathlib import Path; from experiments import report; "
    code += "p = report.pages(Path(sys.argv[1])); sys.exit(any(f.read_bytes() != p[f] for f in p))"
    flags = ["-X", "utf8=0", "-X", "warn_default_encoding"]
    flags.append("-Werror::EncodingWarning:experiments.report")  # matplotlib's do not count
    command = [sys.executable, *flags, "-c", code, str(root)]
    done = subprocess.run(command, cwd=report.ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_bad_line_of_results_is_named_and_the_rest_counts(root, capsys):
    before = table(root, "all")
    path = root / "results/prose.jsonl"
    path.write_text(path.read_text() + '{"run": "ro\n')
    assert table(root, "all") == before
    assert f"{path}:{len(prose_rows()) + 1}: skipped a bad line" in capsys.readouterr().err


def test_rows_on_other_targets_do_not_stand_in_one_table(root, capsys):
    later = text("nope", "none", 0.3, 1024, pos="none", target_set="deeper")
    for one in later:
        results.append(root / "results/prose.jsonl", one)
    summaries = tables.load(root / "results/prose.jsonl", "rope")
    assert [m.run for m in Scores(summaries, "matched").methods] == ["nope"]
    assert "scored on older targets" in capsys.readouterr().err


def test_the_committed_figures_and_tables_are_up_to_date():
    assert report.stale(report.ROOT) == []
    made = {path.stem for path in (report.ROOT / "docs").glob("*.svg")}
    assert made == {*FIGURES}
