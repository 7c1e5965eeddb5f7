"""All scalings beside one another, zero-shot, and what YaRN's ramp and its two ends decide."""

from experiments.claims import NONE, YARN, Trained, finetune, judge, known
from runtime import errors

FORMS = [NONE, *(known(name) for name in "linear ntk ntk_by_parts llama3".split()), YARN]
FORMS += [known("yarn", beta_fast=fast) for fast in (4.0, 8.0, 16.0)]
FORMS += [known("yarn", ramp="rotations"), known("yarn", beta_fast=4.0, ramp="rotations")]
FORMS += [known("yarn", beta_fast=4.0, beta_slow=slow) for slow in (0.5, 2.0)]
FORMS += finetune.ZERO_SHOT[1:]  # at a factor of 4, whatever the length

RATIOS = (1, 2, 4, 8, 16)
MODELS = [Trained("rope", FORMS)]

if __name__ == "__main__":
    errors.run(lambda argv: judge("scalings", MODELS, argv, RATIOS))
