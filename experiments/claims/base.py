"""The base of the frequencies in training: which base extrapolates, and which base learns?

The lowest-frequency plane of base b needs 2 pi b^(15/16) tokens for a full rotation: 124 at b = 24,
so that all planes meet every angle within the trained lengths 128 and 256; 471 at b = 100, 35,000
at 10,000, 2.6 million at 1,000,000.
"""

from experiments.claims import NONE, YARN, Trained, compare, rope_variant
from runtime import errors

VARIANTS = [NONE, YARN]
BASES = (24, 100, 10000, 1000000)


def of_base(base: int) -> Trained:
    """The model trained with this base; 10,000 is the base of all other claims' models."""
    if base == 10000:
        return Trained("rope", VARIANTS)
    return rope_variant(f"theta-{base}", VARIANTS, f"--rope_theta={base}")


MODELS = [of_base(base) for base in BASES]

if __name__ == "__main__":
    errors.run(lambda argv: compare("base", MODELS, argv))
