"""What low precision in the rotary tables costs: one step of their making in bfloat16 at a time."""

from typing import ClassVar

import torch
from torch import Tensor

from experiments.claims import NONE, YARN, Trained, Variant, compare, new_position
from positions import Rope
from runtime import errors


class Rounded(Rope):
    """RoPE with one step on the way to its table rounded to bfloat16."""

    step: ClassVar[str]  # positions, inv_freq, angles or table

    def round(self, x: Tensor, step: str) -> Tensor:
        """x, rounded where this is the step to round."""
        return x.to(torch.bfloat16).to(x.dtype) if step == self.step else x

    def table(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor, float]:
        inv_freq, attention_factor = self.frequencies(length)
        inv_freq = self.round(inv_freq, "inv_freq")
        positions = self.round(positions.double(), "positions")
        angles = self.round(positions[..., None] * inv_freq, "angles")  # (T, F)
        cos = self.round(angles.cos().float(), "table")
        sin = self.round(angles.sin().float(), "table")
        return cos, sin, attention_factor**2


class RoundedPositions(Rounded):
    step = "positions"


class RoundedFrequencies(Rounded):
    step = "inv_freq"


class RoundedAngles(Rounded):
    step = "angles"


class RoundedTable(Rounded):
    step = "table"


def rounded(encoding: type[Rounded], scaling: Variant = NONE) -> Variant:
    """The variant with one step rounded, unscaled or under a scaling."""
    label = f"bfloat16 {encoding.step}"
    pos = new_position(f"rope, {label}", encoding)
    prefix = "" if scaling is NONE else f"{scaling.label}, "
    return Variant(prefix + label, scaling.overrides | {"pos": pos})


VARIANTS = [
    NONE,
    rounded(RoundedPositions),
    rounded(RoundedFrequencies),
    rounded(RoundedAngles),
    rounded(RoundedTable),
    YARN,  # it extrapolates, so that the loss of no scaling does not hide that of rounding
    rounded(RoundedPositions, YARN),
    rounded(RoundedFrequencies, YARN),
    rounded(RoundedTable, YARN),
]
RATIOS = (1, 4, 16)
MODELS = [Trained("rope", VARIANTS)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("precision", MODELS, argv, RATIOS))
