"""Figures and README tables from results/*.json alone.

docs/extrapolation.svg .png   loss and retrieval against context length
docs/training.svg .png        held-out loss at 1x, 2x and 4x while training
README.md                     what stands between <!-- plot.py NAME --> and <!-- /plot.py NAME -->
"""

import argparse
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import tables
from tables import CEILING, Method, Scores, load, markers, read, splice, zero_shot

ROOT = Path(__file__).parent
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (  # Okabe and Ito's, told apart by the colour-blind
    "#000000 #E69F00 #56B4E9 #009E73 #0072B2 #D55E00 #CC79A7".split()
)
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
VECTOR = {"Date": None, "Creator": "plot.py"}  # not the version of matplotlib
HARM = 1.3  # nats above the window at which a panel ends: what leaves it is marked
STYLE = {
    "svg.hashsalt": "nanorope",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Line(NamedTuple):
    label: str
    colour: str
    style: str
    x: np.ndarray
    y: np.ndarray  # mean over seeds
    sd: np.ndarray


def apart(wanted: list[float], gap: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Places nearest to those wanted (least squares), in their order, `gap` apart, in bounds.

    What overlaps is pooled into a block around its mean: isotonic regression (Barlow, 1972).
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    blocks: list[list[float]] = []
    for place in np.asarray(wanted, float)[order] - steps:
        blocks.append([place])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    pooled = np.concatenate([np.full(len(b), np.mean(b)) for b in blocks]) if blocks else steps
    places = np.empty(len(wanted))
    places[order] = np.clip(pooled, low, max(low, high - gap * (len(wanted) - 1))) + steps
    return places


def draw(axes: Axes, lines: list[Line], low: float, high: float) -> None:
    """Curves with bands, named at the right edge; a triangle where one leaves at the top."""
    axes.set_ylim(low, high)
    lines = sorted(lines, key=lambda line: line.y[-1])  # also those that end beyond the top
    for line in lines:
        band = line.y - line.sd, line.y + line.sd
        axes.fill_between(line.x, *band, color=line.colour, alpha=0.2, lw=0)
        axes.plot(line.x, line.y, line.style, color=line.colour, marker="o", markersize=2.5)
        for x in leaves(line, high):
            axes.plot(x, high, "^", color=line.colour, markersize=6, clip_on=False, gid="off-scale")
    height = axes.get_position().height * axes.figure.get_figheight() * 72  # points
    ends = [(min(line.y[-1], high) - low) / (high - low) for line in lines]
    for line, end, place in zip(lines, ends, apart(ends, 11 / height), strict=True):
        gone = line.y[-1] > high
        leader = {"arrowstyle": "-", "color": line.colour, "lw": 0.6, "relpos": (0, 0.5)}
        axes.annotate(
            line.label + (f" ▲ {line.y[-1]:.2f}" if gone else ""),
            (line.x[-1], low + end * (high - low)),
            (1.08, place),
            textcoords="axes fraction",
            va="center",
            color=line.colour,
            arrowprops=None if gone else leader,
            annotation_clip=False,
        )


def leaves(line: Line, high: float) -> list[float]:
    """Where a line crosses the top on its way up, x on a log scale; its start if always above."""
    above = line.y > high
    ups = np.flatnonzero(above[1:] & ~above[:-1])
    part = (high - line.y[ups]) / (line.y[ups + 1] - line.y[ups])
    crossings = line.x[ups] * (line.x[ups + 1] / line.x[ups]) ** part
    return list(line.x[:1] if above.all() else crossings)


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


def drawn(root: Path, figures: dict[str, Callable[[], Figure]]) -> dict[Path, bytes]:
    """The files of figures by name, and what they hold."""
    made = {}
    with style.context(["default", STYLE]):  # whatever the machine's matplotlibrc says
        for name, make in figures.items():
            figure = make()
            for kind, settings in (("svg", {"metadata": VECTOR}), ("png", {"dpi": 160})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, **settings)
                made[root / f"docs/{name}.{kind}"] = buffer.getvalue()
    return made


def pictures(root: Path) -> dict[Path, bytes]:
    """Every file that is drawn for the README."""
    rows = read(root / "results/training.json", {"run", "seed", "iter"})
    scores = load(root)
    made = {"extrapolation": lambda: extrapolation(scores), "training": lambda: training(rows)}
    return drawn(root, made)


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


def alike(a: str, b: str) -> bool:
    """Equal but for where text stands, and last digits: releases of matplotlib differ there."""
    number = r"-?\d+\.\d+"
    a, b = (re.sub("<text [^>]*>", "<text>", svg) for svg in (a, b))
    if re.sub(number, "#", a) != re.sub(number, "#", b):
        return False
    values = [np.array(re.findall(number, svg), float) for svg in (a, b)]
    return np.allclose(*values, rtol=0, atol=0.005)


def redrawn(made: dict[Path, bytes]) -> list[str]:
    """Drawings that are not as they would be now. PNG files, which differ by machine, may."""
    return [
        f"docs/{path.name}"
        for path, now in made.items()
        if path.suffix == ".svg" and not (path.exists() and alike(path.read_text(), now.decode()))
    ]


def stale(root: Path) -> list[str]:
    """What is not as it would be made now."""
    return redrawn(pictures(root)) + readme(root)[1]


def main(argv: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python plot.py",
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
            print(f"error: {', '.join(old)} not up to date; run python plot.py", file=sys.stderr)
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
