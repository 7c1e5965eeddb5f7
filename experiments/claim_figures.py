"""The figures of docs/claims.md."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rope
from evaluation import drawing, figures
from evaluation.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, RED, SKY, Line, Look
from evaluation.statistics import Estimate
from evaluation.tables import Method, Scores
from experiments.claims import NONE, YARN
from experiments.claims import base as base_claim
from experiments.claims import finetune as finetune_claim

HEAD_DIM = 32  # of the models of the claims
TRAINED = {"prose": 256, "retrieval": 128}  # lengths
PLANES = {  # variants of the claim which_planes: label, colour
    "none": ("nothing", BLACK),
    "slow planes, under 1": ("slow planes", BLUE),
    "fast planes, from 1": ("fast planes", ORANGE),
    "linear": ("all: linear", SKY),
    "yarn": ("yarn", RED),
}
NO_STEPS = 4  # where zero steps stand on a logarithmic axis


def planes(prose: Scores, keys: Scores) -> Figure:
    """Revolutions of each plane in training, and the scores at 4x if some planes are slowed."""
    figure = Figure(figsize=(9.5, 3.4))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    figure.subplots_adjust(left=0.05, right=0.985, top=0.9, bottom=0.15, wspace=0.6)
    revolutions(left)
    methods = [Method("rope", label) for label in PLANES]
    bars(middle, [prose.at(method, 4).above_window for method in methods])
    bars(right, [keys.at(method, 4).score for method in methods])
    middle.set_title("prose at 4x")
    middle.set_xlabel("excess loss, nats a character")
    middle.set_ylabel("slowed by 4")
    right.set_title("retrieval at 4x")
    right.set_xlabel("accuracy")
    right.set_xlim(0, 1)
    return figure


def revolutions(axes: Axes) -> None:
    """Revolutions within the trained length, and within 4x as long, plane by plane."""
    inv_freq = rope.frequencies(HEAD_DIM)[0]
    index = np.arange(HEAD_DIM // 2)
    for (task, length), colour in zip(TRAINED.items(), (BLACK, GREEN), strict=True):
        rotations = rope.rotations(inv_freq, length).numpy()
        axes.plot(index, rotations, "o-", color=colour, markersize=3, label=f"{task}, L = {length}")
        axes.plot(index, 4 * rotations, ":", color=colour, lw=1)
    axes.set_yscale("log")
    axes.set_ylim(3e-3, 300)
    axes.axhspan(3e-3, 1, color="0.93", lw=0)
    note = "less than one revolution:\nat 4x (dotted)\nthe angles are new"
    axes.text(0, 0.04, note, va="top", fontsize=8, color="0.3")
    axes.set_title("revolutions within the trained length")
    axes.set_xlabel("plane, high to low frequency")
    axes.legend(loc="upper right")


def bars(axes: Axes, estimates: list[Estimate]) -> None:
    """A bar a variant of PLANES, with its 95 % interval."""
    for place, (estimate, (_, colour)) in enumerate(zip(estimates, PLANES.values(), strict=True)):
        error = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
        axes.barh(place, estimate.mean, color=colour, xerr=error, ecolor=GREY, height=0.65)
    axes.set_yticks(range(len(PLANES)), [label for label, _ in PLANES.values()])
    axes.invert_yaxis()


def tuning(prose: Scores, keys: Scores) -> Figure:
    """Excess loss and accuracy against the steps of fine-tuning at 4x."""
    figure = Figure(figsize=(9.5, 3.2))
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.04, right=0.91, top=0.9, bottom=0.15, wspace=0.2)
    shown = [
        (prose, 4, "above_window", "excess loss at 4x, nats", (-0.05, 1)),
        (prose, 1, "above_window", "excess loss at 1x, nats", (-0.05, 1)),
        (keys, 4, "score", "retrieval at 4x, accuracy", (-0.02, 1.02)),
    ]
    for axes, (scores, ratio, name, title, limits) in zip(panels, shown, strict=True):
        axes.set_title(title)
        axes.set_xlabel("steps, each one window of 4x")
        axes.set_xscale("log")
        axes.set_xticks([NO_STEPS, *finetune_claim.STEPS], [0, *finetune_claim.STEPS])
        axes.minorticks_off()
        axes.set_ylim(*limits)
        axes.axhline(0, color=GREY, ls=":", lw=1)
        drawing.draw_lines(axes, tuning_lines(scores, ratio, name))
    drawing.legend_outside(panels[-1])
    return figure


def tuning_lines(scores: Scores, ratio: int, name: str) -> list[Line]:
    lines = []
    for scaling in finetune_claim.SCALINGS:
        methods = {NO_STEPS: Method("rope", scaling, None if scaling == "none" else 4.0)}
        for steps in finetune_claim.STEPS:
            methods[steps] = Method(f"tuned-{scaling}-{steps}", scaling)
        points = [(x, *getattr(scores.at(m, ratio), name)) for x, m in methods.items()]
        lines.append(drawing.line(scaling, figures.scaling_look(scaling), points))
    return lines


def bases(prose: Scores, keys: Scores) -> Figure:
    """Loss over the same model at 1x, and accuracy, against the base in training."""
    figure = Figure(figsize=(8, 3.2))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.05, right=0.85, top=0.9, bottom=0.15, wspace=0.16)
    left.set_title("prose at 4x, loss minus that at 1x, nats")
    right.set_title("retrieval, accuracy")
    shown = ((NONE.label, 4, BLACK), (YARN.label, 4, RED), (NONE.label, 1, GREEN))
    drawing.draw_lines(left, [by_base(prose, *line, "gain") for line in shown[:2]])
    drawing.draw_lines(right, [by_base(keys, *line, "score") for line in shown])
    left.set_ylim(-0.02, 1.7)
    right.set_ylim(-0.02, 1.02)
    for axes in (left, right):
        axes.set_xlabel("base in training")
        axes.set_xscale("log")
        axes.set_xticks(base_claim.BASES, "24 100 10k 1M".split())
        axes.minorticks_off()
    drawing.legend_outside(right, left)
    return figure


def by_base(scores: Scores, scaling: str, ratio: int, colour: str, name: str) -> Line:
    points = []
    for base, model in zip(base_claim.BASES, base_claim.MODELS, strict=True):
        estimate = getattr(scores.at(Method(model.name, scaling), ratio), name)
        points.append((base, *(-estimate if name == "gain" else estimate)))
    return drawing.line(f"{scaling} at {ratio}x", Look(colour), points)
