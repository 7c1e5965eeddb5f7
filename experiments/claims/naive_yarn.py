"""YaRN as two texts describe it: every angle divided by t = c s. The YaRN paper says otherwise."""

import rope
from experiments.claims import NONE, YARN, Scaling, Trained, builtin, compare, new_scaling
from runtime import errors

COEFFICIENTS = (0.1, 0.25, 0.3)  # 0.25 is the texts' example: 8x with t = 2


def divided(coefficient: float) -> Scaling:
    """Position interpolation by coefficient * factor."""

    def scaling(head_dim: int, theta: float, factor: float, train_len: int) -> rope.Scaled:
        t = max(1.0, coefficient * factor)  # the texts require t > 1
        return rope.linear(head_dim, theta, t, train_len)

    return scaling


VARIANTS = [NONE, *(new_scaling(f"theta / ({c} s)", divided(c)) for c in COEFFICIENTS)]
VARIANTS += [builtin("linear"), YARN]
MODELS = [Trained("rope", VARIANTS)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("naive_yarn", MODELS, argv))
