"""Claims about position encodings: one small script each, on the models of `./reproduce.sh`.

A script names ways to read with a trained rope model; `judge` scores each on prose (what it
harms) and on keys (what it wins), in three seeds, and skips what its results file already holds.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

import cli
import evaluate
import rope
from evaluate import Form

ROOT = Path(__file__).parent.parent
SEEDS = (1337, 1, 2)
TASKS = {  # task: run, and what evaluate.py is asked
    "prose": ("rope", "--lengths=256,512,1024,2048 --window_tokens=2048".split()),
    "keys": ("passkey-rope", "--lengths=128,256,512,1024 --passkey --keys=100".split()),
}
NONE, YARN = Form("none", {"rope_scaling": "none"}), Form("yarn", {"rope_scaling": "dynamic_yarn"})

Scaling = Callable[[int, float, float, int], rope.Scaled]
NEW: dict[str, Scaling] = {}  # come into rope.SCALINGS when a script runs, not when it is imported


def dynamic(name: str, scaling: Scaling) -> Form:
    """A new RoPE scaling, read at factor = max(1, length / trained length)."""
    key = name.replace(" ", "_")
    NEW[key] = scaling
    return Form(name, {"rope_scaling": f"dynamic_{key}"})


def known(name: str, **knobs) -> Form:
    """A scaling that there is, under its own name unless it has settings of its own."""
    said = "".join(f" {knob} {value}" for knob, value in knobs.items())
    return Form(name + said, {"rope_scaling": f"dynamic_{name}"} | knobs)


def by_turns(inv_freq: Tensor, train_len: int) -> Tensor:
    """Full turns that each plane makes within the trained length, (F,)."""
    return train_len * inv_freq / (2 * math.pi)


def yarn_factor(factor: float, coefficient: float = 0.1) -> float:
    """YaRN's attention factor, c ln s + 1 (arXiv:2309.00071, eq. 22 has c = 0.1)."""
    return coefficient * math.log(factor) + 1


def judge(name: str, forms: list[Form], argv: list[str]) -> None:
    """Score the forms on both tasks into results/claims/TASK.json, which all scripts share."""
    parser = cli.Parser(prog=f"python -m experiments.{name}")
    parser.add_argument("--seeds", type=int, default=3, choices=(1, 2, 3), help="(default: 3)")
    parser.add_argument("--task", choices=TASKS, help="one of the two (default: both)")
    parser.add_argument("--out", default="out", help="where the trained runs are (default: out)")
    given = parser.parse_args(argv)
    rope.SCALINGS.update(NEW)
    for task in [given.task] if given.task else TASKS:
        run, flags = TASKS[task]
        runs = [f"{given.out}/{run}-{seed}" for seed in SEEDS[: given.seeds]]
        if lacking := [run for run in runs if not Path(run).exists()]:
            raise ValueError(f"{lacking[0]} is missing; ./reproduce.sh trains it, --out names "
                             "another folder")  # fmt: skip
        path = ROOT / f"results/claims/{task}.json"
        args = evaluate.parse([*runs, *flags, f"--json={path}", "--wandb=disabled", "--device=cpu"])
        plans = [replace(evaluate.plan_of(run, args), forms=forms) for run in runs]
        evaluate.evaluate(plans, args)
