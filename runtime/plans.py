"""Which runs evaluate.py scores, under which names, and what of each."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import data
from data import tasks
from evaluation.results import Row
from evaluation.variants import Variant, can_scale, lengths_of, variants
from model import GPTConfig
from runtime import checkpoint
from runtime.folder import runs

OUT = Path("out")  # whose runs are scored if none is named


@dataclass
class Plan:
    """One run and what to score of it."""

    path: str
    folder: str  # that holds its checkpoint, from the working directory
    name: str  # of its rows
    config: GPTConfig
    run: dict[str, object]  # all settings of its training
    sha256: str
    tokenizer: dict[str, object]
    data: dict[str, str]  # sha256 of the token files that it was trained and validated on
    variants: list[Variant]
    lengths: list[int]
    protocols: tuple[str, ...] | None = None  # of those of the task (None: all)

    @property
    def sha(self) -> str:
        """What stands for the weights in a row."""
        return self.sha256[:12]


def plan_of(path: str, args: Namespace) -> Plan:
    """The plan for a run folder or checkpoint. ValueError for settings it cannot have."""
    state = checkpoint.read(path)
    if not state.keys() >= {"run", "tokenizer", "data"}:
        raise checkpoint.CheckpointError(f"{path} holds weights without the settings of their run")
    config = checkpoint.config_of(state)
    offered = variants(config, args)
    possible = possible_variants(
        path,
        config,
        offered,
        are_named=args.rope_scaling is not None or args.logit_scaling is not None,
    )
    lengths = lengths_of(args.lengths, config.train_len)
    folder = os.path.relpath(Path(state["path"]).parent)
    name = str(state["run"]["name"] or config.pos)
    trained = [state[name] for name in ("run", "sha256", "tokenizer", "data")]
    return Plan(path, folder, name, config, *trained, possible, lengths)


def possible_variants(
    path: str, config: GPTConfig, offered: list[Variant], are_named: bool
) -> list[Variant]:
    """The variants that a model can have.

    The others are left out, with a line; ValueError if the user named them.
    """
    problems = {v.label: why for v in offered if (why := problem_of(config, v))}
    if not problems:
        return offered
    reason = next(iter(problems.values()))
    if are_named:
        raise ValueError(f"{path}: {reason}")
    print(f"{path}: left out {', '.join(problems)}: {reason}", file=sys.stderr)
    return [variant for variant in offered if variant.label not in problems]


def problem_of(config: GPTConfig, variant: Variant) -> str:
    """Why a model cannot have a variant; "" if it can."""
    try:
        checkpoint.with_overrides(config, **variant.overrides)
    except ValueError as error:
        return str(error)
    return ""


def check_scalings(plans: list[Plan], scalings: str | None) -> None:
    """Name the runs for which --rope_scaling does nothing; ValueError if it is all of them."""
    if scalings in (None, "none"):
        return
    unscaled = [plan.path for plan in plans if not can_scale(plan.config)]
    why = "no layer both rotates and sees all tokens"
    if len(unscaled) == len(plans):
        named = ", ".join(unscaled)
        raise ValueError(f"rope_scaling does nothing for {named}: {why}; leave it out")
    for path in unscaled:
        print(f"{path} is scored without rope_scaling: {why}", file=sys.stderr)


class Names:
    """Names of runs in rows: each stands for one model a seed, in a file and in this call.

    A run has its label; without one the name in its settings, or that of its folder where the
    first stands for other weights. Other weights in the same folder are the same run, trained
    further or again: its earlier rows no longer count.
    """

    def __init__(self, rows: list[Row], path: Path):
        """rows: those of the file at `path` that count."""
        self.path = path
        self.in_file = {(row["run"], row["seed"]): row for row in rows}
        self.in_call: dict[tuple, str] = {}

    def give(self, plan: Plan, label: str | None) -> Plan:
        """The plan under its name, with a line where that is not obvious."""
        seed = plan.run["seed"]
        names = [label] if label else [plan.name, Path(plan.folder).absolute().name]
        name = next((name for name in names if self.is_free(name, plan)), None)
        if name is None:
            taken = f"{' and '.join(dict.fromkeys(names))}, seed {seed}, stands for other weights"
            raise ValueError(f"{plan.path}: {taken}, here or in {self.path}; give it a --label")
        if name not in (label, plan.name):
            taken = f"{plan.name!r}, seed {seed}, stands for other weights (or give it a --label)"
            print(f"{plan.path} is named {name!r}, as its folder: {taken}", file=sys.stderr)
        if self.row_of(name, plan)["checkpoint_sha"] != plan.sha:
            outdated = f"{plan.path} has other weights than the rows of {name!r}, seed {seed}"
            print(f"{outdated}: those no longer count", file=sys.stderr)
        self.in_call[name, seed] = plan.sha
        return replace(plan, name=name)

    def is_free(self, name: str, plan: Plan) -> bool:
        """Whether no other model has the name. Rows without a folder are of any."""
        row, key = self.row_of(name, plan), (name, plan.run["seed"])
        in_file = row["checkpoint_sha"] == plan.sha or row["folder"] in (None, plan.folder)
        return in_file and self.in_call.get(key, plan.sha) == plan.sha

    def row_of(self, name: str, plan: Plan) -> Row:
        """The last row of a name and the plan's seed; where there is none, one of the plan."""
        own = {"checkpoint_sha": plan.sha, "folder": plan.folder}
        return self.in_file.get((name, plan.run["seed"]), own)


# All runs of out/


def all_plans(args: Namespace) -> list[Plan]:
    """Plans for the runs of out/ that can stand in one table; the others are named on stderr.

    The newest run that fits the task decides on the dataset, if --dataset does not.
    """
    plans = [plan for folder in runs(OUT) if (plan := readable_plan(str(folder), args))]
    kept = leave_out(plans, lambda plan: unlike_task(plan, args.task))
    if args.dataset:
        tokenizer = open_dataset(args.dataset, kept, args).meta["tokenizer"] if kept else None
        kept = leave_out(kept, lambda plan: unlike_tokenizer(plan, tokenizer))
    elif kept:
        newest = max(kept, key=lambda plan: newest_file(Path(plan.path)))
        kept = leave_out(kept, lambda plan: unlike_run(plan, newest))
    if not kept:
        raise checkpoint.CheckpointError(f"no run in {OUT}/ to score with --task {args.task}")
    return kept


def readable_plan(path: str, args: Namespace) -> Plan | None:
    try:
        return plan_of(path, args)
    except checkpoint.CheckpointError as error:
        print(f"left out {path}: {error}", file=sys.stderr)
        return None


def leave_out(plans: list[Plan], why: Callable[[Plan], str]) -> list[Plan]:
    """The plans for which `why` gives no reason; the others are named on stderr."""
    kept = []
    for plan in plans:
        if reason := why(plan):
            print(f"left out {plan.path}: {reason}", file=sys.stderr)
        else:
            kept.append(plan)
    return kept


def newest_file(folder: Path) -> float:
    files = [folder / checkpoint.NEWEST, folder / checkpoint.PREVIOUS]
    return max(file.stat().st_mtime for file in files if file.exists())


def unlike_task(plan: Plan, task: str) -> str:
    """Why a run does not fit a task: it was trained on text of a different kind. "" if it fits."""
    trained_on = plan.run["dataset"]
    # Prose is not among the tasks; the sizes of one task are of one class.
    source, asked = tasks.TASKS.get(trained_on), tasks.TASKS.get(task)
    fits = source is asked or (source is not None and source.teaches(asked))
    return "" if fits else f"it was trained on {trained_on}, which does not fit --task {task}"


def unlike_tokenizer(plan: Plan, tokenizer: dict[str, object]) -> str:
    return "" if plan.tokenizer == tokenizer else "it has a different tokenizer"


def unlike_run(plan: Plan, other: Plan) -> str:
    """Why a run cannot be scored on the dataset of another one. "" if it can."""
    a, b = plan.run["dataset"], other.run["dataset"]
    if a not in tasks.TASKS and (a, plan.data) != (b, other.data):
        return f"it was trained on {a if a != b else f'other data named {a}'}, {other.path} on {b}"
    return unlike_tokenizer(plan, other.tokenizer)


def open_dataset(name: str, plans: list[Plan], args: Namespace) -> data.Dataset:
    folder = args.data_dir or plans[0].run["data_dir"]
    return data.load(name, data.root_of(folder))
