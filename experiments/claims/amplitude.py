"""Sinusoids at the amplitude of the tokens and at 35 times that, beside other encodings.

The paper multiplies its tokens by the root of the width before it adds the table of unit amplitude
(arXiv:1706.03762, 3.4), so that both have about the same amplitude. Code often omits that factor;
beside tokens that start at 0.02 the amplitude of the table is then 35 times too large.
"""

import math

import torch
from torch import Tensor

from experiments.claims import AS_TRAINED, NONE, Trained, compare, new_position, rope_variant
from positions import INIT_STD, Place, Sinusoidal
from runtime import errors


class UnitSinusoidal(Sinusoidal):
    """The table of the paper, of unit amplitude, added to tokens that are not multiplied."""

    def embed(self, x: Tensor, at: Place) -> Tensor:
        scaled_table = super().embed(torch.zeros_like(x), at)
        return x + scaled_table / (INIT_STD * math.sqrt(2))


NAME = new_position("sinusoidal-35x", UnitSinusoidal)
MODELS = [Trained(name, [AS_TRAINED]) for name in ("nope", "learned", "sinusoidal")]
MODELS += [rope_variant(NAME, [AS_TRAINED], f"--pos={NAME}"), Trained("rope", [NONE])]

if __name__ == "__main__":
    errors.run(lambda argv: compare("amplitude", MODELS, argv))
