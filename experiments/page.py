"""The tables of docs/claims.md, from results/claims/*.json: `python -m experiments.page`."""

import json
import sys
from importlib import import_module
from pathlib import Path

import cli
import tables
from experiments import ROOT, TASKS

SCRIPTS = "bands temperature ranking texts".split()
MAKER = "experiments"
HEAD = "read with | prose 2x | 4x | 8x | keys 2x | 4x | 8x".split(" | ")


def scored(script: str, root: Path) -> str:
    """Harm on prose and keys named, a row a form, in the order of the script."""
    found = {task: tables.read(root / f"results/claims/{task}.json") for task in TASKS}
    prose = tables.Scores(found["prose"], "matched")
    keys = tables.Scores(found["keys"], "passkey")
    rows = []
    for form in import_module(f"experiments.{script}").FORMS:
        method = tables.Method("rope", form.label)
        cells = [tables.harm(prose.at(method, n * prose.trained)) for n in (2, 4, 8)]
        at = [keys.at(method, n * keys.trained) for n in (2, 4, 8)]
        rows.append([form.label, *cells, *(tables.spread(r, "accuracy", ".2f") for r in at)])
    seeds = f"prose: seeds {prose.seeds()}, keys: {keys.seeds()}"
    return tables.markdown(HEAD, rows) + f"\n{seeds}.\n"


def exact(root: Path) -> str:
    found = json.loads((root / "results/claims/exact.json").read_text())
    rows = [[name, f"{value:.2g}"] for name, value in found.items()]
    return tables.markdown(["largest difference", "measured"], rows)


def page(root: Path) -> str:
    """docs/claims.md as it should be."""
    made = {name: scored(name, root) for name in SCRIPTS} | {"exact": exact(root)}
    text = (root / "docs/claims.md").read_text()
    tables.markers(text, made, MAKER)
    for name, table in made.items():
        text = tables.splice(text, name, table, MAKER)
    return text


def main(argv: list[str], root: Path = ROOT) -> int:
    parser = cli.Parser(prog="python -m experiments.page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where stale")
    args, path = parser.parse_args(argv), root / "docs/claims.md"
    text = page(root)
    if not args.check:
        path.write_text(text)
    elif text != path.read_text():
        print(
            "error: docs/claims.md not up to date; run python -m experiments.page", file=sys.stderr
        )
        return 1
    return cli.DONE


if __name__ == "__main__":
    cli.end(main)
