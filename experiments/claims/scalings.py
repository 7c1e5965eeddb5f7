"""All scalings side by side, zero-shot, and the effect of YaRN's ramp and of its two ends."""

from experiments.claims import NONE, YARN, Trained, builtin, compare, finetune
from runtime import errors

VARIANTS = [NONE, *(builtin(name) for name in ("linear", "ntk", "ntk_by_parts", "llama3")), YARN]
VARIANTS += [builtin("yarn", beta_fast=fast) for fast in (4.0, 8.0, 16.0)]
VARIANTS += [builtin("yarn", ramp="rotations")]
VARIANTS += [builtin("yarn", beta_fast=4.0, ramp="rotations")]
VARIANTS += [builtin("yarn", beta_fast=4.0, beta_slow=slow) for slow in (0.5, 2.0)]
VARIANTS += finetune.ZERO_SHOT[1:]  # at a factor of 4, whatever the length

RATIOS = (1, 2, 4, 8, 16)
MODELS = [Trained("rope", VARIANTS)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("scalings", MODELS, argv, RATIOS))
