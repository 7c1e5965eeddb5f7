"""How many steps of fine-tuning at four times the length, and starting from which scaling?

A step is one window of 4x: 1,024 tokens on prose, 512 on keys. More steps go on with the run of
fewer (`train.py --resume`): with windows that it has not had, the optimizer as it was, and a cosine
that ends at the new number, so that each is read as its training would leave it.
"""

from evaluation.variants import Variant
from experiments.claims import Trained, judge
from runtime import errors

SCALINGS = "none linear ntk yarn".split()
STEPS = (10, 30, 100, 300, 1000)
RATIOS = (1, 4, 8)  # the longest decides what is scored: 8x, as in most scripts
FACTOR = {"rope_factor": 4.0}
ZERO_SHOT = [
    Variant(name, {"rope_scaling": name} | (FACTOR if name != "none" else {})) for name in SCALINGS
]
FLAGS = {
    "prose": "--init_from={out}/rope-{seed} --rope_train_len=256 --block_size=1024 "
    "--learning_rate=5e-4 --min_lr=5e-5",
    "keys": "--init_from={out}/passkey-rope-{seed} --rope_train_len=128 --block_size=512 "
    "--dataset=passkey-4x --learning_rate=1e-3 --min_lr=1e-4",
}


def tuned(scaling: str, steps: int, after: Trained | None) -> Trained:
    settings = f" --rope_scaling={scaling} --max_iters={steps} --warmup_iters=1 --batch_size=1"
    settings += " --eval_interval=1000 --eval_tokens=4096"
    flags = {task: given + settings for task, given in FLAGS.items()}
    read = RATIOS if steps == STEPS[-1] else RATIOS[:2]
    return Trained(
        f"tuned-{scaling}-{steps}", [Variant(scaling, {})], flags, after=after, ratios=read
    )


MODELS, longest = [Trained("rope", ZERO_SHOT)], dict.fromkeys(SCALINGS)
for steps in STEPS:
    longest = {scaling: tuned(scaling, steps, longest[scaling]) for scaling in SCALINGS}
    MODELS += longest.values()

if __name__ == "__main__":
    errors.end(lambda argv: judge("finetune", MODELS, argv, RATIOS))
