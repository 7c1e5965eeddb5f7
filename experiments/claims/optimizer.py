"""Does the optimizer decide which encoding extrapolates?

The prose models are trained with AdamW and the retrieval models with Muon. `X-swapped` is X trained
with the other one: Muon on prose, in as many steps; AdamW on keys, in three times as many, since it
learns the task more slowly.
"""

from experiments.claims import AS_TRAINED, NONE, YARN, Trained, Variant, compare
from experiments.claims.hybrid import NOPE, layered
from runtime import errors

RATIOS = (1, 2, 4, 8)
FEW = "--eval_interval=600 --eval_tokens=4096"
SWAPPED = {
    "prose": "--optimizer=muon --learning_rate=4e-3 --min_lr=4e-4 --warmup_iters=50",
    "keys": "--optimizer=adamw --learning_rate=2e-3 --min_lr=2e-4 --max_iters=1500",
}


def swapped(name: str, variants: list[Variant], flags: dict[str, str]) -> Trained:
    of_task = {task: f"{flags[task]} {others}" for task, others in SWAPPED.items()}
    return Trained(f"{name}-swapped", variants, of_task)


MODELS = []
for name, pos, variants in (
    ("rope", "rope", [NONE, YARN]),
    ("alibi", "alibi", [AS_TRAINED]),
    ("nope", "none", [AS_TRAINED]),
):
    flags = dict.fromkeys(SWAPPED, f"--pos={pos} {FEW}")
    MODELS += [Trained(name, variants), swapped(name, variants, flags)]
hybrid = layered("hybrid", NOPE, [AS_TRAINED])
MODELS += [hybrid, swapped("hybrid", [AS_TRAINED], hybrid.flags)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("optimizer", MODELS, argv, RATIOS))
