"""The figures of the results: by context length, while training, and of generation.

Margins are fixed: a layout that is fitted to the text would differ from machine to machine.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation import drawing
from evaluation.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, Line, Look
from evaluation.tables import CEILING, TUNED, UNSCALED, Method, Scores, rank
from evaluation.training import LOSSES
from positions import POSITIONS
from rope import SCALINGS

ENCODING_PALETTE = (ORANGE, PINK, BLACK, GREEN, BLUE, SKY, RED)  # by order in POSITIONS
SCALING_PALETTE = (BLACK, ORANGE, SKY, GREEN, RED, BLUE, PINK)  # by order in SCALINGS
CACHED = 2 * 2 * 64 * 4  # bytes a position: keys and values of bench.py's two layers, 64 channels
TOP = 1.3  # nats above the sliding window at which a panel ends

Panel = dict[str, tuple[Method, Look]]  # by label


def run_looks(runs: set[str], pos: dict[str, str]) -> dict[str, Look]:
    """A colour a run: by the place of its encoding in POSITIONS; further runs come after those.

    pos: the encoding of each run.
    """
    looks: dict[str, Look] = {}
    encodings = list(POSITIONS)
    later = len(encodings)
    taken = set()
    # The run with the shortest name takes the colour of its encoding.
    for run in sorted(runs, key=lambda run: (len(run), run)):
        index = rank(pos.get(run, run), encodings)
        if index in taken or index == len(encodings):
            index, later = later, later + 1
        taken.add(index)
        looks[run] = drawing.look(index, ENCODING_PALETTE)
    return looks


def encoding_panel(text: Scores, keys: Scores) -> Panel:
    """Zero-shot models without a scaling, of all that have scores past the trained length."""
    methods = dict.fromkeys([*text.methods, *keys.methods])
    shown = [m for m in methods if m.is_zero_shot and m.scaling in UNSCALED]
    shown = [m for m in shown if is_scored_beyond(text, m) or is_scored_beyond(keys, m)]
    looks = run_looks({method.run for method in shown}, keys.pos | text.pos)
    panel = {}
    for method in shown:
        label = method.run if method.scaling == "none" else f"{method.run}, {method.scaling}"
        dash = "--" if method.scaling == "interpolate" else looks[method.run].dash
        panel[label] = method, looks[method.run]._replace(dash=dash)
    return panel


def scaling_look(name: str, names: list[str] | None = None) -> Look:
    """A colour a scaling, by its place in SCALINGS; names: scalings that are not in it."""
    new = [name for name in names or [] if name not in SCALINGS]
    return drawing.look(rank(name, [*SCALINGS, *new]), SCALING_PALETTE)


def scaling_panel(text: Scores, keys: Scores) -> Panel:
    """`rope` with each dynamic scaling that has scores, and the ceiling."""
    methods = dict.fromkeys([*text.methods, *keys.methods])
    dynamic = [m.scaling.removeprefix("dynamic_") for m in methods if is_dynamic_rope(m)]
    names = list(dict.fromkeys(["none", *dynamic]))
    panel = {}
    for name in names:
        method = Method("rope", "none" if name == "none" else f"dynamic_{name}")
        panel[name] = method, scaling_look(name, names)
    panel["trained at 4x"] = Method(CEILING), Look(PINK, "--")
    return panel


def is_dynamic_rope(method: Method) -> bool:
    return method.run == "rope" and method.scaling.startswith("dynamic_")


def is_scored_beyond(scores: Scores, method: Method) -> bool:
    longer = [length for length in scores.lengths if length > scores.trained]
    return any(
        (method, length) in scores.by_cell and scores.by_cell[method, length].score
        for length in longer
    )


def length_lines(scores: Scores, panel: Panel) -> list[Line]:
    """Scores by length; the band is a standard deviation over seeds to either side."""
    lines = []
    for label, (method, look) in panel.items():
        points = []
        for length in scores.lengths:
            summary = scores.by_cell.get((method, length))
            if summary and summary.score:
                mean, spread = summary.score.mean, summary.spread or 0
                points.append((length, mean, mean - spread, mean + spread))
        if points:
            lines.append(drawing.line(label, look, points))
    return lines


def extrapolation(text: Scores, keys: Scores) -> Figure:
    """Loss on prose and accuracy of retrieval by context length: encodings, then scalings."""
    figure = Figure(figsize=(9.5, 6.6))
    grid = figure.subplots(2, 2)
    figure.subplots_adjust(left=0.06, right=0.8, top=0.95, bottom=0.08, wspace=0.24, hspace=0.26)
    losses = [s.score.mean for s in text.by_cell.values() if s.score]
    lowest = min(losses, default=0)
    unscaled = text.at(Method("rope"), 1)
    window = unscaled.score.mean if unscaled else lowest
    low = min(window - 0.2, lowest - 0.05)
    panels = {
        "encodings, unscaled": encoding_panel(text, keys),
        "rope, dynamic scalings": scaling_panel(text, keys),
    }
    for (title, panel), (left, right) in zip(panels.items(), grid, strict=True):
        left.set_title(f"prose: {title}")
        right.set_title(f"retrieval: {title}")
        left.set_ylabel("loss, nats a character")
        right.set_ylabel("accuracy")
        left.set_ylim(low, window + TOP)
        right.set_ylim(-0.02, 1.02)
        draw_window(left, window)
        for axes, scores in ((left, text), (right, keys)):
            drawing.draw_lines(axes, length_lines(scores, panel))
            drawing.length_axis(axes, scores.lengths, scores.trained)
        drawing.legend_outside(right, left)
    for axes in grid[-1]:
        axes.set_xlabel("context length, characters (dashed: trained length)")
    return figure


def draw_window(axes: Axes, loss: float) -> None:
    """A level for the loss of the sliding window."""
    axes.axhline(loss, color=GREY, ls=":", lw=1)
    place = {"transform": axes.get_yaxis_transform(), "va": "top", "fontsize": 8}
    axes.text(0.02, loss - 0.02, "sliding window", color=GREY, **place)


def training(rows: list[dict], pos: dict[str, str]) -> Figure:
    """Validation loss at 1x, 2x and 4x against steps, of the zero-shot models.

    rows: of results/training.jsonl; pos: the encoding of each run.
    """
    figure = Figure(figsize=(9.5, 3.2))
    panels = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(left=0.06, right=0.89, top=0.9, bottom=0.15, wspace=0.1)
    shown = [row for row in rows if row["run"] != CEILING and not row["run"].startswith(TUNED)]
    lowest = min((row[n] for row in shown for n in LOSSES.values() if n in row), default=1.6)
    for axes, (ratio, name) in zip(panels, LOSSES.items(), strict=True):
        axes.set_title(f"validation loss at {ratio}")
        axes.set_xlabel("step")
        axes.set_ylim(lowest - 0.1, lowest + TOP)
        drawing.draw_lines(axes, training_lines(shown, name, pos))
    panels[0].set_ylabel("nats a character")
    drawing.legend_outside(panels[-1], *panels[:-1])
    return figure


def training_lines(rows: list[dict], name: str, pos: dict[str, str]) -> list[Line]:
    """Mean over seeds, with a band of a standard deviation to either side."""
    losses: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if name in row:
            losses.setdefault(row["run"], {}).setdefault(row["iter"], []).append(row[name])
    looks = run_looks({row["run"] for row in rows}, pos)
    lines = []
    for run, by_step in losses.items():
        points = []
        for step, values in by_step.items():
            mean, spread = np.mean(values), np.std(values, ddof=len(values) > 1)
            points.append((step, mean, mean - spread, mean + spread))
        lines.append(drawing.line(run, looks[run], points))
    return lines


def decoding(record: dict) -> Figure:
    """Tokens a second by position in the text: results/bench.json."""
    start = "a token at position "
    rates = {row["work"]: row["ours"] for row in record["rows"]}
    by_position = {int(w[len(start) :].replace(",", "")): y for w, y in rates.items() if start in w}
    x = np.array(list(by_position))
    y, low, high = np.array(list(by_position.values())).T
    reading = 1e9 * rates["limit: memory copy"][0] / (CACHED * x)
    figure = Figure(figsize=(5.5, 3.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.13, right=0.97, top=0.95, bottom=0.16)
    axes.fill_between(x, low, high, color=BLUE, alpha=0.2, lw=0)
    axes.plot(x, y, "o-", color=BLUE, markersize=3, label="a token")
    label = "reading its cache, at the rate of a copy"
    axes.plot(x, reading, "--", color=GREY, lw=1, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(low.min() / 2, 3 * high.max())
    axes.set_xticks(x, [f"{n // 1024}k" if n >= 1024 else str(n) for n in x])
    axes.minorticks_off()
    axes.set_xlabel("position of the token")
    axes.set_ylabel("tokens a second")
    axes.legend(loc="lower left")
    return figure
