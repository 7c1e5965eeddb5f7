"""The base of the frequencies in training: which one reads on, and which one learns?

The slowest plane of base b needs 2 pi b^(15/16) tokens for a turn: 124 at b = 24, so that within
128 and 256 tokens all planes meet every angle; 471 at 100, 35,000 at 10,000, 2.6 million at
1,000,000.
"""

from experiments.claims import NONE, YARN, Trained, judge, like_rope
from runtime import errors

FORMS = [NONE, YARN]
BASES = (24, 100, 10000, 1000000)


def of_base(base: int) -> Trained:
    """10,000 is what all other claims' models have."""
    if base == 10000:
        return Trained("rope", FORMS)
    return like_rope(f"theta-{base}", FORMS, f"--rope_theta={base}")


MODELS = [of_base(base) for base in BASES]

if __name__ == "__main__":
    errors.run(lambda argv: judge("base", MODELS, argv))
