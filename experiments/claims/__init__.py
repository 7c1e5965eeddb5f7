"""Claims about position encodings: one short script each.

A script lists models (`Trained`) and the variants in which each is evaluated past its trained
length. `compare` trains the models that are missing, scores all of them on prose (loss) and on
keys (retrieval accuracy), in three seeds, and skips what the results file already holds.
"""

import json
import os
import shutil
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

import configs
import data
import evaluate
import rope
import train
from data import tasks
from evaluation.scoring import windows
from evaluation.variants import Variant
from model import GPT, Attention
from positions import POSITIONS, Position
from runtime import checkpoint, errors
from runtime.config import with_defaults

ROOT = Path(__file__).parent.parent.parent
RESULTS = "results/claims"
FILES = {
    "prose": "prose.jsonl",
    "keys": "keys.jsonl",
    **{part: f"mixture-{part}.jsonl" for part in tasks.PARTS},
}
PROTOCOLS = ("matched", *tasks.PARTS)  # the protocols of evaluate.py that compare lengths
RATIOS = (1, 2, 4, 8)  # context lengths in trained lengths, unless a script has its own
SEEDS = (1337, 1, 2)
TASKS = {  # task: the prefix of its runs' names, and their config files
    "prose": ("", ["configs/rope.py"]),
    "keys": ("passkey-", ["configs/passkey.py", "configs/rope.py"]),
    "mixture": ("mixture-", ["configs/mixture.py", "configs/rope.py"]),
}
SCORED = {"prose": ["prose"], "keys": ["keys"], "mixture": [*tasks.PARTS]}  # of each task's models
EVALUATION_FLAGS = {  # window_tokens measures nothing here, but is part of what names a row
    "prose": ["--window_tokens=2048"],
    "keys": ["--passkey", "--keys=100"],
    **{part: [f"--task={part}", "--keys=100"] for part in tasks.PARTS},
}
NONE = Variant("none", {"rope_scaling": "none"})
YARN = Variant("yarn", {"rope_scaling": "dynamic_yarn"})
AS_TRAINED = Variant("none", {})

Scaling = Callable[[int, float, float, int], rope.Scaled]
# They enter rope.SCALINGS and positions.POSITIONS when a script runs, not when it is imported.
NEW_SCALINGS: dict[str, Scaling] = {}
NEW_POSITIONS: dict[str, type[Position]] = {}


# ---- models and variants


class Trained(NamedTuple):
    """A model that a claim is about: one run a task and seed."""

    name: str
    variants: list[Variant]  # the variants it is evaluated in
    flags: dict[str, str] | None = None  # of train.py, by task; None: reproduce.sh trains it
    make: type[GPT] = GPT
    after: "Trained | None" = None  # a model of fewer steps, whose run this one continues
    ratios: tuple[int, ...] | None = None  # context lengths, where they differ from the script's

    def folder(self, task: str, seed: int, out: str) -> Path:
        return Path(out) / f"{TASKS[task][0]}{self.name}-{seed}"

    def command(self, task: str, seed: int, out: str) -> list[str]:
        """The arguments of train.py."""
        prefix, files = TASKS[task]
        argv = [str(ROOT / file) for file in files]
        argv += [f"--name={prefix}{self.name}", f"--out_dir={self.folder(task, seed, out)}"]
        argv += [flag.format(out=out, seed=seed) for flag in self.flags[task].split()]
        return [*argv, f"--seed={seed}", "--device=cpu", "--wandb=disabled"]

    def check_exists(self, task: str, seed: int, out: str) -> None:
        """ValueError where experiments/reproduce.sh should have trained the model, and has not.

        Also where it is not trained on the task at all.
        """
        folder = self.folder(task, seed, out)
        if self.flags is not None and task not in self.flags:
            raise ValueError(f"{self.name} has no settings for --task {task}; leave it out")
        if self.flags is None and not checkpoint.exists(folder):
            instead = "experiments/reproduce.sh trains it, --out names another folder"
            raise ValueError(f"{folder} is missing; {instead}")

    def train_if_missing(self, task: str, seed: int, out: str) -> Path:
        """The run's folder, after training: from nothing, or from where a run was stopped.

        Raises SystemExit where a signal stops the training, ValueError where the folder holds a
        run with other settings.
        """
        self.check_exists(task, seed, out)
        folder = self.folder(task, seed, out)
        if self.flags is None:
            return folder
        argv = self.command(task, seed, out)
        if self.after is not None and not checkpoint.exists(folder):
            copy_checkpoint(self.after.train_if_missing(task, seed, out), folder)
        if checkpoint.exists(folder):
            config = configs.load(argv)
            check_settings(folder, config, may_be_longer=self.after is not None)
            if is_finished(folder, config):
                return folder
            argv.append("--resume")
        code = train.main(argv, self.make)
        if code != errors.DONE:
            print("Run the same command again to continue.", file=sys.stderr)
            raise SystemExit(code)
        return folder


def copy_checkpoint(source: Path, target: Path) -> None:
    """Let the run in `target` start from the newest checkpoint of `source`."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / checkpoint.NEWEST, target / checkpoint.FRESH)
    os.replace(target / checkpoint.FRESH, target / checkpoint.NEWEST)  # all of it or nothing


def check_settings(folder: Path, config: configs.Config, may_be_longer: bool = False) -> None:
    """ValueError where a folder holds a run with other settings than config.

    may_be_longer: the run may have started with fewer steps.
    """
    settings = with_defaults(checkpoint.read(folder)["run"])
    for name, value in config.determining.items():
        same = value is None or settings[name] == value
        if not same and not (may_be_longer and name == "max_iters"):
            raise ValueError(
                f"{folder} was trained with {name} {settings[name]}, not {value}; remove it, or "
                "name another folder with --out"
            )


def is_finished(folder: Path, config: configs.Config) -> bool:
    """Whether a run has done all its steps, and evaluated the last one."""
    state = checkpoint.read(folder)
    return state["iter"] == config.max_iters and not state.get("row")


def rope_variant(name: str, variants: list[Variant], flags: str, make: type[GPT] = GPT) -> Trained:
    """The rope models of both tasks, trained with other settings."""
    flags += " --eval_interval=600 --eval_tokens=4096"  # few evaluations: it is scored afterwards
    return Trained(name, variants, dict.fromkeys(TASKS, flags), make)


def builtin(name: str, **settings) -> Variant:
    """A scaling of rope.py at factor = max(1, length / trained length), with its settings."""
    label = " ".join([name, *(f"{setting} {value}" for setting, value in settings.items())])
    return Variant(label, {"rope_scaling": f"dynamic_{name}"} | settings)


def new_scaling(label: str, scaling: Scaling) -> Variant:
    """A scaling that rope.py does not have, at factor = max(1, length / trained length)."""
    name = label.replace(" ", "_")
    NEW_SCALINGS[name] = scaling
    return Variant(label, {"rope_scaling": f"dynamic_{name}"})


def new_position(name: str, encoding: type[Position]) -> str:
    """The name of a position encoding that positions.py does not have, as a value of `pos`."""
    NEW_POSITIONS[name] = encoding
    return name


def with_attention(model: GPT, make: type[Attention], **settings) -> GPT:
    """The model itself, with attention of class `make` in every layer, on the same weights."""
    for layer, block in enumerate(model.h):
        attention = make(model.config, layer, **settings)
        attention.use(block.attn.position)
        attention.load_state_dict(block.attn.state_dict())
        block.attn = attention
    return model


# ---- a script's command


def parse(name: str, argv: list[str], offered=("prose", "keys")) -> Namespace:
    """The settings of a script: tasks of those offered, seeds, and the folder of the runs."""
    parser = errors.Parser(prog=f"python -m experiments.claims.{name}")
    parser.add_argument("--seeds", type=int, default=3, choices=(1, 2, 3), help="(default: 3)")
    parser.add_argument("--task", choices=offered, help="(default: prose, then keys)")
    parser.add_argument("--out", default="out", help="where the trained runs are (default: out)")
    text = "do the i-th of n shares of the models, so that n processes do all (default: 1/1)"
    parser.add_argument("--share", type=share, default=slice(None), metavar="i/n", help=text)
    args = parser.parse_args(argv)
    args.tasks = [args.task] if args.task else ["prose", "keys"]
    args.seeds = SEEDS[: args.seeds]
    return args


def share(text: str) -> slice:
    """Every n-th of a list, for a text like 2/3: its second, fifth, eighth .."""
    first, _, step = text.partition("/")
    if not (first.isdigit() and step.isdigit() and 1 <= int(first) <= int(step)):
        raise ArgumentTypeError(f"{text!r} is no share; it must be like 1/2")
    return slice(int(first) - 1, None, int(step))


def compare(name: str, models: list[Trained], argv: list[str], ratios=RATIOS) -> None:
    """Score the models on both tasks, into files that all scripts share."""
    args = parse(name, argv, offered=TASKS)
    models = models[args.share]
    rope.SCALINGS.update(NEW_SCALINGS)
    POSITIONS.update(NEW_POSITIONS)
    for task, model, seed in product(args.tasks, models, args.seeds):  # before hours of training
        model.check_exists(task, seed, args.out)
    for task in args.tasks:
        trained = [
            (model, model.train_if_missing(task, seed, args.out))
            for model, seed in product(models, args.seeds)
        ]
        for scored in SCORED[task]:
            plans = [plan_of(model, run, scored, ratios) for model, run in trained]
            evaluate.evaluate(plans, evaluation_settings(scored, ratios))


def scores_of(task: str) -> str:
    """The file of a task's scores."""
    return f"{RESULTS}/{FILES[task]}"


def evaluation_settings(task: str, ratios: tuple[int, ...]) -> Namespace:
    """What evaluate.py makes of its arguments: context lengths, and the file of the results."""
    path = ROOT / scores_of(task)
    lengths = ",".join(f"{n}x" for n in ratios)
    flags = [f"--json={path}", f"--lengths={lengths}", "--wandb=disabled", "--device=cpu"]
    return evaluate.parse(["RUN", *EVALUATION_FLAGS[task], *flags])


def plan_of(model: Trained, run: Path, task: str, ratios: tuple[int, ...]) -> evaluate.Plan:
    """What evaluate.py is to measure of one run."""
    settings = evaluation_settings(task, model.ratios or ratios)
    plan = evaluate.plan_of(str(run), settings)
    offered = model.variants
    if model.make is not GPT:
        build = partial(checkpoint.build, make=model.make)
        offered = [replace(variant, build=build) for variant in offered]
    # Not its path: a model that was trained into another --out takes the place of the first.
    return replace(plan, folder=run.name, variants=offered, protocols=PROTOCOLS)


def held_out(state: dict, length: int, count: int) -> Tensor:
    """Windows int64 (count, length + 1) of the held-out text of a checkpoint's run."""
    run = state["run"]
    dataset = data.load(run["dataset"], Path(run["data_dir"]) if run["data_dir"] else data.DATA)
    starts = data.spans(dataset.documents("val"), length, count)
    return windows(dataset.val, starts, length, length)


def record(name: str, results: dict) -> None:
    """Write what a script measures without evaluate.py: results/claims/NAME.json."""
    path = ROOT / RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
