"""What low precision in the rotary tables costs: bfloat16 positions, frequencies, or tables."""

import torch
from torch import Tensor

from evaluation.variants import Variant
from experiments.claims import NONE, YARN, Trained, judge
from model import GPT, GPTConfig
from positions import Rope
from runtime import checkpoint, errors

PLACES = ("positions", "inv_freq", "angles", "table")


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


class Rounded(Rope):
    """RoPE with one of its steps rounded to bfloat16."""

    def __init__(self, config: GPTConfig, place: str):
        super().__init__(config)
        self.place = place

    def table(self, positions: Tensor, length: int) -> tuple[Tensor, ...]:
        inv_freq, _ = self.frequencies(length)
        positions = positions.double()
        if self.place == "positions":
            positions = rounded(positions)
        if self.place == "inv_freq":
            inv_freq = rounded(inv_freq)
        angles = positions[:, None] * inv_freq  # (T, F)
        if self.place == "angles":
            angles = rounded(angles)
        table = angles.cos().float(), angles.sin().float()
        return tuple(map(rounded, table)) if self.place == "table" else table


def with_rounding(place: str):
    def build(state: dict, config: GPTConfig) -> GPT:
        model = checkpoint.build(state, config)
        model.position = Rounded(config, place)
        return model

    return build


FORMS = [NONE, *(Variant(f"bfloat16 {place}", {}, with_rounding(place)) for place in PLACES), YARN]
FORMS += [  # where it reads on, and nothing hides what rounding does
    Variant(f"yarn, bfloat16 {place}", YARN.overrides, with_rounding(place))
    for place in ("positions", "inv_freq", "table")
]

RATIOS = (1, 4, 16)
MODELS = [Trained("rope", FORMS)]

if __name__ == "__main__":
    errors.end(lambda argv: judge("precision", MODELS, argv, RATIOS))
