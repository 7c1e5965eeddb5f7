"""RoPE trained with other frequencies: p-RoPE, slow planes stopped (HoPE), learned (LeRoPE).

p-RoPE (arXiv:2410.06205) rotates the fastest quarter, or three quarters, of the planes. HoPE
(arXiv:2410.21216) stops those that do not rotate once within the trained length. LeRoPE
(arXiv:2607.10134) learns a factor for each frequency.
"""

from experiments.claims import AS_TRAINED, NONE, YARN, Trained, compare, rope_variant
from runtime import errors

RATIOS = (1, 2, 4, 8, 16)
VARIANTS = [NONE, YARN]
MODELS = [Trained("rope", VARIANTS)]
MODELS += [rope_variant(f"p-rope-{p}", VARIANTS, f"--rope_p={p}") for p in (0.25, 0.75)]
MODELS += [rope_variant("hope", [AS_TRAINED], "--rope_scaling=clip")]
MODELS += [rope_variant("lerope", VARIANTS, "--rope_learned=True")]

if __name__ == "__main__":
    errors.run(lambda argv: compare("trained_frequencies", MODELS, argv, RATIOS))
