"""Where the gates of the Forgetting Transformer start (arXiv:2503.02130): 0, 3 or 5.

The start value sets how far back the model sees before training: its gates halve an attention
weight every 1, 14 and 103 tokens. `fox` has 0, as the authors' code.
"""

from experiments.claims import AS_TRAINED, compare, rope_variant
from runtime import errors

RATIOS = (1, 2, 4, 8, 16)
MODELS = [rope_variant("fox", [AS_TRAINED], "--pos=fox")]
MODELS += [rope_variant(f"fox-{b}", [AS_TRAINED], f"--pos=fox --fox_bias={b}") for b in (3, 5)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("gates", MODELS, argv, RATIOS))
