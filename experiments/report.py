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
from matplotlib.figure import Figure

from data.tasks import PARTS
from evaluation import drawing, figures, tables, training
from evaluation.tables import Method, Scores, markdown
from experiments import claim_figures, lead, lesson
from experiments.claims import RATIOS, RESULTS, scores_of
from experiments.claims import kv_cache as cache_claim
from runtime import errors

ROOT = Path(__file__).parent.parent
MARKER = "<!-- {}report {} -->"
CLAIMS = (  # scripts that score on prose and on retrieval, in the order of docs/claims.md
    "which_planes temperature scalings naive_yarn rerope finetune amplitude linear_attention "
    "precision base gqa encodings trained_frequencies gates drope train_positions hybrid "
    "remapping logit_scale optimizer t5_biases"
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
        "all": lambda: tables.everything(text(), keys()),
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
        "headline": lambda: lead.headline(*r.claims()),
        "tasks": lambda: lead.tasks_table(r.tasks()),
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
        "lead": lambda: lead.figure(*r.claims()),
        "extrapolation": lambda: figures.extrapolation(text(), keys()),
        "training": lambda: figures.training(r.training(), r.pos()),
        "decoding": lambda: figures.decoding(r.record("bench")),
        "planes": lambda: claim_figures.planes(*r.claims()),
        "tuning": lambda: claim_figures.tuning(*r.claims()),
        "bases": lambda: claim_figures.bases(*r.claims()),
        **lesson.FIGURES,
    }


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
