"""Which planes fail past the trained length: those of high frequency, or those of low frequency?

Each variant divides the frequencies of one side of a border by the factor: of the planes that make
fewer than B rotations within the trained length ("slow"), or of the others ("fast"). At B = 1 the
wavelength at the border equals the trained length.
"""

import torch

import rope
from experiments.claims import NONE, YARN, Scaling, Trained, builtin, compare, new_scaling
from runtime import errors

BORDERS = (0.5, 1, 2, 4, 8)


def interpolated(border: float, slow: bool, sharpened: bool = False) -> Scaling:
    """Interpolate one side of the border, with YaRN's attention factor or without."""

    def scaling(head_dim: int, theta: float, factor: float, train_len: int) -> rope.Scaled:
        inv_freq = rope.unscaled(head_dim, theta)
        chosen = (rope.rotations(inv_freq, train_len) < border) == slow
        attention_factor = rope.yarn_attention_factor(factor) if sharpened else 1.0
        return torch.where(chosen, inv_freq / factor, inv_freq), attention_factor

    return scaling


SLOW, FAST = interpolated(1, slow=True, sharpened=True), interpolated(1, slow=False, sharpened=True)
VARIANTS = [
    NONE,
    *(new_scaling(f"slow planes, under {b:g}", interpolated(b, slow=True)) for b in BORDERS),
    builtin("linear"),
    new_scaling("fast planes, from 1", interpolated(1, slow=False)),
    new_scaling("slow planes, under 1, sharpened", SLOW),
    new_scaling("fast planes, from 1, sharpened", FAST),
    YARN,
]
MODELS = [Trained("rope", VARIANTS)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("which_planes", MODELS, argv))
