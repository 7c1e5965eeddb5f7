"""How many steps of fine-tuning at four times the length, and starting from which scaling?

A step is one window of 4x: 1,024 tokens on prose, 2 of 512 on keys. Each number of steps is a run
of its own, with warmup and cosine.
"""

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
    "prose": "--init_from={out}/rope-{seed} --rope_train_len=256 --block_size=1024 --batch_size=1 "
    "--learning_rate=5e-4 --min_lr=5e-5",
    "keys": "--init_from={out}/passkey-rope-{seed} --rope_train_len=128 --block_size=512 "
    "--batch_size=2 --dataset=passkey-4x --learning_rate=1e-3 --min_lr=1e-4",
}


def tuned(scaling: str, steps: int) -> Trained:
    settings = f" --rope_scaling={scaling} --max_iters={steps} --warmup_iters={steps // 10}"
    settings += " --eval_interval=1000 --eval_tokens=4096"
    flags = {task: given + settings for task, given in FLAGS.items()}
    return Trained(f"tuned-{scaling}-{steps}", [Form(scaling, {})], flags)


MODELS = [Trained("rope", ZERO_SHOT)]
MODELS += [tuned(scaling, steps) for steps in STEPS for scaling in SCALINGS]

if __name__ == "__main__":
    cli.end(lambda argv: judge("finetune", MODELS, argv, RATIOS))
