"""DroPE: train with RoPE, drop it, and train a little more without positions (arXiv:2512.12167).

`drope` has seven eighths of its steps with RoPE and the rest without any encoding, at the same
length. It is read plainly and with a logit scale 1 + c ln(length / L). The authors fit c; here it
is fitted for each model on text that is not evaluated on (logit_scale.py).
"""

from experiments.claims import AS_TRAINED, Trained, Variant, compare
from experiments.claims.logit_scale import FITTED
from runtime import errors

RATIOS = (1, 2, 4, 8)
STEPS = {"prose": 1200, "keys": 500}
READ_TIME = [AS_TRAINED, FITTED, Variant("logn", {"logit_scaling": "logn"})]
FEW = "--eval_interval=600 --eval_tokens=4096"


def first(task: str) -> int:
    """Steps with RoPE, of seven eighths."""
    return round(STEPS[task] * 7 / 8)


def second(task: str, prefix: str) -> str:
    steps = STEPS[task] - first(task)
    schedule = f"--max_iters={steps} --warmup_iters={steps // 10} --learning_rate=1e-3"
    return f"--init_from={{out}}/{prefix}rope-seven-eighths-{{seed}} --pos=none {schedule} {FEW}"


MODELS = [
    Trained("rope", [Variant("none", {"rope_scaling": "none"})]),
    Trained("nope", READ_TIME),
    Trained(
        "rope-seven-eighths",
        [Variant("none", {"rope_scaling": "none"})],
        {task: f"--max_iters={first(task)} {FEW}" for task in STEPS},
    ),
    Trained("drope", READ_TIME, {"prose": second("prose", ""), "keys": second("keys", "passkey-")}),
]

if __name__ == "__main__":
    errors.run(lambda argv: compare("drope", MODELS, argv, RATIOS))
