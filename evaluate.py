"""Loss by context length, on the same tokens for every model: the judge.

matched: the same targets at every length, each with that many tokens before it (past the trained
length up to 1/64 less). windows: text cut into windows of each length, all their targets.
position: the loss along the longest window.
"""

import json
import math
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import torch

import data
import rope
from data.tokenizer import from_meta
from evaluation import statistics
from evaluation.scoring import FINE, Prose, Retrieval, Score
from model import GPT, GPTConfig
from positions import POSITIONS
from runtime import checkpoint, errors
from runtime.device import commit, pick_device
from runtime.log import progress
from runtime.wandb_mirror import curve

LENGTHS = "1/4x,1/2x,1x,2x,4x,8x,16x"
COUNTS = {"tokens": 1024, "window_tokens": 32768, "keys": 150}  # what is scored, unless given


def parse(argv: list[str]) -> Namespace:
    parser = errors.Parser(prog="python evaluate.py", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run folders, or checkpoints: out/rope out/alibi")
    add("--lengths", default=LENGTHS, help="context lengths: tokens (1024), or 4x, 1/2x the "
        f"trained length of each run (default: {LENGTHS})")  # fmt: skip
    add("--rope_scaling", help="of rope models: none,linear,dynamic_yarn,... (default: all, each "
        "fixed and dynamic; a model that was trained with a scaling: that one)")  # fmt: skip
    add("--rope_factor", type=float, default=4.0, help="of the fixed scalings (default: 4)")
    add("--passkey", action="store_true", help="keys named again, instead of loss on text")
    add("--tokens", type=int, help="targets of matched (default: 1024)")
    add("--window_tokens", type=int, help="targets of the others (default: 32768)")
    add("--keys", type=int, help="texts of a length with --passkey (default: 150)")
    add("--against", help="run that differences are also taken against, unscaled (default: rope, "
        "or passkey-rope)")  # fmt: skip
    add("--json", metavar="FILE", help="where the rows go (default: results/DATASET.json, or "
        "results/passkey.json); cells that it holds are not measured again")  # fmt: skip
    add("--data_dir", help="folder that holds the datasets (default: data/)")
    add("--wandb", default="auto", choices=("auto", "online", "offline", "disabled"))
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    args = parser.parse_args(argv)
    args.against = args.against or ("passkey-rope" if args.passkey else "rope")
    for name, default in COUNTS.items():
        given = getattr(args, name)
        if given is not None and args.passkey != (name == "keys"):
            raise ValueError(f"{name} does nothing {'with' if args.passkey else 'without'} "
                             "--passkey; leave it out")  # fmt: skip
        if given is not None and given < 1:
            raise ValueError(f"{name} is {given}; it must be at least 1")
        setattr(args, name, given or default)
    return args


def lengths_of(text: str, trained: int) -> list[int]:
    """Tokens meant by --lengths: `1024`, `4x` or `1/4x` the trained length, in rising order."""
    found = set()
    for word in text.split(","):
        meant = re.fullmatch(r"([0-9]{1,9}(?:/[1-9][0-9]{0,5})?|[0-9]{0,6}\.[0-9]{1,6})(x?)", word)
        length = Fraction(meant[1]) * (trained if meant[2] else 1) if meant else Fraction(0)
        if length < 1 or length.denominator > 1:
            rule = "tokens (1024) or trained lengths (4x, 1/4x), whole and at least 1"
            raise ValueError(f"lengths has {word!r}; it must be {rule}")
        found.add(int(length))
    return sorted(found)


@dataclass
class Form:
    """One way to read with a model past its trained length."""

    label: str
    overrides: dict[str, object]
    build: Callable[[dict, GPTConfig], GPT] = checkpoint.build  # from the state of a checkpoint


def forms(config: GPTConfig, scalings: str | None, factor: float) -> list[Form]:
    """All that is to be measured of one model; ValueError for scalings that it cannot have."""
    if scalings is None and (config.rope_scaling != "none" or config.rope_train_len):
        return [Form(config.rope_scaling, {})]  # as it was tuned
    if "rope_scaling" in POSITIONS[config.pos].settings(config):
        some = [name for name in rope.SCALINGS if name != "none"]
        every = ["none", *some, *(f"dynamic_{name}" for name in some)]
        names = scalings.split(",") if scalings else every
        fixed = {name: {"rope_factor": factor} for name in names if name in some}
        return [Form(name, {"rope_scaling": name} | fixed.get(name, {})) for name in names]
    extends = POSITIONS[config.pos](replace(config, beyond="extend"))
    ways = [way for way in extends.BEYOND if way != "slide" or extends.max_length < math.inf]
    return [Form("none" if way == "extend" else way, {"beyond": way}) for way in ways]


@dataclass
class Plan:
    """One run folder, what to measure of it, and on what."""

    path: str
    config: GPTConfig
    run: dict[str, object]  # all settings of its training
    sha256: str
    tokenizer: dict[str, object]
    data: dict[str, str]  # sha256 of what it was trained on and watched on
    forms: list[Form]
    lengths: list[int]
    protocols: tuple[str, ...] = ("matched", "windows", "position", "passkey")

    @property
    def name(self) -> str:
        return str(self.run["name"] or self.config.pos)


def plan_of(path: str, args: Namespace) -> Plan:
    state = checkpoint.read(path)
    if not state.keys() >= {"run", "tokenizer", "data"}:
        raise checkpoint.CheckpointError(f"{path} holds weights but no run to name and place them")
    config = checkpoint.config_of(state)
    ways = forms(config, args.rope_scaling, args.rope_factor)
    for form in ways:
        checkpoint.with_overrides(config, **form.overrides)  # refused now, and not an hour later
    lengths = lengths_of(args.lengths, config.train_len)
    known = state["run"], state["sha256"], state["tokenizer"], state["data"]
    return Plan(path, config, *known, ways, lengths)


def check_names(plans: list[Plan], rows: list[statistics.Row]) -> None:
    """A run is known by its name and seed: refuse two of one name, say where one is outdated."""
    seen: dict[tuple, Plan] = {}
    for plan in plans:
        other = seen.setdefault((plan.name, plan.run["seed"]), plan)
        if other.sha256 != plan.sha256:
            raise ValueError(f"{other.path} and {plan.path} are both {plan.name!r}, seed "
                             f"{plan.run['seed']}; train one with another --name")  # fmt: skip
        held = [r for r in rows if (r["run"], r["seed"]) == (plan.name, plan.run["seed"])]
        if any(row["checkpoint_sha"] != plan.sha256[:12] for row in held):
            print(f"{plan.path} has other weights than the rows of {plan.name!r}, seed "
                  f"{plan.run['seed']}: they go", file=sys.stderr)  # fmt: skip


def open_material(plans: list[Plan], args: Namespace) -> Prose | Retrieval:
    """What the runs are measured on: keys, or the held-out part of their own dataset."""
    if len({json.dumps(plan.tokenizer) for plan in plans}) > 1:
        raise ValueError("the runs have different tokenizers; evaluate one kind at a time")
    tokenizer = from_meta(plans[0].tokenizer)
    if args.passkey and tokenizer.kind != "char":
        raise ValueError(f"passkey needs a char tokenizer; the runs have {tokenizer.kind}")
    if args.passkey:
        return Retrieval(tokenizer, args.keys)
    names = sorted({plan.run["dataset"] for plan in plans})
    if len(names) > 1:
        raise ValueError(f"the runs were trained on {' and '.join(names)}; evaluate one at a time")
    folder = args.data_dir or plans[0].run["data_dir"]
    dataset = data.load(names[0], Path(folder) if folder else data.DATA)
    for plan in plans:
        if plan.data != dataset.fingerprint:
            raise data.DataError(f"{dataset.name} is not the data that {plan.path} was trained on")
    if "task" in dataset.meta:
        raise ValueError(f"{dataset.name} is a task of its own, not text; add --passkey")
    longest = max(max(plan.lengths) for plan in plans)
    return Prose(dataset, longest, (args.tokens, args.window_tokens))


@dataclass(frozen=True, eq=False)
class Cell:
    """One pass: a model in one form, one protocol, one length."""

    plan: Plan
    form: Form
    protocol: str
    length: int
    asked: str  # material.name: what else decides the result
    cost: int  # tokens to read, about

    @property
    def row(self) -> statistics.Row:
        c, factor = self.plan.config, self.form.overrides.get("rope_factor")
        return {
            "run": self.plan.name,
            "seed": self.plan.run["seed"],
            "pos": c.pos,
            "scaling": self.form.label,
            "factor": factor,
            "length": self.length,
            "ratio": round(self.length / c.train_len, 4),
            "protocol": self.protocol,
            "trained": c.train_len,
            "checkpoint_sha": self.plan.sha256[:12],
            "asked": self.asked,
        }

    @property
    def unextended(self) -> bool:
        """Whether it reads as the unscaled model does; a fixed scaling is always in force."""
        c, form = self.plan.config, self.form
        plain = form.build is checkpoint.build and "rope_factor" not in form.overrides
        plain = plain and c.attention_factor is None
        return plain and self.length <= min(c.train_len, c.block_size)

    def model(self, device: torch.device) -> GPT:
        state = checkpoint.read(self.plan.path)
        if state["sha256"] != self.plan.sha256:
            raise checkpoint.CheckpointError(f"{self.plan.path} changed meanwhile; start again")
        config = checkpoint.with_overrides(self.plan.config, **self.form.overrides)
        return self.form.build(state, config).eval().to(device)


def cells(plan: Plan, args: Namespace, material: Prose | Retrieval) -> Iterator[Cell]:
    """All cells of a run, in the order in which they are measured."""
    L = plan.config.train_len
    for form in plan.forms:
        for c in plan.lengths:
            if args.passkey:
                yield Cell(plan, form, "passkey", c, material.name, args.keys * c)
                continue
            cost = args.tokens * (c if c <= L else FINE)
            yield Cell(plan, form, "matched", c, material.name, cost)
            yield Cell(plan, form, "windows", c, material.name, args.window_tokens)
        if not args.passkey:
            yield Cell(plan, form, "position", max(plan.lengths), material.name, 0)


def lacking(todo: list[Cell], path: Path) -> list[Cell]:
    """The cells that a file does not hold yet, of these very weights and targets."""
    settled = (*statistics.SAME, "seed", "checkpoint_sha", "asked")
    held = {tuple(row.get(name) for name in settled) for row in statistics.read(path)}
    return [cell for cell in todo if tuple(cell.row[name] for name in settled) not in held]


def measure(todo: list[Cell], material: Prose | Retrieval, path: Path, device: torch.device):
    """Score the cells and append a row each, with a line of progress."""
    origin = {"git": commit(), "torch": str(torch.__version__), "device": str(device)}
    began, done, total = time.monotonic(), 0, sum(cell.cost for cell in todo)
    for _, of_run in groupby(todo, lambda cell: cell.plan.path):
        within: dict[tuple, Score] = {}
        for _, of_form in groupby(of_run, lambda cell: cell.form.label):
            model = None
            for cell in of_form:
                start = time.monotonic()
                model = model or cell.model(device)
                # Up to the trained length all ways to go past it are one model: scored once.
                key = (cell.protocol, cell.length) if cell.unextended else cell
                score = within.get(key) or getattr(material, cell.protocol)(model, cell.length)
                within[key] = score
                row = cell.row | score.row | origin
                statistics.add(path, row | {"seconds": round(time.monotonic() - start, 2)})
                done += cell.cost
                left = (time.monotonic() - began) * (total - done) / max(1, done)
                what = f"{cell.form.label} {cell.protocol} {cell.length} {cell.plan.path}"
                progress(what, done / max(1, total), left)


def mirror(plan: Plan, rows: list[statistics.Row], path: Path, wandb: str) -> None:
    """The curves of a run's forms in wandb, each a run of its own beside the training's."""
    for form in plan.forms:
        alike = {"checkpoint_sha": plan.sha256[:12], "scaling": form.label}
        if of := [row for row in rows if alike.items() <= row.items()]:
            curve(plan.run | form.overrides | {"wandb": wandb}, path, of)


def evaluate(plans: list[Plan], args: Namespace) -> None:
    """Measure what the file does not hold yet, settle it, mirror it, print its tables."""
    device, material = pick_device(args.device), open_material(plans, args)
    name = "passkey" if args.passkey else plans[0].run["dataset"]
    path = Path(args.json or f"results/{name}.json")
    check_names(plans, statistics.read(path))
    todo = [c for p in plans for c in cells(p, args, material) if c.protocol in p.protocols]
    rest = lacking(todo, path)
    if len(rest) < len(todo):
        print(f"{len(todo) - len(rest)} of {len(todo)} cells are in {path}", file=sys.stderr)
    measure(rest, material, path, device)
    print("\r\033[K" * sys.stderr.isatty(), end="", file=sys.stderr)
    names = {cell.row["run"] for cell in todo}
    rows = [row for row in statistics.settle(path, args.against) if row["run"] in names]
    for p in {cell.plan.path: cell.plan for cell in rest}.values():
        mirror(p, statistics.read(path), path, args.wandb)
    print("\n".join(statistics.lines(rows)))
    print(f"\n{path}: {len(statistics.read(path))} rows")


def main(argv: list[str]) -> None:
    args = parse(argv)
    evaluate([plan_of(path, args) for path in args.runs], args)


if __name__ == "__main__":
    errors.run(main)
