"""Figures and README tables from results/*.json alone.

docs/extrapolation.svg .png   loss and retrieval against context length
docs/training.svg .png        held-out loss at 1x, 2x and 4x while training
docs/decoding.svg .png        what a token costs behind a long text
README.md                     what stands between <!-- plot.py NAME --> and <!-- /plot.py NAME -->
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation import tables
from evaluation.drawing import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    Line,
    draw,
    drawn,
    redrawn,
)
from evaluation.tables import CEILING, Method, Scores, load, markers, read, splice, zero_shot

ROOT = Path(__file__).parent.parent
PANELS = {
    "encodings, unscaled": {
        "rope": (Method("rope"), BLACK, "-"),
        "alibi": (Method("alibi"), GREEN, "-"),
        "nope": (Method("nope"), BLUE, "-"),
        "sinusoidal": (Method("sinusoidal"), PINK, "-"),
        "learned, slide": (Method("learned", "slide"), ORANGE, "-"),
        "learned, interp.": (Method("learned", "interpolate"), ORANGE, "--"),
    },
    "rope, scaled (dynamic)": {
        "none": (Method("rope"), BLACK, "-"),
        "linear": (Method("rope", "dynamic_linear"), ORANGE, "-"),
        "ntk": (Method("rope", "dynamic_ntk"), SKY, "-"),
        "ntk_by_parts": (Method("rope", "dynamic_ntk_by_parts"), GREEN, "-"),
        "yarn": (Method("rope", "dynamic_yarn"), RED, "-"),
        "llama3": (Method("rope", "dynamic_llama3"), BLUE, "-"),
        "trained at 4x": (Method(CEILING), PINK, "--"),
    },
}
TRAINED = {"rope": BLACK, "alibi": GREEN, "nope": BLUE, "sinusoidal": PINK, "learned": ORANGE}
LOSSES = {"1x": "val/loss", "2x": "val/loss_2x", "4x": "val/loss_4x"}
CACHED = 2 * 2 * 64 * 4  # bytes a position: keys and values of bench.py's two layers, 64 channels
HARM = 1.3  # nats above the window at which a panel ends: what leaves it is marked


def curve(scores: Scores, label: str, name: str, look: tuple) -> Line | None:
    method, colour, dash = look
    rows = [row for n in scores.lengths if (row := scores.at(method, n)).get(name) is not None]
    columns = [[row["length"], row[name], row["spread"] or 0] for row in rows]
    return Line(label, colour, dash, *np.array(columns, float).T) if rows else None


def length_panel(axes: Axes, scores: Scores, name: str, shown: dict, low, high) -> None:
    lines = [line for label, look in shown.items() if (line := curve(scores, label, name, look))]
    axes.set_xscale("log", base=2)
    ticks = scores.lengths
    axes.set_xticks(ticks, [f"{n // 1024}k" if n % 1024 == 0 else str(n) for n in ticks])
    axes.minorticks_off()
    axes.axvline(scores.trained, color="0.4", ls="--", lw=0.8)
    axes.axvspan(scores.trained, max(scores.lengths, default=2), color="0.95", lw=0, zorder=0)
    draw(axes, lines, low, high)


def extrapolation(s: dict[str, Scores]) -> Figure:
    figure = Figure(figsize=(9.5, 7))
    grid = figure.subplots(2, 2)
    figure.subplots_adjust(left=0.07, right=0.86, top=0.94, bottom=0.08, wspace=0.75, hspace=0.32)
    text, keys = s["matched"], s["passkey"]
    lowest = min((r["loss"] for r in text.rows.values() if r["loss"] is not None), default=0)
    window = text.at(Method("rope"), text.trained).get("loss") or lowest
    low = min(window - 0.2, lowest - 0.05)
    for (title, shown), (left, right) in zip(PANELS.items(), grid, strict=True):
        left.set_title(f"prose: {title}", fontsize=10)
        right.set_title(f"retrieval: {title}", fontsize=10)
        left.set_ylabel("loss, nats a character")
        right.set_ylabel("keys named exactly")
        left.axhline(window, color="0.4", ls=":", lw=1)
        note = {"transform": left.get_yaxis_transform(), "color": "0.4", "fontsize": 8}
        left.text(0.02, window - 0.02, "sliding window", va="top", **note)
        length_panel(left, text, "loss", shown, low, window + HARM)
        length_panel(right, keys, "accuracy", shown, -0.02, 1.02)
    for axes in grid[-1]:
        axes.set_xlabel("context length, characters (dashed: trained length)")
    return figure


def training(rows: list[dict]) -> Figure:
    figure = Figure(figsize=(9.5, 3.2))
    panels = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(left=0.07, right=0.9, top=0.9, bottom=0.16, wspace=0.55)
    new = {row["run"]: "0.5" for row in rows if zero_shot(row["run"])}  # grey, unless known
    seen = [row for row in rows if row["run"] in new]
    low = min((row[name] for row in seen for name in LOSSES.values() if name in row), default=1.6)
    for axes, (ratio, name) in zip(panels, LOSSES.items(), strict=True):
        axes.set_title(f"held-out loss at {ratio}", fontsize=10)
        axes.set_xlabel("step")
        lines = []
        for run, colour in (new | TRAINED).items():
            at: dict[int, list[float]] = {}
            for row in seen:
                if row["run"] == run and name in row:
                    at.setdefault(row["iter"], []).append(row[name])
            points = [(i, np.mean(x), np.std(x, ddof=len(x) > 1)) for i, x in sorted(at.items())]
            lines += [Line(run, colour, "-", *np.array(points).T)] if points else []
        draw(axes, lines, low - 0.1, low + HARM)
    panels[0].set_ylabel("nats a character")
    return figure


def decoding(found: dict) -> Figure:
    """Tokens a second behind so many others: results/bench.json."""
    start, bench = "a token at position ", {row["work"]: row["ours"] for row in found["rows"]}
    at = {int(w.removeprefix(start).replace(",", "")): y for w, y in bench.items() if start in w}
    x, (y, low, high) = np.array(list(at)), np.array(list(at.values())).T
    reading = 1e9 * bench["limit: memory copy"][0] / (CACHED * x)
    figure = Figure(figsize=(5.5, 3.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.13, right=0.97, top=0.95, bottom=0.16)
    axes.fill_between(x, low, high, color=BLUE, alpha=0.2, lw=0)
    axes.plot(x, y, "o-", color=BLUE, markersize=3, label="a token")
    axes.plot(x, reading, "--", color="0.4", lw=1, label="reading its cache, at the rate of a copy")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(low.min() / 2, 3 * high.max())
    axes.set_xticks(x, [f"{n // 1024}k" if n >= 1024 else str(n) for n in x])
    axes.minorticks_off()
    axes.set_xlabel("position of the token")
    axes.set_ylabel("tokens a second")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def condense(runs: list[str], path: Path) -> None:
    """The held-out losses of finished runs, out of their metrics.jsonl, into one small file."""
    rows: dict[tuple, dict] = {}
    for folder in map(Path, runs):
        try:
            config = json.loads((folder / "config.json").read_text())
            named = {"run": config["name"] or config["pos"], "seed": config["seed"]}
            lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
            found = [row for row in lines if "val/loss" in row]
            steps = [(*named.values(), row["iter"]) for row in found]
        except (OSError, ValueError, KeyError):
            raise ValueError(f"{folder} is not the whole folder of a run of train.py") from None
        if rows.keys() & set(steps):
            raise ValueError(f"{folder} is the second run {named['run']} of seed {named['seed']}")
        for key, row in zip(steps, found, strict=True):
            losses = {name: round(row[name], 5) for name in LOSSES.values() if name in row}
            rows[key] = named | {"iter": row["iter"]} | losses
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows.values())) + "\n]\n")


def pictures(root: Path) -> dict[Path, bytes]:
    """Every file that is drawn for the README."""
    rows = read(root / "results/training.json", {"run", "seed", "iter"})
    bench, scores = json.loads((root / "results/bench.json").read_text()), load(root)
    made = {"extrapolation": lambda: extrapolation(scores), "training": lambda: training(rows)}
    return drawn(root, made | {"decoding": lambda: decoding(bench)})


def readme(root: Path) -> tuple[str, list[str]]:
    """README.md as it should be, and the names of the tables that are not."""
    text, found = (root / "README.md").read_text(), []
    made = tables.tables(**load(root))
    for name, maker in (("faults", tables.faults), ("bench", tables.speed)):
        made[name] = maker(json.loads((root / f"results/{name}.json").read_text()))
    markers(text, made)
    for name, table in made.items():
        old, text = text, splice(text, name, table)
        found += [f"README table {name}"] * (text != old)
    return text, found


def stale(root: Path) -> list[str]:
    """What is not as it would be made now."""
    return redrawn(pictures(root)) + readme(root)[1]


def main(argv: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_mutually_exclusive_group().add_argument
    add("--training", nargs="+", metavar="RUN", help="run folders to condense into "
        "results/training.json first")  # fmt: skip
    add("--check", action="store_true", help="write nothing; exit 1 where what is there is not "
        "what would be made")  # fmt: skip
    args = parser.parse_args(argv)
    if args.check:
        old = stale(root)
        if old:
            print(
                f"error: {', '.join(old)} not up to date; run python -m experiments.report",
                file=sys.stderr,
            )
        return 1 if old else 0
    if args.training:
        condense(args.training, root / "results/training.json")
    for path, content in pictures(root).items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (root / "README.md").write_text(readme(root)[0])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
