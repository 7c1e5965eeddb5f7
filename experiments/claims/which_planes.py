"""Which planes break past the trained length: those that turn fast, or those that turn slowly?

Only the planes of fewer than B turns within the trained length are slowed by the factor, or only
the others. At B = 1 the border is a wavelength of just the trained length.
"""

import torch

import rope
from experiments.claims import NONE, YARN, Trained, by_turns, dynamic, judge, known, yarn_factor
from runtime import errors

BORDERS = (0.5, 1, 2, 4, 8)


def slowed(border: float, slow: bool, sharpened: bool = False):
    """The scaling that slows one side of the border, with YaRN's temperature or without."""

    def scaling(head_dim: int, theta: float, factor: float, train_len: int) -> rope.Scaled:
        inv_freq = rope.none(head_dim, theta, factor, train_len)[0]
        chosen = (by_turns(inv_freq, train_len) < border) == slow
        sharp = yarn_factor(factor) if sharpened else 1.0
        return torch.where(chosen, inv_freq / factor, inv_freq), sharp

    return scaling


FORMS = [
    NONE,
    *(dynamic(f"slow planes, under {b:g}", slowed(b, slow=True)) for b in BORDERS),
    known("linear"),
    dynamic("fast planes, from 1", slowed(1, slow=False)),
    dynamic("slow planes, under 1, sharpened", slowed(1, slow=True, sharpened=True)),
    dynamic("fast planes, from 1, sharpened", slowed(1, slow=False, sharpened=True)),
    YARN,
]

MODELS = [Trained("rope", FORMS)]

if __name__ == "__main__":
    errors.run(lambda argv: judge("which_planes", MODELS, argv))
