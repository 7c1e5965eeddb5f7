"""The YaRN of the texts: every angle divided by t = c s. They say so; the paper says otherwise."""

import rope
from experiments.claims import NONE, YARN, Trained, dynamic, judge, known
from runtime import errors

COEFFICIENTS = (0.1, 0.25, 0.3)  # 0.25 is their example: 8x with t = 2


def divided(coefficient: float):
    def scaling(head_dim: int, theta: float, factor: float, train_len: int) -> rope.Scaled:
        t = max(1.0, coefficient * factor)  # they ask for t > 1
        return rope.linear(head_dim, theta, t, train_len)

    return scaling


FORMS = [NONE, *(dynamic(f"theta / ({c} s)", divided(c)) for c in COEFFICIENTS)]
FORMS += [known("linear"), YARN]

MODELS = [Trained("rope", FORMS)]

if __name__ == "__main__":
    errors.run(lambda argv: judge("naive_yarn", MODELS, argv))
