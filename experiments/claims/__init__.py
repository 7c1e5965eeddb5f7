"""Claims about position encodings: one small script each.

They use the models of experiments/reproduce.sh and models of their own.

A script names the models that its claim is about and the ways to read with them; `judge` trains
those that are missing, scores each on prose (what is harmed) and on keys (what is won), in three
seeds, and skips what its results file already holds.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

import configs
import data
import evaluate
import rope
import train
from evaluation.scoring import windows
from evaluation.variants import Variant
from model import GPT
from runtime import checkpoint, errors

ROOT = Path(__file__).parent.parent.parent
RESULTS = "results/claims"
FILES = {  # prose is compared on the same targets alone, and the longest length bounds those
    "prose": "prose-{}x.jsonl",
    "keys": "keys.jsonl",
}
PROTOCOLS = ("matched", "passkey")  # of evaluate.py's, the two that compare lengths
RATIOS = (1, 2, 4, 8)  # lengths, in trained lengths, where a script has none of its own
SEEDS = (1337, 1, 2)
TASKS = {  # task: before the names of its runs, what they are trained with
    "prose": ("", "configs/rope.py"),
    "keys": ("passkey-", "configs/passkey/rope.py"),
}
ASKED = {  # of evaluate.py (window_tokens is but part of the name of what was asked)
    "prose": ["--window_tokens=2048"],
    "keys": ["--passkey", "--keys=100"],
}
NONE, YARN = (
    Variant("none", {"rope_scaling": "none"}),
    Variant("yarn", {"rope_scaling": "dynamic_yarn"}),
)
AS_TRAINED = Variant("none", {})

Scaling = Callable[[int, float, float, int], rope.Scaled]
NEW: dict[str, Scaling] = {}  # come into rope.SCALINGS when a script runs, not when it is imported


class Trained(NamedTuple):
    """A model that a claim is about, one a task and seed, and the ways to read with it."""

    name: str
    forms: list[Variant]
    flags: dict[str, str] | None = (
        None  # of train.py, by task; None: experiments/reproduce.sh trains it
    )
    make: type[GPT] = GPT
    after: "Trained | None" = None  # the model of fewer steps whose run it goes on with
    ratios: tuple[int, ...] | None = None  # lengths, in trained ones, where not all of the script's

    def folder(self, task: str, seed: int, out: str) -> Path:
        """The folder of its run, trained now where that has not been done."""
        before, config = TASKS[task]
        path = Path(out) / f"{before}{self.name}-{seed}"
        if self.flags is None:
            if not checkpoint.exists(path):
                raise ValueError(f"{path} is missing; experiments/reproduce.sh trains it, --out "
                                 "names another folder")  # fmt: skip
            return path
        argv = [str(ROOT / config), f"--name={before}{self.name}", f"--out_dir={path}"]
        argv += [flag.format(out=out, seed=seed) for flag in self.flags[task].split()]
        argv += [f"--seed={seed}", "--device=cpu", "--wandb=disabled"]
        if self.after and not checkpoint.exists(path):
            begin_with(path, self.after.folder(task, seed, out))
        if checkpoint.exists(path):
            if is_whole(path, configs.load(argv), longer=self.after is not None):
                return path
            argv.append("--resume")
        code = train.main(argv, self.make)
        if code != errors.DONE:
            print("Here the same command again is enough.", file=sys.stderr)  # train.py said more
            raise SystemExit(code)
        return path


def begin_with(path: Path, earlier: Path) -> None:
    """Let a run begin with the checkpoint of another."""
    path.mkdir(parents=True, exist_ok=True)
    shutil.copy(earlier / checkpoint.NEWEST, path / checkpoint.FRESH)
    os.replace(path / checkpoint.FRESH, path / checkpoint.NEWEST)  # whole or not at all


def is_whole(path: Path, config: configs.Config, longer: bool = False) -> bool:
    """Whether a run has ended; ValueError where it is another than the one that is wanted.

    longer: it may have begun as a run of fewer steps.
    """
    state = checkpoint.read(path)
    for name, value in config.deciding.items():
        was = state["run"].get(name)
        if value is not None and was != value and not (longer and name == "max_iters"):
            raise ValueError(f"{path} was trained with {name} {was}, wanted is {value}; remove it, "
                             "or name another folder with --out")  # fmt: skip
    return state["iter"] == config.max_iters and not state.get("row")


def like_rope(name: str, forms: list[Variant], flags: str, make: type[GPT] = GPT) -> Trained:
    """The rope models of both tasks, with other settings."""
    flags += " --eval_interval=600 --eval_tokens=4096"  # watched little: it is scored afterwards
    return Trained(name, forms, dict.fromkeys(TASKS, flags), make)


def dynamic(name: str, scaling: Scaling) -> Variant:
    """A new RoPE scaling, read at factor = max(1, length / trained length)."""
    key = name.replace(" ", "_")
    NEW[key] = scaling
    return Variant(name, {"rope_scaling": f"dynamic_{key}"})


def known(name: str, **knobs) -> Variant:
    """A scaling that there is, under its own name unless it has settings of its own."""
    said = "".join(f" {knob} {value}" for knob, value in knobs.items())
    return Variant(name + said, {"rope_scaling": f"dynamic_{name}"} | knobs)


def by_turns(inv_freq: Tensor, train_len: int) -> Tensor:
    """Full turns that each plane makes within the trained length, (F,)."""
    return train_len * inv_freq / (2 * math.pi)


def yarn_factor(factor: float, coefficient: float = 0.1) -> float:
    """YaRN's attention factor, c ln s + 1 (arXiv:2309.00071, eq. 22 has c = 0.1)."""
    return coefficient * math.log(factor) + 1


def parse(name: str, argv: list[str]):
    parser = errors.Parser(prog=f"python -m experiments.claims.{name}")
    parser.add_argument("--seeds", type=int, default=3, choices=(1, 2, 3), help="(default: 3)")
    parser.add_argument("--task", choices=TASKS, help="one of the two (default: both)")
    parser.add_argument("--out", default="out", help="where the trained runs are (default: out)")
    given = parser.parse_args(argv)
    given.tasks = [given.task] if given.task else [*TASKS]
    return given


def scores_of(task: str, longest: int) -> str:
    """The file that holds what was scored at lengths up to this many trained ones."""
    return f"{RESULTS}/{FILES[task].format(longest)}"


def plans(models: list[Trained], task: str, given, ratios):
    """What evaluate.py is to measure of the models that a task has; trains what is missing."""
    path = ROOT / scores_of(task, ratios[-1])
    lengths = ",".join(f"{n}x" for n in ratios)
    flags = [f"--json={path}", f"--lengths={lengths}", "--wandb=disabled", "--device=cpu"]
    args, found = evaluate.parse(["RUN", *ASKED[task], *flags]), []
    for model in models:
        forms = model.forms
        if model.make is not GPT:
            build = partial(checkpoint.build, make=model.make)
            forms = [replace(form, build=build) for form in forms]
        runs = [model.folder(task, seed, given.out) for seed in SEEDS[: given.seeds]]
        for plan in (evaluate.plan_of(str(run), args) for run in runs):
            read = [n * plan.config.train_len for n in model.ratios or ratios]
            found.append(replace(plan, variants=forms, lengths=read, protocols=PROTOCOLS))
    return found, args


def judge(name: str, models: list[Trained], argv: list[str], ratios=RATIOS) -> None:
    """Score the models on both tasks into files that all scripts share."""
    given = parse(name, argv)
    rope.SCALINGS.update(NEW)
    for task in given.tasks:  # what cannot be trained here is looked for first
        for model in models:
            for seed in SEEDS[: given.seeds] if model.flags is None else ():
                model.folder(task, seed, given.out)
    for task in given.tasks:
        evaluate.evaluate(*plans(models, task, given, ratios))


def held_out(state: dict, length: int, count: int) -> Tensor:
    """Windows int64 (count, length + 1), of the held-out text of the run of a checkpoint."""
    run = state["run"]
    dataset = data.load(run["dataset"], Path(run["data_dir"]) if run["data_dir"] else data.DATA)
    starts = data.spans(dataset.documents("val"), length, count)
    return windows(dataset.val, starts, length, length)


def record(name: str, found: dict) -> None:
    """What a script measured by itself: results/claims/NAME.json."""
    path = ROOT / RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
