"""All encodings side by side, zero-shot: each trained as the rope models are, in its own `pos`.

The Forgetting Transformer is trained with three start values of its gates: 0, 3 (its name here is
fox) and 5. Before training, they halve an attention weight every 1, 14 and 103 tokens.
"""

from experiments.claims import AS_TRAINED, NONE, YARN, Trained, compare, rope_variant
from positions import POSITIONS
from runtime import errors

ROTATED = [NONE, YARN]
RATIOS = (1, 2, 4, 8, 16)
MAIN = ("rope", "alibi", "nope")  # models that reproduce.sh trains
MODELS = [Trained("rope", ROTATED), *(Trained(name, [AS_TRAINED]) for name in MAIN[1:])]
MODELS += [
    rope_variant(pos, [AS_TRAINED], f"--pos={pos}")
    for pos in POSITIONS
    if pos not in ("learned", "sinusoidal", "rope", "alibi", "none")
]
MODELS += [rope_variant(f"fox-{b}", [AS_TRAINED], f"--pos=fox --fox_bias={b}") for b in (0, 5)]
MODELS += [rope_variant(f"p-rope-{p}", ROTATED, f"--rope_p={p}") for p in (0.25, 0.5, 0.75)]
MODELS += [rope_variant("hope", [AS_TRAINED], "--rope_scaling=clip")]
MODELS += [rope_variant("lerope", ROTATED, "--rope_learned=True")]

if __name__ == "__main__":
    errors.run(lambda argv: compare("encodings", MODELS, argv, RATIOS))
