"""The tables and figures of docs/claims.md, from results/: `python -m experiments.page`."""

import json
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np

from evaluation import drawing, tables
from evaluation.tables import Method, Scores, fixed, harm, markdown, spread
from experiments import figures
from experiments.claims import RATIOS, RESULTS, ROOT, TASKS, scores_of
from experiments.claims import kv_cache as cache
from runtime import errors

SCRIPTS = (  # that score on both tasks, by the number of their claim
    "which_planes temperature scalings naive_yarn rerope finetune amplitude linear_attention "
    "precision base gqa"
).split()
BY_ITSELF = "amplitude linear_attention base gqa".split()  # models compared, each with itself at 1x
MAKER = "experiments"
BEYOND = [  # of reproduce.sh: absolute positions past their end, and position interpolation
    *(Method("learned", way) for way in ("none", "slide", "interpolate")),
    *(Method("sinusoidal", way) for way in ("none", "interpolate")),
    Method("rope"),
    Method("rope", "linear", 4.0),
    Method("finetune-linear", "linear"),
]


def lost(row: dict) -> str:
    """As tables.harm, to the model itself at its trained length, unscaled."""
    if row.get("gain") is None:
        return "-"
    return f"{fixed(-row['gain'], '+.2f')} ± {(row['gain_high'] - row['gain_low']) / 2:.2f}"


def cell(row: dict, task: str, beyond: Callable[[dict], str]) -> str:
    """Keys named; of prose the loss at the trained length, and beyond it what is lost."""
    if task == "keys":
        return spread(row, "accuracy", ".2f")
    return spread(row, "loss", ".3f") if row.get("length") == row.get("trained") else beyond(row)


def table(
    shown: dict[str, Method],
    prose: Scores,
    keys: Scores,
    ratios: tuple[int, ...] = RATIOS,
    beyond: Callable[[dict], str] = harm,
) -> str:
    """A line a method, under the name it is shown by; columns by length, but for 1x where there
    all are one model."""
    columns = {
        (task, n): [cell(s.at(method, n * s.trained), task, beyond) for method in shown.values()]
        for task, s in zip(TASKS, (prose, keys), strict=True)
        for n in ratios
    }
    if all(len(set(columns[task, 1])) == 1 for task in TASKS):
        ratios = ratios[1:]
    head = [f"{task} {n}x" if n == ratios[0] else f"{n}x" for task in TASKS for n in ratios]
    cells = zip(*(columns[task, n] for task in TASKS for n in ratios), strict=True)
    rows = [[name, *row] for name, row in zip(shown, cells, strict=True)]
    counts = f"prose: seeds {prose.seeds(*shown.values())}, keys: {keys.seeds(*shown.values())}"
    return markdown(["read with", *head], rows) + f"\n{counts}.\n"


def scored(script: str, upto: Callable[[int], tuple[Scores, Scores]]) -> str:
    """What a script has scored, in its order; models compared, each with itself at 1x."""
    module, shown = import_module(f"experiments.claims.{script}"), {}
    for model in module.MODELS:
        for form in model.forms:
            factor = form.overrides.get("rope_factor")
            name = form.label if len(module.MODELS) == 1 else model.name
            name += f", {form.label}" * (len(model.forms) > 1 < len(module.MODELS))
            name += f", factor {factor:g}" if factor else ""
            shown[name] = Method(model.name, form.label, factor)
    ratios = getattr(module, "RATIOS", RATIOS)
    return table(shown, *upto(ratios[-1]), ratios, lost if script in BY_ITSELF else harm)


def beyond(root: Path) -> str:
    """The README's results, of what does not turn."""
    found = tables.load(root)
    shown = {str(method).replace("`", ""): method for method in BEYOND}
    return table(shown, found["matched"], found["passkey"])


def recorded(root: Path, name: str) -> dict:
    """What a script measured by itself."""
    return json.loads((root / RESULTS / f"{name}.json").read_text())


def exact(root: Path) -> str:
    rows = [[name, f"{value:.3g}"] for name, value in recorded(root, "exact").items()]
    return markdown(["largest difference; of the ratio its mean", "measured"], rows)


def over_seeds(values: np.ndarray, form: str) -> str:
    """Mean and standard deviation."""
    return f"{values.mean():{form}} ± {values.std(ddof=1):{form.lstrip('+')}}"


def caches(root: Path) -> str:
    """Along a generation: losses of a forward pass, and what others lose to it, seed by seed."""
    found = {
        name: np.array(values)
        for task in TASKS
        for name, values in recorded(root, f"cache-{task}").items()
    }
    rows = []
    for scaling in cache.SCALINGS:
        exactly = found[f"prose, {scaling}, {cache.WAYS[0]}"]  # (seeds, parts)
        for way in cache.WAYS:
            losses, form = found[f"prose, {scaling}, {way}"], ".3f"
            if way != cache.WAYS[0]:
                losses, form = losses - exactly, "+.3f"
            text = [over_seeds(column, form) for column in losses.T]
            keys = [over_seeds(column, ".2f") for column in found[f"keys, {scaling}, {way}"].T]
            rows.append([f"{scaling}, {way}", *text, *keys])
    head = ["read with", "prose 1x-2x", "2x-3x", "3x-4x", "keys 2x", "4x"]
    return markdown(head, rows) + f"\nseeds {len(exactly)}.\n"


def costs(root: Path) -> str:
    """Microseconds a token, by length; the share of negative weights."""
    found = recorded(root, "linear-cost")
    rows = [
        [name, *("{:.1f} ({:.1f} to {:.1f})".format(*of[name]) for of in found.values())]
        for name in ("softmax", "linear")
    ]
    shares = [np.array(recorded(root, f"linear-{task}")["negative"]) for task in TASKS]
    said = [f"{task} {over_seeds(x, '.2f')}" for task, x in zip(TASKS, shares, strict=True)]
    head = ["microseconds a token at", *(f"{int(length):,}" for length in found)]
    return markdown(head, rows) + f"\nnegative weights: {', '.join(said)} (of 1).\n"


def scores(root: Path, longest: int) -> tuple[Scores, Scores]:
    """Of prose and of keys, of all scripts that go up to this length."""
    prose, keys = (tables.read(root / scores_of(task, longest)) for task in TASKS)
    return Scores(prose, "matched"), Scores(keys, "passkey")


def page(root: Path, upto: Callable[[int], tuple[Scores, Scores]]) -> str:
    """docs/claims.md as it should be."""
    made = {name: scored(name, upto) for name in SCRIPTS}
    made |= {"identities": exact(root), "beyond": beyond(root)}
    made |= {"kv_cache": caches(root), "linear_cost": costs(root)}
    text = (root / "docs/claims.md").read_text()
    tables.markers(text, made, MAKER)
    for name, content in made.items():
        text = tables.splice(text, name, content, MAKER)
    return text


def main(argv: list[str], root: Path = ROOT) -> int:
    parser = errors.Parser(prog="python -m experiments.page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where stale")
    args, path = parser.parse_args(argv), root / "docs/claims.md"
    upto = lru_cache(partial(scores, root))
    text, drawings = page(root, upto), drawing.drawn(root, figures.figures(*upto(RATIOS[-1])))
    if args.check:
        old = ["docs/claims.md"] * (text != path.read_text()) + drawing.redrawn(drawings)
        if old:
            said = f"error: {', '.join(old)} not up to date; run python -m experiments.page"
            print(said, file=sys.stderr)
        return 1 if old else 0
    path.write_text(text)
    for file, content in drawings.items():
        file.write_bytes(content)
    return errors.DONE


if __name__ == "__main__":
    errors.run(main)
