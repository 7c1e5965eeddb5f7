"""How a figure of curves is drawn, written and compared with one that was drawn before."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (  # Okabe and Ito's, told apart by the colour-blind
    "#000000 #E69F00 #56B4E9 #009E73 #0072B2 #D55E00 #CC79A7".split()
)
VECTOR = {"Date": None, "Creator": "plot.py"}  # not the version of matplotlib
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
