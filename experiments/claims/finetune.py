"""How many steps of fine-tuning at four times the trained length, and from which scaling?

A step is one window of 4x: 1,024 tokens on prose, 512 on keys. A run of more steps continues the
run of fewer (`train.py --resume`): it sees new windows, keeps the optimizer's state, and follows a
cosine that ends at the new number of steps, so that every run ends at its lowest learning rate.
"""

from experiments.claims import Trained, Variant, compare
from runtime import errors

SCALINGS = ("none", "linear", "ntk", "yarn")
STEPS = (10, 30, 100, 300, 1000)
RATIOS = (1, 4, 8)  # 8x as the longest: in the same file as most scripts
ZERO_SHOT = [Variant("none", {"rope_scaling": "none"})]
ZERO_SHOT += [Variant(name, {"rope_scaling": name, "rope_factor": 4.0}) for name in SCALINGS[1:]]
FLAGS = {
    "prose": "--init_from={out}/rope-{seed} --rope_train_len=256 --block_size=1024 "
    "--learning_rate=5e-4 --min_lr=5e-5",
    "keys": "--init_from={out}/passkey-rope-{seed} --rope_train_len=128 --block_size=512 "
    "--dataset=passkey-4x --learning_rate=1e-3 --min_lr=1e-4",
}


def tuned(scaling: str, steps: int, after: Trained | None) -> Trained:
    """The rope models fine-tuned under a scaling; only those of the most steps are scored at 8x."""
    settings = f" --rope_scaling={scaling} --max_iters={steps} --warmup_iters=1 --batch_size=1"
    settings += " --eval_interval=1000 --eval_tokens=4096"
    flags = {task: of_task + settings for task, of_task in FLAGS.items()}
    ratios = RATIOS if steps == STEPS[-1] else RATIOS[:2]
    name = f"tuned-{scaling}-{steps}"
    return Trained(name, [Variant(scaling, {})], flags, after=after, ratios=ratios)


MODELS = [Trained("rope", ZERO_SHOT)]
previous: dict[str, Trained | None] = dict.fromkeys(SCALINGS)
for steps in STEPS:
    for scaling in SCALINGS:
        previous[scaling] = tuned(scaling, steps, after=previous[scaling])
        MODELS.append(previous[scaling])

if __name__ == "__main__":
    errors.run(lambda argv: compare("finetune", MODELS, argv, RATIOS))
