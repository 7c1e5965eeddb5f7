"""Do the verdicts on planes and scalings hold when all query heads share one key head?

One key head (arXiv:1911.02150) is the extreme case of grouped queries.
"""

from experiments.claims import NONE, YARN, Trained, builtin, compare, rope_variant, which_planes
from runtime import errors

PLANES = {"slow planes, under 1", "fast planes, from 1"}
VARIANTS = [NONE, *(builtin(name) for name in ("linear", "ntk", "llama3")), YARN]
VARIANTS += [variant for variant in which_planes.VARIANTS if variant.label in PLANES]
MODELS = [Trained("rope", VARIANTS), rope_variant("gqa", VARIANTS, "--n_kv_head=1")]

if __name__ == "__main__":
    errors.run(lambda argv: compare("gqa", MODELS, argv))
