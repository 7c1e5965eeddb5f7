"""How many steps of fine-tuning at four times the length, and starting from which scaling?

A step is one window of 4x: 1,024 tokens on prose, 512 on keys. The run of each number of steps goes
on from the run of the number before it, with a warmup and a cosine of its own, so that each is read
as training would leave it.
"""

from itertools import pairwise

import cli
from evaluate import Form
from experiments import Trained, judge

SCALINGS = "none linear ntk yarn".split()
STEPS = (10, 30, 100, 300, 1000)
RATIOS = (1, 4, 8)  # the longest decides what is scored: 8x, as in most scripts
FACTOR = {"rope_factor": 4.0}
ZERO_SHOT = [
    Form(name, {"rope_scaling": name} | (FACTOR if name != "none" else {})) for name in SCALINGS
]
FLAGS = {
    "prose": "--init_from={out}/%s-{seed} --rope_train_len=256 --block_size=1024 "
    "--learning_rate=5e-4 --min_lr=5e-5",
    "keys": "--init_from={out}/passkey-%s-{seed} --rope_train_len=128 --block_size=512 "
    "--dataset=passkey-4x --learning_rate=1e-3 --min_lr=1e-4",
}


def tuned(scaling: str, before: int, steps: int) -> Trained:
    """The model after so many steps in all, of which the one it goes on from has had some."""
    more = steps - before
    start = f"tuned-{scaling}-{before}" if before else "rope"
    settings = f" --rope_scaling={scaling} --max_iters={more} --warmup_iters={more // 10}"
    settings += " --batch_size=1 --eval_interval=1000 --eval_tokens=4096"
    flags = {task: given % start + settings for task, given in FLAGS.items()}
    return Trained(f"tuned-{scaling}-{steps}", [Form(scaling, {})], flags)


MODELS = [Trained("rope", ZERO_SHOT)]
MODELS += [tuned(scaling, *steps) for steps in pairwise((0, *STEPS)) for scaling in SCALINGS]

if __name__ == "__main__":
    cli.end(lambda argv: judge("finetune", MODELS, argv, RATIOS))
