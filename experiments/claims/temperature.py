"""What YaRN's temperature does by itself, under every scaling, and how strong it should be."""

import rope
from experiments.claims import NONE, YARN, Trained, dynamic, judge, known, yarn_factor
from runtime import errors

BASES = "none linear ntk ntk_by_parts".split()
COEFFICIENTS = (0.05, 0.15, 0.2, 0.3)  # 0.1 is YaRN itself


def sharpened(base: str, coefficient: float = 0.1):
    """The frequencies of a scaling, and a temperature of this coefficient."""

    def scaling(head_dim: int, theta: float, factor: float, train_len: int) -> rope.Scaled:
        inv_freq, _ = rope.frequencies(head_dim, theta, base, factor, train_len)
        return inv_freq, yarn_factor(factor, coefficient)

    return scaling


FORMS = [NONE, *(known(name) for name in BASES[1:])]
FORMS += [dynamic(f"{name}, sharpened", sharpened(name)) for name in BASES]
FORMS += [known("yarn", attention_factor=1.0), YARN]
FORMS += [dynamic(f"yarn at {c}", sharpened("yarn", c)) for c in COEFFICIENTS]

MODELS = [Trained("rope", FORMS)]

if __name__ == "__main__":
    errors.run(lambda argv: judge("temperature", MODELS, argv))
