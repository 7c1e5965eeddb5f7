"""The figures of docs/rope.md: what frequencies, angles and scores are, without any training."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rope
from evaluation import drawing, figures
from evaluation.drawing import BLACK, BLUE, GREY, ORANGE, RED

HEAD_DIM, TRAINED, FACTOR = 32, 256, 4.0  # of the prose models, read at four times their length
NEAR = 64  # tokens
INTERPOLATING = ("none", "linear", "ntk", "ntk_by_parts", "yarn", "llama3")


def frequencies(scaling: str) -> np.ndarray:
    """Radians a position of each plane at 4x: float64 (F,)."""
    return rope.frequencies(HEAD_DIM, 10000.0, scaling, FACTOR, TRAINED)[0].numpy()


def wavelengths() -> Figure:
    """How many tokens a full rotation of each plane takes, under each scaling."""
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.1, right=0.8, top=0.96, bottom=0.13)
    plane = np.arange(HEAD_DIM // 2)
    for scaling in INTERPOLATING:
        colour, _ = figures.scaling_look(scaling)
        wavelength = 2 * math.pi / frequencies(scaling)
        axes.plot(plane, wavelength, "o-", color=colour, markersize=2.5, lw=1.2, label=scaling)
    axes.set_yscale("log")
    for length, name in ((TRAINED, "trained length"), (FACTOR * TRAINED, "4x")):
        axes.axhline(length, color=GREY, ls="--", lw=0.8)
        axes.text(0, length * 1.1, name, color=GREY, fontsize=8)
    axes.set_xlabel("plane, high to low frequency")
    axes.set_ylabel("tokens in a full rotation")
    drawing.legend_outside(axes)
    return figure


def angles() -> Figure:
    """Angles that each plane meets up to the trained length, and in addition up to 4x."""
    figure = Figure(figsize=(9.5, 3.2))
    panels = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(left=0.07, right=0.985, top=0.9, bottom=0.16, wspace=0.08)
    for axes, scaling in zip(panels, ("none", "linear", "yarn"), strict=True):
        draw_angles(axes, scaling)
        axes.set_title(f"{scaling}, at 4x")
        axes.set_xlabel("plane, high to low frequency")
    panels[0].set_ylabel("angle, in full rotations")
    panels[-1].legend(loc="upper right")
    return figure


def draw_angles(axes: Axes, scaling: str) -> None:
    """Bars from 0 to the largest angle of a plane; a full rotation is all there is to see."""
    plane = np.arange(HEAD_DIM // 2)
    seen = np.minimum(1, frequencies("none") * TRAINED / (2 * math.pi))
    read = np.minimum(1, frequencies(scaling) * FACTOR * TRAINED / (2 * math.pi))
    axes.bar(plane, seen, color="0.85", width=0.9, label="seen in training")
    new = np.maximum(0, read - seen)
    axes.bar(plane, new, bottom=seen, color=RED, width=0.9, label="new at 4x")
    axes.set_xticks(plane[::3])
    axes.set_ylim(0, 1.25)


def scores() -> Figure:
    """The score of a query and a key of equal channels against their distance, near and far."""
    figure = Figure(figsize=(9.5, 3.2))
    near, far = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.06, right=0.9, top=0.9, bottom=0.16, wspace=0.06)
    for scaling, colour in (("none", BLACK), ("linear", ORANGE), ("yarn", RED), ("clip", BLUE)):
        score = score_by_distance(scaling)
        near.plot(score[: NEAR + 1], color=colour, lw=1.2, label=scaling)
        mean = np.convolve(score, np.ones(NEAR) / NEAR, "valid")
        far.plot(NEAR / 2 + np.arange(len(mean)), mean, color=colour, lw=1.2, label=scaling)
    far.axvspan(TRAINED, FACTOR * TRAINED, color="0.95", lw=0, zorder=0)
    far.axvline(TRAINED, color=GREY, ls="--", lw=0.8)
    near.set_title("each distance")
    far.set_title(f"mean over {NEAR} distances (dashed: trained length)")
    for axes, end in ((near, NEAR), (far, FACTOR * TRAINED)):
        axes.set_xlim(0, end)
        axes.set_xlabel("distance, tokens")
    near.set_ylabel("score, 1 at distance 0")
    drawing.legend_outside(far)
    return figure


def score_by_distance(scaling: str) -> np.ndarray:
    """Scores at distances 0 to 4x, of a key at position 0."""
    distance = torch.arange(int(FACTOR) * TRAINED + 1)
    x = torch.ones(len(distance), HEAD_DIM, dtype=torch.float64)
    cos, sin = rope.rotation_table(distance, torch.from_numpy(frequencies(scaling)))
    return ((rope.rotate(x, cos, sin) * x).sum(-1) / HEAD_DIM).numpy()


FIGURES = {"wavelengths": wavelengths, "angles": angles, "scores": scores}
