"""The figures of docs/claims.md: which angles a plane has met, fine-tuning, the base."""

from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rope
from evaluate import Form
from evaluation.drawing import BLACK, BLUE, GREEN, ORANGE, RED, SKY, Line, draw
from evaluation.tables import Method, Scores
from experiments.claims import NONE, YARN, by_turns
from experiments.claims import base as theta
from experiments.claims.finetune import SCALINGS, STEPS

HEAD_DIM = 32
BEFORE = 4  # where no step at all stands on a logarithmic axis
LENGTHS = {"prose": 256, "keys": 128}  # trained
READ = {  # form of experiments.bands: how it is named, colour
    "none": ("nothing", BLACK),
    "slow planes, under 1": ("slow planes", BLUE),
    "fast planes, from 1": ("fast planes", ORANGE),
    "linear": ("all: linear", SKY),
    "yarn": ("yarn", RED),
}
COLOURS = dict(zip(SCALINGS, (BLACK, ORANGE, SKY, RED), strict=True))


def planes(prose: Scores, keys: Scores) -> Figure:
    """Turns of each plane in training, and what slowing some of them does at 4x."""
    figure = Figure(figsize=(9.5, 3.4))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    figure.subplots_adjust(left=0.07, right=0.985, top=0.88, bottom=0.16, wspace=0.75)
    turning(left)
    methods = [Method("rope", label) for label in READ]
    bars(middle, [prose.at(m, 4 * prose.trained) for m in methods], "over_window")
    bars(right, [keys.at(m, 4 * keys.trained) for m in methods], "accuracy")
    middle.set_title("prose at 4x", fontsize=10)
    middle.set_xlabel("harm, nats a character")
    right.set_title("retrieval at 4x", fontsize=10)
    right.set_xlabel("keys named exactly")
    right.set_xlim(0, 1)
    return figure


def turning(axes: Axes) -> None:
    """Full turns within the trained length, and within 4x as long, plane by plane."""
    inv_freq = rope.frequencies(HEAD_DIM)[0]
    index = np.arange(HEAD_DIM // 2)
    for (task, length), colour in zip(LENGTHS.items(), (BLACK, GREEN), strict=True):
        turns = by_turns(inv_freq, length).numpy()
        axes.plot(index, turns, "o-", color=colour, markersize=3, label=f"{task}, L = {length}")
        axes.plot(index, 4 * turns, ":", color=colour, lw=1)
    axes.set_yscale("log")
    axes.set_ylim(3e-3, 300)
    axes.axhspan(3e-3, 1, color="0.93", lw=0)
    said = "less than a turn:\nat 4x (dotted) they\nmeet new angles"
    axes.text(0, 0.04, said, va="top", fontsize=8, color="0.3")
    axes.set_title("full turns within the trained length", fontsize=10)
    axes.set_xlabel("plane, fast to slow")
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def bars(axes: Axes, rows: list[dict], name: str) -> None:
    """A bar a way of reading, with its 95 % interval."""
    low, high = bounds(name)
    for place, (row, (_, colour)) in enumerate(zip(rows, READ.values(), strict=True)):
        error = [[row[name] - row[low]], [row[high] - row[name]]]
        axes.barh(place, row[name], color=colour, xerr=error, ecolor="0.4", height=0.65)
    axes.set_yticks(range(len(READ)), [label for label, _ in READ.values()])
    axes.set_ylabel("slowed by 4")
    axes.invert_yaxis()


def tuning(prose: Scores, keys: Scores) -> Figure:
    """Harm and keys against the steps of fine-tuning at 4x, with their 95 % intervals."""
    figure = Figure(figsize=(9.5, 3.2))
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.07, right=0.9, top=0.9, bottom=0.16, wspace=0.75)
    shown = [
        (prose, 4, "over_window", "harm on prose at 4x", (-0.05, 1)),
        (prose, 1, "over_window", "harm on prose at 1x", (-0.05, 1)),
        (keys, 4, "accuracy", "keys named at 4x", (-0.02, 1.02)),
    ]
    for axes, (scores, ratio, name, title, ends) in zip(panels, shown, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("steps, each one window of 4x")
        axes.set_xscale("log")
        axes.set_xticks([BEFORE, *STEPS], ["0", *map(str, STEPS)])
        axes.minorticks_off()
        axes.axhline(0, color="0.4", ls=":", lw=1)
        draw(axes, [line(scores, scaling, ratio, name) for scaling in SCALINGS], *ends)
    return figure


def line(scores: Scores, scaling: str, ratio: int, name: str) -> Line:
    at = {BEFORE: Method("rope", scaling, None if scaling == "none" else 4.0)}
    at |= {steps: Method(f"tuned-{scaling}-{steps}", scaling) for steps in STEPS}
    rows = {steps: scores.at(method, ratio * scores.trained) for steps, method in at.items()}
    return curve(scaling, COLOURS[scaling], rows, name)


def curve(label: str, colour: str, rows: dict[int, dict], name: str) -> Line:
    """Numbers by x, with half their 95 % intervals; of a gain, what is lost."""
    low, high = bounds(name)
    sign = -1 if name == "gain" else 1
    points = [(x, sign * row[name], (row[high] - row[low]) / 2) for x, row in rows.items()]
    return Line(label, colour, "-", *np.array(points, float).T)


def bases(prose: Scores, keys: Scores) -> Figure:
    """What is lost past the trained length, and keys named, against the base in training."""
    figure = Figure(figsize=(8, 3.2))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.86, top=0.9, bottom=0.16, wspace=0.6)
    left.set_title("lost on prose at 4x, nats", fontsize=10)
    right.set_title("keys named", fontsize=10)
    forms = (NONE, 4, BLACK), (YARN, 4, RED), (NONE, 1, GREEN)
    draw(left, [by_base(prose, *form, "gain") for form in forms[:2]], -0.02, 1.7)
    draw(right, [by_base(keys, *form, "accuracy") for form in forms], -0.02, 1.02)
    for axes in (left, right):
        axes.set_xlabel("base in training")
        axes.set_xscale("log")
        axes.set_xticks(theta.BASES, "24 100 10k 1M".split())
        axes.minorticks_off()
    return figure


def by_base(scores: Scores, form: Form, ratio: int, colour: str, name: str) -> Line:
    models = zip(theta.BASES, theta.MODELS, strict=True)
    rows = {b: scores.at(Method(m.name, form.label), ratio * scores.trained) for b, m in models}
    return curve(f"{form.label} at {ratio}x", colour, rows, name)


def bounds(name: str) -> tuple[str, str]:
    """What the ends of its interval are called."""
    return ("ci_low", "ci_high") if name == "accuracy" else (f"{name}_low", f"{name}_high")


def figures(prose: Scores, keys: Scores) -> dict[str, Callable[[], Figure]]:
    """By the name of their files in docs/."""
    return {make.__name__: partial(make, prose, keys) for make in (planes, tuning, bases)}
