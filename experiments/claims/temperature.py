"""The effect of YaRN's attention factor alone, under every scaling, and its best coefficient."""

import rope
from experiments.claims import NONE, YARN, Scaling, Trained, builtin, compare, new_scaling
from runtime import errors

BASES = ("none", "linear", "ntk", "ntk_by_parts")
COEFFICIENTS = (0.05, 0.15, 0.2, 0.3)  # 0.1 is YaRN itself


def sharpened(base: str, coefficient: float = 0.1) -> Scaling:
    """The frequencies of a scaling, with the attention factor of this coefficient."""

    def scaling(head_dim: int, theta: float, factor: float, train_len: int) -> rope.Scaled:
        inv_freq, _ = rope.frequencies(head_dim, theta, base, factor, train_len)
        return inv_freq, rope.yarn_attention_factor(factor, coefficient)

    return scaling


VARIANTS = [NONE, *(builtin(name) for name in BASES[1:])]
VARIANTS += [new_scaling(f"{name}, sharpened", sharpened(name)) for name in BASES]
VARIANTS += [builtin("yarn", attention_factor=1.0), YARN]
VARIANTS += [new_scaling(f"yarn at {c}", sharpened("yarn", c)) for c in COEFFICIENTS]
MODELS = [Trained("rope", VARIANTS)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("temperature", MODELS, argv))
