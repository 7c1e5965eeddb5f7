"""Write every figure and table of README.md and docs/ from results/: `--check` writes nothing.

Figures are docs/NAME.svg and .png. A table stands between `<!-- report NAME -->` and
`<!-- /report NAME -->`, on whatever page has these lines.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rope
from data.tasks import PARTS
from evaluation import drawing, figures, tables, training
from evaluation.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, RED, SKY, Line, Look
from evaluation.statistics import Estimate
from evaluation.tables import HEADLINE, Method, Scores, markdown
from experiments import lead, lesson
from experiments.claims import NONE, RATIOS, RESULTS, YARN, scores_of
from experiments.claims import base as base_claim
from experiments.claims import finetune as finetune_claim
from experiments.claims import kv_cache as cache_claim
from runtime import errors

ROOT = Path(__file__).parent.parent
MARKER = "<!-- {}report {} -->"
CLAIMS = (  # scripts that score on prose and on retrieval, in the order of docs/claims.md
    "which_planes temperature scalings naive_yarn rerope finetune amplitude linear_attention "
    "precision base gqa encodings trained_frequencies gates drope train_positions hybrid "
    "remapping"
).split()
# Different models are compared there: each with itself at the trained length.
OF_SEVERAL_MODELS = ("amplitude", "linear_attention", "base", "gqa")
BEYOND = [  # absolute positions past their end, and position interpolation
    *(Method("learned", scaling) for scaling in ("none", "slide", "interpolate")),
    *(Method("sinusoidal", scaling) for scaling in ("none", "interpolate")),
    Method("rope"),
    Method("rope", "linear", 4.0),
    Method("finetune-linear", "linear"),
]
HEAD_DIM = 32  # of the models of the claims
TRAINED = {"prose": 256, "retrieval": 128}  # lengths
PLANES = {  # variants of the claim which_planes: label, colour
    "none": ("nothing", BLACK),
    "slow planes, under 1": ("slow planes", BLUE),
    "fast planes, from 1": ("fast planes", ORANGE),
    "linear": ("all: linear", SKY),
    "yarn": ("yarn", RED),
}
NO_STEPS = 4  # where zero steps stand on a logarithmic axis


class Results:
    """The committed results of a repository, read once."""

    def __init__(self, root: Path):
        self.root = root
        self.main = lru_cache(self._main)
        self.claims = lru_cache(self._claims)

    def _main(self, protocol: str) -> Scores:
        retrieval = protocol == "passkey"
        path = self.root / f"results/{'passkey' if retrieval else 'prose'}.jsonl"
        return Scores(tables.load(path, "passkey-rope" if retrieval else "rope"), protocol)

    def _claims(self) -> tuple[Scores, Scores]:
        """Prose and retrieval of all claims."""
        prose = tables.load(self.root / scores_of("prose"), "rope")
        keys = tables.load(self.root / scores_of("keys"), "passkey-rope")
        return Scores(prose, "matched"), Scores(keys, "passkey")

    def tasks(self) -> dict[str, Scores]:
        """Those of the mixture."""
        return {
            name: Scores(tables.load(self.root / scores_of(name), "mixture-rope"), name)
            for name in PARTS
        }

    def record(self, name: str) -> dict:
        """A JSON file of results/; ValueError if it is missing or damaged."""
        path = self.root / f"results/{name}.json"
        tables.check_exists(path)
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def training(self) -> list[dict]:
        path = self.root / "results/training.jsonl"
        tables.check_exists(path)
        return training.read(path)

    def pos(self) -> dict[str, str]:
        """The encoding of each run."""
        return self.main("passkey").pos | self.main("matched").pos


# Tables


def table_makers(r: Results) -> dict[str, Callable[[], str]]:
    """Every table by the name of its marker."""
    text, keys = partial(r.main, "matched"), partial(r.main, "passkey")
    makers = {
        "headline": lambda: tables.headline(text(), keys(), HEADLINE),
        "all": lambda: tables.headline(text(), keys()),
        "room": lambda: tables.room(text()),
        "prose": lambda: tables.prose(text()),
        "windows": lambda: tables.by_length(r.main("windows"), lambda s: tables.score(s, ".3f")),
        "passkey": lambda: tables.by_length(keys(), lambda s: tables.score(s, ".2f")),
        "bench": lambda: tables.speed(r.record("bench")),
        "faults": lambda: tables.faults(r.record("faults")),
        "beyond": lambda: beyond(text(), keys()),
        "identities": lambda: identities(r),
        "kv_cache": lambda: kv_cache(r),
        "linear_cost": lambda: linear_cost(r),
        "best_known": lambda: lead.headline(*r.claims()),
        "lead": lambda: lead.table(*r.claims(), r.tasks(), claim_record(r, "cost")),
    }
    return makers | {name: partial(claim, r, name) for name in CLAIMS}


def beyond(text: Scores, keys: Scores) -> str:
    shown = {str(method).replace("`", ""): method for method in BEYOND}
    return tables.compare(shown, text, keys, RATIOS)


def claim(r: Results, script: str) -> str:
    """The scores of a claim, in the order of its script."""
    module = import_module(f"experiments.claims.{script}")
    shown = {}
    for model in module.MODELS:
        for variant in model.variants:
            factor = variant.overrides.get("rope_factor")
            parts = [model.name] if len(module.MODELS) > 1 else []
            if len(module.MODELS) == 1 or len(model.variants) > 1:
                parts.append(variant.label)
            if factor:
                parts.append(f"factor {factor:g}")
            shown[", ".join(parts)] = Method(model.name, variant.label, factor)
    ratios = getattr(module, "RATIOS", RATIOS)
    several = script in OF_SEVERAL_MODELS
    column = tables.excess_over_itself if several else tables.excess
    return tables.compare(shown, *r.claims(), ratios, column)


def claim_record(r: Results, name: str) -> dict:
    return r.record(f"{RESULTS.removeprefix('results/')}/{name}")


def identities(r: Results) -> str:
    rows = [[name, f"{value:.3g}"] for name, value in claim_record(r, "identities").items()]
    return markdown(["largest difference (of a ratio: its mean)", "measured"], rows)


def over_seeds(values: np.ndarray, form: str) -> str:
    """Mean and standard deviation of values (seeds,)."""
    return f"{values.mean():{form}} ± {values.std(ddof=1):{form.lstrip('+')}}"


def kv_cache(r: Results) -> str:
    """Along a generation: losses of a forward pass, and how those of each cache differ, by seed."""
    record = claim_record(r, "kv_cache-prose") | claim_record(r, "kv_cache-keys")
    values = {name: np.array(rows) for name, rows in record.items()}  # (seeds, columns)
    exact, *cached = cache_claim.METHODS
    rows = []
    for scaling in cache_claim.SCALINGS:
        reference = values[f"prose, {scaling}, {exact}"]
        for kind in (exact, *cached):
            losses, form = values[f"prose, {scaling}, {kind}"], ".3f"
            if kind != exact:
                losses, form = losses - reference, "+.3f"
            text = [over_seeds(column, form) for column in losses.T]
            keys = [over_seeds(c, ".2f") for c in values[f"keys, {scaling}, {kind}"].T]
            rows.append([f"{scaling}, {kind}", *text, *keys])
    head = ["method", "prose 1x-2x", "2x-3x", "3x-4x", "retrieval 2x", "4x"]
    return markdown(head, rows) + f"\nSeeds: {len(reference)}.\n"


def linear_cost(r: Results) -> str:
    """Microseconds a token by length, and the share of negative weights."""
    cost = claim_record(r, "linear_attention-cost")
    rows = []
    for name in ("softmax", "linear"):
        cells = ["{:.1f} ({:.1f} to {:.1f})".format(*times[name]) for times in cost.values()]
        rows.append([name, *cells])
    shares = []
    for task, label in (("prose", "prose"), ("keys", "retrieval")):
        share = np.array(claim_record(r, f"linear_attention-{task}")["negative"])
        shares.append(f"{label} {over_seeds(share, '.2f')}")
    head = ["microseconds a token at", *(f"{int(length):,}" for length in cost)]
    return markdown(head, rows) + f"\nShare of negative weights: {', '.join(shares)}.\n"


# Figures


def figure_makers(r: Results) -> dict[str, Callable[[], Figure]]:
    """Every figure by the name of its file in docs/."""
    text, keys = partial(r.main, "matched"), partial(r.main, "passkey")
    return {
        "extrapolation": lambda: figures.extrapolation(text(), keys()),
        "training": lambda: figures.training(r.training(), r.pos()),
        "decoding": lambda: figures.decoding(r.record("bench")),
        "planes": lambda: planes(*r.claims()),
        "tuning": lambda: tuning(*r.claims()),
        "bases": lambda: bases(*r.claims()),
        **lesson.FIGURES,
    }


def planes(prose: Scores, keys: Scores) -> Figure:
    """Revolutions of each plane in training, and the scores at 4x if some planes are slowed."""
    figure = Figure(figsize=(9.5, 3.4))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    figure.subplots_adjust(left=0.05, right=0.985, top=0.9, bottom=0.15, wspace=0.6)
    revolutions(left)
    methods = [Method("rope", label) for label in PLANES]
    bars(middle, [prose.at(method, 4).above_window for method in methods])
    bars(right, [keys.at(method, 4).score for method in methods])
    middle.set_title("prose at 4x")
    middle.set_xlabel("excess loss, nats a character")
    middle.set_ylabel("slowed by 4")
    right.set_title("retrieval at 4x")
    right.set_xlabel("accuracy")
    right.set_xlim(0, 1)
    return figure


def revolutions(axes: Axes) -> None:
    """Revolutions within the trained length, and within 4x as long, plane by plane."""
    inv_freq = rope.frequencies(HEAD_DIM)[0]
    index = np.arange(HEAD_DIM // 2)
    for (task, length), colour in zip(TRAINED.items(), (BLACK, GREEN), strict=True):
        rotations = rope.rotations(inv_freq, length).numpy()
        axes.plot(index, rotations, "o-", color=colour, markersize=3, label=f"{task}, L = {length}")
        axes.plot(index, 4 * rotations, ":", color=colour, lw=1)
    axes.set_yscale("log")
    axes.set_ylim(3e-3, 300)
    axes.axhspan(3e-3, 1, color="0.93", lw=0)
    note = "less than one revolution:\nat 4x (dotted)\nthe angles are new"
    axes.text(0, 0.04, note, va="top", fontsize=8, color="0.3")
    axes.set_title("revolutions within the trained length")
    axes.set_xlabel("plane, high to low frequency")
    axes.legend(loc="upper right")


def bars(axes: Axes, estimates: list[Estimate]) -> None:
    """A bar a variant of PLANES, with its 95 % interval."""
    for place, (estimate, (_, colour)) in enumerate(zip(estimates, PLANES.values(), strict=True)):
        error = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
        axes.barh(place, estimate.mean, color=colour, xerr=error, ecolor=GREY, height=0.65)
    axes.set_yticks(range(len(PLANES)), [label for label, _ in PLANES.values()])
    axes.invert_yaxis()


def tuning(prose: Scores, keys: Scores) -> Figure:
    """Excess loss and accuracy against the steps of fine-tuning at 4x."""
    figure = Figure(figsize=(9.5, 3.2))
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.04, right=0.91, top=0.9, bottom=0.15, wspace=0.2)
    shown = [
        (prose, 4, "above_window", "excess loss at 4x, nats", (-0.05, 1)),
        (prose, 1, "above_window", "excess loss at 1x, nats", (-0.05, 1)),
        (keys, 4, "score", "retrieval at 4x, accuracy", (-0.02, 1.02)),
    ]
    for axes, (scores, ratio, name, title, limits) in zip(panels, shown, strict=True):
        axes.set_title(title)
        axes.set_xlabel("steps, each one window of 4x")
        axes.set_xscale("log")
        axes.set_xticks([NO_STEPS, *finetune_claim.STEPS], [0, *finetune_claim.STEPS])
        axes.minorticks_off()
        axes.set_ylim(*limits)
        axes.axhline(0, color=GREY, ls=":", lw=1)
        drawing.draw_lines(axes, tuning_lines(scores, ratio, name))
    drawing.legend_outside(panels[-1])
    return figure


def tuning_lines(scores: Scores, ratio: int, name: str) -> list[Line]:
    lines = []
    for scaling in finetune_claim.SCALINGS:
        methods = {NO_STEPS: Method("rope", scaling, None if scaling == "none" else 4.0)}
        for steps in finetune_claim.STEPS:
            methods[steps] = Method(f"tuned-{scaling}-{steps}", scaling)
        points = [(x, *getattr(scores.at(m, ratio), name)) for x, m in methods.items()]
        lines.append(drawing.line(scaling, figures.scaling_look(scaling), points))
    return lines


def bases(prose: Scores, keys: Scores) -> Figure:
    """Loss over the same model at 1x, and accuracy, against the base in training."""
    figure = Figure(figsize=(8, 3.2))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.05, right=0.85, top=0.9, bottom=0.15, wspace=0.16)
    left.set_title("prose at 4x, loss minus that at 1x, nats")
    right.set_title("retrieval, accuracy")
    shown = ((NONE.label, 4, BLACK), (YARN.label, 4, RED), (NONE.label, 1, GREEN))
    drawing.draw_lines(left, [by_base(prose, *line, "gain") for line in shown[:2]])
    drawing.draw_lines(right, [by_base(keys, *line, "score") for line in shown])
    left.set_ylim(-0.02, 1.7)
    right.set_ylim(-0.02, 1.02)
    for axes in (left, right):
        axes.set_xlabel("base in training")
        axes.set_xscale("log")
        axes.set_xticks(base_claim.BASES, "24 100 10k 1M".split())
        axes.minorticks_off()
    drawing.legend_outside(right, left)
    return figure


def by_base(scores: Scores, scaling: str, ratio: int, colour: str, name: str) -> Line:
    points = []
    for base, model in zip(base_claim.BASES, base_claim.MODELS, strict=True):
        estimate = getattr(scores.at(Method(model.name, scaling), ratio), name)
        points.append((base, *(-estimate if name == "gain" else estimate)))
    return drawing.line(f"{scaling} at {ratio}x", Look(colour), points)


# Pages


def fill(page: str, makers: dict[str, Callable[[], str]]) -> str:
    """A page with new tables between its markers; ValueError for markers that are wrong."""
    for name in dict.fromkeys(re.findall(r"^<!-- /?report (.*?) -->$", page, re.MULTILINE)):
        start, end = MARKER.format("", name), MARKER.format("/", name)
        if name not in makers:
            raise ValueError(f"{start} marks no table; there are {', '.join(makers)}")
        parts = re.split(f"^({start}\n)(?:.*\n)*?({end})$", page, flags=re.MULTILINE)
        if len(parts) != 4:
            raise ValueError(f"{start} and {end} must be lines of the page, once each")
        page = parts[0] + parts[1] + makers[name]() + parts[2] + parts[3]
    return page


def pages(root: Path) -> dict[Path, bytes]:
    """README.md and docs/*.md as they should be."""
    makers = {name: lru_cache(make) for name, make in table_makers(Results(root)).items()}
    paths = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths if path.exists()}
    return {path: fill(text, makers).encode() for path, text in texts.items()}


def pictures(root: Path) -> dict[Path, bytes]:
    """Every figure as it should be, as svg and png."""
    drawn = {}
    with style.context(["default", drawing.STYLE]):  # whatever matplotlibrc says
        for name, make in figure_makers(Results(root)).items():
            figure = make()
            for kind in ("svg", "png"):
                drawn[root / f"docs/{name}.{kind}"] = drawing.content(figure, kind)
    return drawn


def stale(root: Path) -> list[str]:
    """The files that are not as they should be."""
    old = [path for path, now in pages(root).items() if path.read_bytes() != now]
    old += [path for path, now in pictures(root).items() if drawing.is_stale(path, now)]
    return [str(path.relative_to(root)) for path in old]


def main(argv: list[str], root: Path = ROOT) -> int:
    parser = errors.Parser(prog="python -m experiments.report", description=__doc__)
    add = parser.add_mutually_exclusive_group().add_argument
    training_help = "run folders to condense first, in place of all in results/training.jsonl"
    add("--training", nargs="+", metavar="RUN", help=training_help)
    add("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    args = parser.parse_args(argv)
    if args.check:
        old = stale(root)
        if old:
            names = ", ".join(old)
            print(f"error: {names} out of date; run python -m experiments.report", file=sys.stderr)
        return 1 if old else 0
    if args.training:
        path = root / "results/training.jsonl"
        training.condense(args.training, path)
        print(f"{path} now holds {len(args.training)} runs and no other", file=sys.stderr)
    for path, now in (pages(root) | pictures(root)).items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(now)
    return 0


if __name__ == "__main__":
    errors.run(main)
