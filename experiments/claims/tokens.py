"""More training tokens: does extrapolation get better or worse?

The author of the Forgetting Transformer saw it get worse (arXiv:2503.02130, its repository's issue
2). Each model here has four times the steps of the one beside it, in one seed.
"""

from experiments.claims import AS_TRAINED, NONE, YARN, Trained, Variant, compare
from experiments.claims.hybrid import NOPE, layered
from runtime import errors

RATIOS = (1, 2, 4, 8, 16)
STEPS = {"prose": 1200, "keys": 500}
FEW = "--eval_interval=600 --eval_tokens=4096"


def longer(name: str, variants: list[Variant], flags: str = "") -> Trained:
    """A model of four times the steps."""
    of_task = {task: f"--max_iters={4 * n} {flags} {FEW}" for task, n in STEPS.items()}
    return Trained(f"{name}-4x-steps", variants, of_task)


def longer_hybrid() -> Trained:
    plain = layered("hybrid", NOPE, [AS_TRAINED])
    flags = {task: f"{plain.flags[task]} --max_iters={4 * n}" for task, n in STEPS.items()}
    return Trained("hybrid-4x-steps", [AS_TRAINED], flags)


MODELS = [Trained("rope", [NONE, YARN]), longer("rope", [NONE, YARN])]
for name, pos in (("alibi", "alibi"), ("nope", "none")):
    MODELS += [Trained(name, [AS_TRAINED]), longer(name, [AS_TRAINED], f"--pos={pos}")]
MODELS += [longer("fox", [AS_TRAINED], "--pos=fox")]  # encodings.py trains the one beside it
MODELS += [layered("hybrid", NOPE, [AS_TRAINED]), longer_hybrid()]

if __name__ == "__main__":
    errors.run(lambda argv: compare("tokens", MODELS, argv, RATIOS))
