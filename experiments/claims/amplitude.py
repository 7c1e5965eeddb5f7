"""Sinusoids at the tokens' own amplitude and at 35 times that, beside other encodings.

The paper multiplies its tokens by the root of the width before it adds the table of unit amplitude
(arXiv:1706.03762, 3.4), which makes both about as loud. Left out, as it often is, beside tokens
that start at 0.02 the table is 35 times too loud.
"""

import math

import torch
from torch import Tensor

from experiments.claims import AS_TRAINED, NONE, Trained, judge, like_rope
from positions import INIT_STD, POSITIONS, Sinusoidal
from runtime import errors

NAME = "sinusoidal-35x"


class Loud(Sinusoidal):
    """The table of the paper, of unit amplitude, on tokens that are not made louder."""

    def embed(self, x: Tensor, positions: Tensor, length: int) -> Tensor:
        quiet = super().embed(torch.zeros_like(x), positions, length)
        return x + quiet / (INIT_STD * math.sqrt(2))


MODELS = [Trained(name, [AS_TRAINED]) for name in ("nope", "learned", "sinusoidal")]
MODELS += [like_rope(NAME, [AS_TRAINED], f"--pos={NAME}"), Trained("rope", [NONE])]


def main(argv: list[str]) -> None:
    POSITIONS[NAME] = Loud
    judge("amplitude", MODELS, argv)


if __name__ == "__main__":
    errors.run(main)
