"""All tasks of data/tasks.py at once: a model an encoding, trained on their mixture.

Which encodings find one of many, follow order and chains, copy, and read at a constant, absolute or
growing distance, and up to which length?
"""

from experiments.claims import AS_TRAINED, NONE, YARN, Trained, Variant, compare
from experiments.claims.hybrid import NOPE, layered
from positions import POSITIONS
from runtime import errors

RATIOS = (1, 2, 4, 8)
FEW = "--eval_interval=750 --eval_tokens=8192"
BOUNDED = ("learned", "sinusoidal")  # they end at the trained length, or fail past it


def trained(name: str, variants: list[Variant], flags: str) -> Trained:
    return Trained(name, variants, {"mixture": f"{flags} {FEW}"})


def mixed(model: Trained) -> Trained:
    """A model of hybrid.py, on the mixture."""
    return model._replace(flags={"mixture": model.flags["mixture"]})


MODELS = [trained("rope", [NONE, YARN], "--pos=rope")]
MODELS += [
    trained("nope" if pos == "none" else pos, [AS_TRAINED], f"--pos={pos}")
    for pos in POSITIONS
    if pos not in ("rope", *BOUNDED)
]
MODELS += [trained("rope-random", [NONE], "--pos=rope --train_positions=random")]
MODELS += [mixed(layered("hybrid", NOPE, [AS_TRAINED]))]
MODELS += [mixed(layered("swa", "", [AS_TRAINED], layers="L"))]

if __name__ == "__main__":
    script = "position_tasks"
    errors.run(lambda argv: compare(script, MODELS, ["--task=mixture", *argv], RATIOS))
