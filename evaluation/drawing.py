"""Figures in one style: lines with bands, a legend outside the axes."""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.statistics import Summary

BLACK, ORANGE, SKY, GREEN, RED, BLUE, PINK = (  # Okabe and Ito's, distinct for the colour-blind
    "#000000 #E69F00 #56B4E9 #009E73 #D55E00 #0072B2 #CC79A7".split()
)
PALETTE = (BLACK, ORANGE, SKY, GREEN, RED, BLUE, PINK)
DASHES = ("-", "--", ":", "-.")
GREY = "0.4"
STYLE = {
    "svg.hashsalt": "nanorope",
    "svg.fonttype": "none",
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
VECTOR = {"Date": None, "Creator": "experiments/report.py"}  # not the version of matplotlib


class Look(NamedTuple):
    colour: str
    dash: str = "-"


class Line(NamedTuple):
    label: str
    look: Look
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray  # of the band
    high: np.ndarray


def look(index: int, palette: tuple[str, ...] = PALETTE) -> Look:
    """The index-th look: colours first, then the same colours in the next line style."""
    return Look(palette[index % len(palette)], DASHES[index // len(palette) % len(DASHES)])


def line(label: str, look: Look, points: Iterable[tuple[float, float, float, float]]) -> Line:
    """A line through (x, y, low, high)."""
    return Line(label, look, *np.array(sorted(points), float).T)


def draw_lines(axes: Axes, lines: list[Line]) -> None:
    for label, (colour, dash), x, y, low, high in lines:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(x, y, dash, color=colour, marker="o", markersize=2.5, lw=1.3, label=label)


def legend_outside(axes: Axes, *others: Axes) -> None:
    """A legend at the right of the axes, of all lines in it and in the others."""
    entries = {}
    for each in (axes, *others):
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.02), "borderaxespad": 0}
    axes.legend(entries.values(), entries, **place)


def length_axis(axes: Axes, lengths: list[int], trained: int) -> None:
    """Context lengths on a logarithmic axis; all past the trained length is shaded."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n // 1024}k" if n % 1024 == 0 else str(n) for n in lengths])
    axes.minorticks_off()
    axes.axvline(trained, color=GREY, ls="--", lw=0.8)
    axes.axvspan(trained, max([trained, *lengths]), color="0.95", lw=0, zorder=0)


def by_length(summaries: list[Summary], unit: str, kind: str) -> bytes:
    """A figure of scores by context length, a line a run and scaling, as svg or png."""
    with style.context(["default", STYLE]):
        scored = [summary for summary in summaries if summary.score]
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(summary.name for summary in scored))
        lines = []
        for index, name in enumerate(names):
            of_name = [s for s in scored if s.name == name]
            lines.append(line(name, look(index), [(s.key.length, *s.score) for s in of_name]))
        draw_lines(axes, lines)
        lengths = sorted({summary.key.length for summary in scored})
        for trained in sorted({summary.row["trained"] for summary in scored}):
            length_axis(axes, lengths, trained)
        axes.set_xlabel("context length, tokens (dashed: trained length)")
        axes.set_ylabel(f"{scored[0].row['metric']}, {unit}" if scored else unit)
        if names:
            legend_outside(axes)
        return content(figure, kind)


def content(figure: Figure, kind: str) -> bytes:
    """The file of a figure, svg or png."""
    settings = {"metadata": VECTOR} if kind == "svg" else {"dpi": 160}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **settings)
    return buffer.getvalue()


def is_alike(a: str, b: str) -> bool:
    """Equal but for the places of text and last digits: releases of matplotlib differ there."""
    number = r"-?\d+\.\d+"
    a, b = (re.sub("<text [^>]*>", "<text>", svg) for svg in (a, b))
    if re.sub(number, "#", a) != re.sub(number, "#", b):
        return False
    values = [np.array(re.findall(number, svg), float) for svg in (a, b)]
    return np.allclose(*values, rtol=0, atol=0.005)


def is_stale(path: Path, drawn: bytes) -> bool:
    """Whether a file is not as it would be drawn now. PNG files, which differ by machine, may."""
    if path.suffix != ".svg":
        return False
    return not (path.exists() and is_alike(path.read_text(encoding="utf-8"), drawn.decode()))
