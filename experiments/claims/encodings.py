"""All encodings side by side, zero-shot: each trained as the rope models are, in its own `pos`.

Beside them RoPE in windows alone, and in windows below layers without positions (hybrid.py).
"""

from experiments.claims import AS_TRAINED, NONE, YARN, Trained, compare, rope_variant
from experiments.claims.hybrid import NOPE, layered
from positions import POSITIONS
from runtime import errors

RATIOS = (1, 2, 4, 8, 16)
MAIN = ("learned", "sinusoidal", "rope", "alibi", "none")  # reproduce.sh trains them
MODELS = [Trained("rope", [NONE, YARN])]
MODELS += [Trained("alibi", [AS_TRAINED]), Trained("nope", [AS_TRAINED])]
MODELS += [rope_variant(pos, [AS_TRAINED], f"--pos={pos}") for pos in POSITIONS if pos not in MAIN]

MODELS += [layered("swa", "", [AS_TRAINED], layers="L"), layered("hybrid", NOPE, [AS_TRAINED])]

if __name__ == "__main__":
    errors.run(lambda argv: compare("encodings", MODELS, argv, RATIOS))
