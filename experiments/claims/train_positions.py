"""Positions drawn in training: do they win on retrieval and lose on prose?

`random` is trained from the start at sorted random positions below four times its length
(arXiv:2305.16843). `pose` fine-tunes the rope models at their own length on two chunks whose
distance is drawn, under YaRN at factor 4 (PoSE, arXiv:2309.10400).
"""

from experiments.claims import AS_TRAINED, NONE, YARN, Trained, Variant, compare, rope_variant
from runtime import errors

RATIOS = (1, 2, 4, 8)
FEW = "--eval_interval=600 --eval_tokens=4096"
POSE = f"--train_positions=pose --rope_scaling=yarn --rope_factor=4 {FEW}"
TUNED = {
    "prose": f"--init_from={{out}}/rope-{{seed}} --position_range=1024 --max_iters=60 "
    f"--warmup_iters=6 --learning_rate=5e-4 --min_lr=5e-5 {POSE}",
    "keys": f"--init_from={{out}}/passkey-rope-{{seed}} --position_range=512 --max_iters=25 "
    f"--warmup_iters=3 --learning_rate=1e-3 --min_lr=1e-4 {POSE}",
}
MODELS = [
    Trained("rope", [NONE, YARN]),
    rope_variant("rope-random", [NONE], "--train_positions=random"),
    rope_variant("alibi-random", [AS_TRAINED], "--pos=alibi --train_positions=random"),
    rope_variant("sinusoidal-random", [AS_TRAINED], "--pos=sinusoidal --train_positions=random"),
    Trained("pose", [Variant("yarn", {})], TUNED),
]

if __name__ == "__main__":
    errors.run(lambda argv: compare("train_positions", MODELS, argv, RATIOS))
