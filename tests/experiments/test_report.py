"""Figures and README tables from made-up results, and whether the committed ones are up to date."""

import ast
import json
import random
from pathlib import Path

import numpy as np
import pytest

from evaluation import drawing, tables
from experiments import report

NAMES = ("headline", "room", "prose", "windows", "passkey", "faults", "bench")
FAULTS = {
    "crash points of one save": {"points": 55, "lost": 0, "points_in_place": 19,
                                 "lost_in_place": 14, "seconds": 4.8},
    "kill at random moments": {"kills": 100, "kills_in_a_save": 19, "lost": 0,
                               "runs_completed": 15, "not_bit_equal": 0},
    "corruption of a checkpoint": {"flips": 1000, "flips_noticed": 999, "cuts": 300,
                                   "cuts_noticed": 300, "flips_noticed_by_torch": 87},
    "resume points, bit-exact": {"steps": 20, "float32_points": 57, "float32_exact": 57,
                                 "float16_points": 57, "float16_exact": 56},
    "SIGTERM": {"sent": 20, "saved": 20, "resumed_bit_equal": 20, "seconds_longest": 0.11},
    "fuzz": {"seconds": 600, "total": 213312, "tracebacks": 0},
}  # fmt: skip

BENCH = {
    "rows": [
        {"work": "a step", "unit": "ms", "ours": [395.2, 352, 441], "peer": "nanoGPT",
         "theirs": [664, 643, 714], "ratio": [1.651, 1.56, 1.94]},
        {"work": "limit: memory copy", "unit": "GB/s", "ours": [8.123, 8, 9], "peer": "",
         "theirs": [], "ratio": []},
        *({"work": f"a token at position {n:,}", "unit": "tokens/s", "ours": [9e6 / n, 8e6 / n,
           1e7 / n], "peer": "", "theirs": [], "ratio": []} for n in (256, 131072)),
    ],
    "date": "2026-11-22", "cpu": "some", "threads": 2, "torch": "2.13.0",
}  # fmt: skip


def three(name, value, half):
    ends = {"": value, "_low": value - half, "_high": value + half}
    return {name + end: round(x, 5) for end, x in ends.items()}


def row(run, scaling, length, trained=256, seeds=3, factor=None, **more):
    fixed = {"run": run, "seed": None, "seeds": list(range(seeds)), "scaling": scaling}
    fixed |= {"factor": factor, "length": length, "trained": trained, "spread": 0.0123}
    return fixed | more


def text(run, scaling, harm, length, protocol="matched", **more):
    """A row of results/prose.json, `harm` nats above a window of 1.6."""
    scores = three("over_window", harm, 0.02) | {"loss": round(1.6 + harm, 5)}
    return row(run, scaling, length, **more) | scores | {"protocol": protocol}


def keys(run, scaling, accuracy, outside, length, **more):
    found = {"accuracy": accuracy, "loss": None, "outside": None, "protocol": "passkey"}
    found |= three("outside", outside, 0.03) if outside is not None else {}
    return row(f"passkey-{run}", scaling, length, 128, **more) | found


@pytest.fixture
def root(tmp_path):
    """A repository of results and a README, and nothing drawn yet."""
    for folder in ("results", "docs"):
        (tmp_path / folder).mkdir()
    prose = []
    for protocol in ("matched", "windows"):
        for length, none, yarn in ((256, 0, 0.1), (512, 0.64, 0.12), (1024, 2.5, 0.266)):
            prose.append(text("rope", "none", none, length, protocol))
            prose.append(text("rope", "yarn", yarn, length, protocol, factor=4.0))
        prose.append(text("alibi", "none", 0.045, 1024, protocol, seeds=2))
        prose.append(text("rope-4x", "none", -0.05, 1024, protocol, trained=1024, seeds=1))
        prose.append(text("finetune-yarn", "yarn", -0.2, 1024, protocol))
    prose.append(text("learned", "none", 0, 512) | {"loss": None, "over_window": None})
    prose.append(text("rope", "none", 0, 256) | {"seed": 1, "loss": 99.0})  # of one model
    passkey = [keys("rope", "none", 0.96, None, 128), keys("rope", "none", 0.2, 0.0, 512)]
    passkey += [keys("rope", "dynamic_yarn", 0.7, 0.69, 512)]
    training = [{"run": "rope", "seed": s, "iter": i, "val/loss": 3 - i / 100 + s / 10,
                 "val/loss_2x": 2.0} for s in (1, 2) for i in (50, 100)]  # fmt: skip
    for name, rows in (("prose", prose), ("passkey", passkey), ("training", training)):
        (tmp_path / f"results/{name}.json").write_text(json.dumps(rows))
    for name, found in (("faults", FAULTS), ("bench", BENCH)):
        (tmp_path / f"results/{name}.json").write_text(json.dumps(found))
    marks = "".join(f"<!-- plot.py {name} -->\n<!-- /plot.py {name} -->\n" for name in NAMES)
    (tmp_path / "README.md").write_text(f"before\n{marks}after\n")
    return tmp_path


def table(root, name):
    return tables.tables(**tables.load(root))[name].splitlines()


def test_the_headline_has_two_numbers_a_method(root):
    """A fixed factor of 4 is not repeated beside the dynamic one."""
    lines = table(root, "headline")
    assert lines[2:6] == [
        "| `alibi` | **+0.045 [0.025, 0.065]** | - |",
        "| `rope` | +2.500 [2.480, 2.520] | 0.00 [-0.03, 0.03] |",
        "| `rope` `dynamic_yarn` | - | **0.69 [0.66, 0.72]** |",
        "| `finetune-yarn` | -0.200 [-0.220, -0.180] | - |",
    ]
    assert lines[6] == "| `rope-4x` (ceiling) | -0.050 [-0.070, -0.030] | - |"
    assert "(seeds: 1-3)" in lines[-1]


def test_a_column_a_length_and_the_loss_itself_at_the_trained_one(root):
    lines = table(root, "prose")
    assert lines[0] == "| method | seeds | 1x | 2x | 4x |"
    assert "| `learned` | 3 | - | - | - |" in lines
    assert "| `rope` | 3 | 1.600 ± 0.012 | +0.64 ± 0.02 | +2.50 ± 0.02 |" in lines
    assert "| `rope` | 3 | 1.600 ± 0.012 | 2.240 ± 0.012 | 4.100 ± 0.012 |" in table(
        root, "windows"
    )
    assert "| `rope` | 3 | 0.96 ± 0.01 | 0.20 ± 0.01 |" in table(root, "passkey")


def test_the_figures_of_faults_are_what_was_found():
    text = tables.faults(FAULTS)
    for words in ("| 0 of 55 lost a run; of a writer in place 14 of 19 |", "| 999 of 1000 and 300",
                  "19 of them within a save: 0 saves lost, 0 of 15 runs with other weights |",
                  "| 113 of 114 bit-exact, in float32, float16,", "0.11 s at most |",
                  "| 213,312 inputs in 10 minutes, 0 tracebacks |"):  # fmt: skip
        assert words in text


def test_speed_is_shown_beside_its_peer_and_the_limits_alone():
    lines = tables.speed(BENCH).splitlines()
    row = "| a step | ms | 395 (352 to 441) | nanoGPT | 664 (643 to 714) | 1.65 (1.56 to 1.94) |"
    assert lines[2] == row
    assert lines[-1].endswith("The machine's own limits: memory copy 8.12 (8 to 9) GB/s.")
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (-0.05, "+0.050 [0.030, 0.070] nats a token over the window of 256 (seeds: 1): clearly"),
        (-0.01, "not distinguishable from zero"),
        (0.05, "(seeds: 1): negative."),
    ],
)
def test_the_room_is_what_training_at_4x_gains(root, harm, says):
    path = root / "results/prose.json"
    rows = [r for r in json.loads(path.read_text()) if r["run"] != "rope-4x"]
    rows.append(text("rope-4x", "none", harm, 1024, trained=1024, seeds=1))
    path.write_text(json.dumps(rows))
    assert says in table(root, "room")[0]


def test_what_is_made_is_up_to_date_and_what_changes_is_not(root):
    assert report.main([], root) == 0
    readme = (root / "README.md").read_text()
    assert readme.startswith("before\n<!-- plot.py headline -->\n| method |")
    assert readme.endswith("<!-- /plot.py bench -->\nafter\n")
    made = {path.name for path in (root / "docs").iterdir()}
    names = "extrapolation training decoding".split()
    assert made == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert report.main(["--check"], root) == 0  # also: a figure drawn twice has the same bytes
    assert report.readme(root) == (readme, [])  # tables take the place of tables
    (root / "README.md").write_text(readme.replace("+2.500", "+2.400"))
    assert report.stale(root) == ["README table headline"]
    (root / "docs/training.svg").write_text("<svg/>")
    assert report.stale(root) == ["docs/training.svg", "README table headline"]
    assert report.main(["--check"], root) == 1


def test_only_what_another_matplotlib_would_draw_alike_is_alike():
    drawn = '<path d="M 1.5000 2.25"/><text y="7.1">rope ▲ 4.10</text>'
    assert drawing.alike(drawn, drawn.replace("1.5000", "1.5001").replace("7.1", "7.4"))
    assert not drawing.alike(drawn, drawn.replace("2.25", "2.30"))
    assert not drawing.alike(drawn, drawn.replace("4.10", "4.11"))
    assert not drawing.alike(drawn, drawn.replace("rope", "yarn"))


def test_settings_of_the_machine_change_nothing(root):
    before = report.pictures(root)
    with drawing.style.context({"lines.linewidth": 9, "axes.grid": True}):
        assert report.pictures(root) == before


@pytest.mark.parametrize("name", ["prose", "passkey", "training"])
def test_what_is_not_measured_yet_is_left_out(root, name):
    (root / f"results/{name}.json").write_text("[]")
    assert report.main([], root) == 0


def test_the_figure_marks_what_leaves_it(root):
    report.main([], root)
    svg = (root / "docs/extrapolation.svg").read_text()
    assert svg.count('id="off-scale') >= 2  # none at 4x, in two panels
    assert "rope ▲ 4.10" in svg


def test_labels_keep_their_order_and_their_distance():
    draw = random.Random(0)
    for _ in range(200):
        wanted = [draw.random() for _ in range(draw.randrange(1, 9))]
        found = drawing.apart(wanted, 0.1)
        assert (np.argsort(found, kind="stable") == np.argsort(wanted, kind="stable")).all()
        assert (np.diff(np.sort(found)) > 0.1 - 1e-9).all()
        assert found.min() >= -1e-9
        assert found.max() <= 1 + 1e-9
    assert drawing.apart([0.2, 0.8], 0.1).tolist() == [0.2, 0.8]
    assert drawing.apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_held_out_losses_are_condensed(root, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"name": null, "pos": "alibi", "seed": 7}')
    rows = [{"iter": 1, "train/loss": 3.0}, {"iter": 2, "val/loss": 2.123456, "val/loss_4x": 1.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert report.main(["--training", str(run)], root) == 0
    (kept,) = json.loads((root / "results/training.json").read_text())
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
        ("results/prose.json", None, "prose.json is missing; `experiments/reproduce.sh` writes it"),
        ("results/passkey.json", "[1]", "passkey.json does not hold rows"),
        ("results/training.json", "{", "training.json does not hold rows"),
        (
            "README.md",
            "<!-- plot.py rooms -->",
            "<!-- plot.py rooms --> marks no table; there are headline",
        ),
        (
            "README.md",
            "no markers",
            "<!-- plot.py headline --> and <!-- /plot.py headline --> must be lines of the page",
        ),
    ],
)
def test_what_is_missing_is_named(root, file, content, message):
    path = root / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=r"^.+$") as error:
        report.main([], root)
    assert message in str(error.value)


def test_neither_needs_torch():
    for module in (report, tables):
        nodes = ast.walk(ast.parse(Path(module.__file__).read_text()))
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        assert "torch" not in names


def test_the_committed_figures_and_tables_are_up_to_date():
    assert report.stale(report.ROOT) == []
