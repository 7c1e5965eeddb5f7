"""Loss or retrieval by context length: every model on the same targets.

matched: the same targets at every length, each with that many tokens before it (past the trained
length up to 1/64 less). windows: blocks of text cut into windows of each length, all their targets.
position: the loss along the longest windows of a run. A task (--task) asks questions instead.
"""

if __name__ == "__main__":
    import runtime.start  # noqa: F401 - before torch

import json
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

import torch

import data
from data.tokenizer import from_meta
from evaluation import results, terminal
from evaluation.results import Key, Row
from evaluation.scoring import (
    Prose,
    Request,
    Retrieval,
    Score,
    count_flags,
    task_class,
    task_names,
)
from evaluation.statistics import Summary, summarise, with_mean
from evaluation.variants import LENGTHS, Variant
from model import GPT, GPTConfig
from runtime import checkpoint, errors
from runtime.device import commit, pick_device
from runtime.log import progress
from runtime.plans import Names, Plan, all_plans, check_scalings, open_dataset, plan_of
from runtime.wandb_mirror import curve

Task = Prose | Retrieval


def parse(argv: list[str]) -> Namespace:
    parser = errors.Parser(prog="python evaluate.py", description=__doc__)
    add = parser.add_argument
    run_help = "run folders or checkpoints: out/rope out/alibi (default: all of out/ that fit)"
    add("runs", nargs="*", metavar="RUN", help=run_help)
    label_help = "name of each run in rows and tables, in order (default: its --name, or its "
    add("--label", action="append", metavar="NAME", help=f"{label_help}folder's if that is taken)")
    length_help = "tokens (1024), or 4x, 1/2x the length at which the frequencies were first "
    length_help += f"trained, before any fine-tuning (default: those of {LENGTHS} that fit)"
    add("--lengths", help=f"context lengths: {length_help}")
    scaling_help = "of rotary models: none,linear,dynamic_yarn,... (default: all, each fixed and "
    scaling_help += "dynamic; for a model that was trained with a scaling: that one)"
    add("--rope_scaling", help=scaling_help)
    add("--rope_factor", type=float, default=4.0, help="of the fixed scalings (default: 4)")
    logit_help = "of later queries' scores: none,logn,llama4,log_length (default: as trained)"
    add("--logit_scaling", help=logit_help)
    add("--logit_c", type=float, help="of log_length: 1 + c ln(length / trained length)")
    names = ", ".join(task_names())
    add("--task", default="prose", help=f"what is scored: {names} (default: prose)")
    add("--passkey", dest="task", action="store_const", const="passkey", help="--task passkey")
    add("--dataset", help="prepared dataset, of the same tokenizer (default: that of training)")
    for name, (default, meaning) in count_flags().items():
        add(f"--{name}", type=int, help=f"{meaning} (default: {default})")
    against_help = "run whose sliding window the others are compared with (default: rope, or "
    add("--against", help=f"{against_help}passkey-rope)")
    json_help = "JSON lines that rows are appended to (default: results/DATASET.jsonl or "
    add("--json", metavar="FILE", help=f"{json_help}TASK.jsonl); cells in it are not scored again")
    add("--plot", metavar="FILE", help="draw scores by context length into a .svg or .png")
    add("--data_dir", help="folder that holds the datasets (default: data/)")
    add("--wandb", default="auto", choices=("auto", "online", "offline", "disabled"))
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    args = parser.parse_args(argv)
    check_flags(args)
    return args


def check_flags(args: Namespace) -> None:
    """Fill in defaults that depend on the task; ValueError for what does nothing or cannot be."""
    task = task_class(args.task)
    for name in count_flags():
        value = getattr(args, name)
        if value is not None and name not in task.counts:
            raise ValueError(f"{name} does nothing with --task {args.task}; leave it out")
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if args.dataset and not task.needs_dataset:
        raise ValueError(f"dataset does nothing with --task {args.task}; leave it out")
    if args.plot and Path(args.plot).suffix not in (".svg", ".png"):
        raise ValueError(f"plot is {args.plot!r}; it must end with .svg or .png")
    GPTConfig(rope_scaling="linear", rope_factor=args.rope_factor)  # refuses a bad factor
    if args.logit_c is not None and "log_length" not in (args.logit_scaling or "").split(","):
        raise ValueError("logit_c does nothing without --logit_scaling log_length; leave it out")
    check_labels(args)
    args.counts = {
        name: getattr(args, name) or default for name, (default, _) in task.counts.items()
    }


def check_labels(args: Namespace) -> None:
    """Split --label into one name a run; ValueError where they are not that."""
    if args.label is None:
        return
    args.label = ",".join(args.label).split(",")
    wrong = [name for name in args.label if not re.fullmatch(r"[\w.-]*\w", name)]
    if wrong:
        raise ValueError(f"label has {wrong[0]!r}; it must be letters, digits, . _ or -")
    if len(args.label) != len(args.runs):
        counts = f"{len(args.label)} labels and {len(args.runs)} runs"
        raise ValueError(f"there are {counts}; name the runs, and give each a --label")


# What is scored


class Cell(NamedTuple):
    """One row to measure: a model in one variant, one protocol, one length."""

    plan: Plan
    variant: Variant
    protocol: str
    length: int

    @property
    def key(self) -> Key:
        run, factor = self.plan.run, self.variant.overrides.get("rope_factor")
        label = self.variant.label
        return Key(self.plan.name, label, factor, self.protocol, self.length, run["seed"])

    @property
    def is_unextended(self) -> bool:
        """Whether all variants are one model here; a fixed scaling is always in force."""
        config, variant = self.plan.config, self.variant
        if variant.build is not None or variant.overrides.keys() & {"pos", "logit_scaling"}:
            return False
        scaling = variant.overrides.get("rope_scaling", "none")
        if scaling != "none" and not scaling.startswith("dynamic_"):
            return False
        if variant.overrides.get("attention_factor", config.attention_factor) is not None:
            return False
        return self.length <= min(config.train_len, config.block_size)


def cells_of(plan: Plan, task: Task) -> Iterator[Cell]:
    """All cells of a run, in the order in which they are scored."""
    protocols = [p for p in task.protocols if plan.protocols is None or p in plan.protocols]
    longest = max(plan.lengths, default=0)
    for variant, length, protocol in product(plan.variants, plan.lengths, protocols):
        if length == longest or protocol not in task.along_longest:
            yield Cell(plan, variant, protocol, length)


def missing_cells(cells: list[Cell], rows: list[Row], task: Task) -> list[Cell]:
    """The cells without a row of these very weights and targets."""
    measured = {
        (results.key_of(row), row["checkpoint_sha"])
        for row in rows
        if row["target_set"] == task.target_set
    }
    return [cell for cell in cells if (cell.key, cell.plan.sha) not in measured]


# Scoring


def fit_lengths(plans: list[Plan], task: Task, are_given: bool) -> list[Plan]:
    """The plans with the lengths that the task can be scored at.

    Default lengths that it cannot are left out, with a line; ValueError for given ones.
    """
    lengths = sorted({length for plan in plans for length in plan.lengths})
    problems = {length: why for length in lengths if (why := task.problem(length))}
    if not problems:
        return plans
    words = f"{', '.join(map(str, problems))}: {next(iter(problems.values()))}"
    if are_given or len(problems) == len(lengths):
        raise ValueError(f"--lengths has {words}")
    print(f"left out of the default lengths {words}", file=sys.stderr)
    return [replace(p, lengths=[n for n in p.lengths if n not in problems]) for p in plans]


def open_scoring_data(plans: list[Plan], args: Namespace) -> data.Dataset:
    """The dataset of --dataset, or the one that all runs were trained on; checked."""
    if args.dataset:
        dataset = open_dataset(args.dataset, plans, args)
        if dataset.meta["tokenizer"] != plans[0].tokenizer:
            raise data.DataError(f"{args.dataset} has a different tokenizer than {plans[0].path}")
        return dataset
    if imported := [plan.path for plan in plans if not plan.data]:
        raise ValueError(f"{imported[0]} was imported, not trained here; name a --dataset")
    names = sorted({plan.run["dataset"] for plan in plans})
    if len(names) > 1:
        names = " and ".join(names)
        raise ValueError(f"the runs were trained on {names}; evaluate one at a time")
    dataset = open_dataset(names[0], plans, args)
    for plan in plans:
        if plan.data != dataset.fingerprint:
            raise data.DataError(f"{dataset.name} is not the data that {plan.path} was trained on")
    return dataset


def open_task(plans: list[Plan], args: Namespace) -> Task:
    """The targets that all plans are scored on."""
    if len({json.dumps(plan.tokenizer) for plan in plans}) > 1:
        raise ValueError("the runs have different tokenizers; evaluate one kind at a time")
    tokenizer = from_meta(plans[0].tokenizer)
    trained = max(plan.config.train_len for plan in plans)
    dataset = partial(open_scoring_data, plans, args)
    request = Request(args.task, tokenizer, dataset, trained, args.counts)
    return task_class(args.task).open(request)


def read_unchanged(plan: Plan) -> dict:
    """The checkpoint that a plan was made for."""
    state = checkpoint.read(plan.path)
    if state["sha256"] != plan.sha256:
        instead = "stop its training, or evaluate a copy of its folder"
        raise checkpoint.CheckpointError(f"{plan.path} changed meanwhile; {instead}")
    return state


def build(plan: Plan, variant: Variant, state: dict, device: torch.device) -> GPT:
    """The model of a run in one variant, in eval mode."""
    config = checkpoint.with_overrides(plan.config, **variant.overrides)
    return (variant.build or checkpoint.build)(state, config).eval().to(device)


class Progress:
    """A line of progress with the time left, estimated from the tokens of all forward passes."""

    def __init__(self, cells: list[Cell], task: Task):
        self.task, self.done = task, 0
        self.total = max(1, sum(map(self.cost, cells)))
        self.began = time.monotonic()

    def cost(self, cell: Cell) -> int:
        return self.task.cost(cell.protocol, cell.length, cell.plan.config.train_len)

    def step(self, cell: Cell) -> None:
        self.done += self.cost(cell)
        elapsed = time.monotonic() - self.began
        left = elapsed * (self.total - self.done) / max(1, self.done)
        label = f"{cell.variant.label} {cell.protocol} {cell.length} {cell.plan.path}"
        progress(label, self.done / self.total, left)

    def close(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)


def score_all(cells: list[Cell], task: Task, path: Path, device: torch.device) -> None:
    """Score the cells, run by run and variant by variant, and append a row each."""
    origin = {"git": commit(), "torch": str(torch.__version__), "device": str(device)}
    bar = Progress(cells, task)
    for plan, of_plan in groupby(cells, key=lambda cell: cell.plan):
        state = read_unchanged(plan)
        shared: dict[tuple, Score] = {}
        for variant, of_variant in groupby(of_plan, key=lambda cell: cell.variant):
            model = build(plan, variant, state, device)
            for cell in of_variant:
                start = time.monotonic()
                score = score_cell(cell, model, task, shared)
                seconds = {"seconds": round(time.monotonic() - start, 2)}
                results.append(path, row_of(cell, task) | score.row | origin | seconds)
                bar.step(cell)
    bar.close()


def score_cell(cell: Cell, model: GPT, task: Task, shared: dict[tuple, Score]) -> Score:
    """The score of a cell. Up to the trained length all variants of a run share theirs."""
    key = cell.protocol, cell.length
    if cell.is_unextended and key in shared:
        return shared[key]
    score = task.score(model, *key, cell.variant.window)
    if not score.is_finite:
        instead = "score an earlier checkpoint, or train with a lower learning_rate"
        where = f"{cell.plan.path} {cell.variant.label} at {cell.length} tokens"
        raise errors.DivergedError(f"the {task.metric} of {where} is not finite; {instead}")
    if cell.is_unextended:
        shared[key] = score
    return score


def row_of(cell: Cell, task: Task) -> Row:
    """The fields of a row that describe its cell."""
    return cell.key._asdict() | {
        "folder": cell.plan.folder,
        "pos": cell.plan.config.pos,
        "trained": cell.plan.config.train_len,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "checkpoint_sha": cell.plan.sha,
        "target_set": task.target_set,
    }


# What comes out


def mirror(plan: Plan, rows: list[Row], path: Path, wandb: str) -> None:
    """Mirror the scores of each variant of a run in wandb, as a run of its own.

    rows: of one protocol.
    """
    for variant in plan.variants:
        factor = variant.overrides.get("rope_factor")
        of_variant = {"run": plan.name, "scaling": variant.label, "factor": factor}
        of_variant["checkpoint_sha"] = plan.sha
        scored = [with_mean(row) for row in rows if of_variant.items() <= row.items()]
        if scored:
            settings = plan.run | variant.overrides | {"name": plan.name, "wandb": wandb}
            curve(settings, path, scored)


def plot(summaries: list[Summary], unit: str, path: Path) -> None:
    """summaries: of one protocol."""
    from evaluation import drawing  # noqa: PLC0415 - half a second that others should not pay

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(drawing.by_length(summaries, unit, path.suffix[1:]))
    print(f"drew {path}", file=sys.stderr)


def show(cells: list[Cell], rows: list[Row], task: Task, args: Namespace) -> None:
    """Print and draw what the rows say of the cells: all seeds that they hold."""
    against = args.against or task.reference(args.task)
    compared = {against, *(cell.key.run for cell in cells)}
    asked = {cell.key._replace(seed=None) for cell in cells}
    summaries = summarise([row for row in rows if row["run"] in compared], against)
    summaries = [summary for summary in summaries if summary.key in asked]
    if args.against and not any(summary.above_window for summary in summaries):
        missing = f"--against: no rows of {against!r} at its trained length on these targets"
        print(f"{missing}; nothing is compared with it", file=sys.stderr)
    print("\n".join(terminal.lines(summaries, task.protocols, against)))
    if args.plot:
        first_protocol = next(iter(task.protocols))
        main = [summary for summary in summaries if summary.key.protocol == first_protocol]
        plot(main, task.unit, Path(args.plot).expanduser())


def evaluate(plans: list[Plan], args: Namespace) -> None:
    """Score the cells that the file lacks, then print and draw all cells of this call."""
    device, task = pick_device(args.device), open_task(plans, args)
    path = Path(args.json or f"results/{task.name}.jsonl").expanduser()
    rows = results.read(path)
    names = Names(rows, path)
    labels = args.label or [None] * len(plans)
    plans = [names.give(plan, label) for plan, label in zip(plans, labels, strict=True)]
    plans = fit_lengths(plans, task, args.lengths is not None)
    cells = [cell for plan in plans for cell in cells_of(plan, task)]
    missing = missing_cells(cells, rows, task)
    if len(missing) < len(cells):
        print(f"{len(cells) - len(missing)} of {len(cells)} cells are in {path}", file=sys.stderr)
    score_all(missing, task, path, device)
    rows = [row for row in results.read(path) if row["target_set"] == task.target_set]
    main_rows = [row for row in rows if row["protocol"] == next(iter(task.protocols))]
    for plan in {cell.plan.path: cell.plan for cell in missing}.values():
        mirror(plan, main_rows, path, args.wandb)
    show(cells, rows, task, args)
    print(f"\n{path}: {len(rows)} rows on these targets")


def main(argv: list[str]) -> None:
    args = parse(argv)
    plans = [plan_of(path, args) for path in args.runs] or all_plans(args)
    check_scalings(plans, args.rope_scaling)
    evaluate(plans, args)


if __name__ == "__main__":
    errors.run(main)
