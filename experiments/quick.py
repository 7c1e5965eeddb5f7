"""One figure of a quick comparison: loss on prose and accuracy of each task by context length.

`python -m experiments.quick FOLDER FIGURE.svg` draws all results files (TASK.jsonl) of a folder:
`experiments/reproduce.sh quick` writes them.
"""

import sys
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation import drawing, figures, results
from evaluation.drawing import STYLE, Look
from evaluation.statistics import comparable, summarise
from evaluation.tables import Method, Scores
from runtime import errors

COLUMNS = 3  # panels side by side


def draw(folder: Path) -> Figure:
    """A panel a results file, prose first; a line a run, the same look in all panels."""
    files = sorted(folder.glob("*.jsonl"), key=lambda path: (path.stem != "prose", path.stem))
    if not files:
        raise ValueError(f"{folder} holds no results; experiments/reproduce.sh quick writes them")
    panels = {path.stem: scores_of(path) for path in files}
    runs = sorted({method.run for scores in panels.values() for method in scores.methods})
    looks = {run: drawing.look(i) for i, run in enumerate(runs)}
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(9.5, 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axes, (name, scores) in zip(grid, panels.items(), strict=False):
        panel(axes, name, scores, looks)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    drawing.legend_outside(grid[min(COLUMNS, len(panels)) - 1], *grid)
    return figure


def scores_of(path: Path) -> Scores:
    """Scores at the lengths of a file, of the protocol that compares lengths."""
    protocol = "matched" if path.stem == "prose" else path.stem
    return Scores(summarise(comparable(results.read(path)), "rope"), protocol)


def panel(axes: Axes, name: str, scores: Scores, looks: dict[str, Look]) -> None:
    methods = {m.run: (Method(*m), looks[m.run]) for m in scores.methods if m.scaling == "none"}
    lines = figures.length_lines(scores, methods)
    drawing.draw_lines(axes, lines)
    drawing.length_axis(axes, scores.lengths, scores.trained)
    is_prose = name == "prose"
    axes.set_title("prose, loss in nats" if is_prose else f"{name}, accuracy")
    if is_prose:
        lowest = min(line.y.min() for line in lines)
        axes.set_ylim(lowest - 0.1, lowest + figures.TOP)
    else:
        axes.set_ylim(-0.03, 1.03)


def main(argv: list[str]) -> None:
    parser = errors.Parser(prog="python -m experiments.quick", description=__doc__)
    parser.add_argument("folder", type=Path, help="results of reproduce.sh quick")
    parser.add_argument("figure", type=Path, help="a .svg or .png to write")
    args = parser.parse_args(argv)
    with style.context(["default", STYLE]):
        drawn = drawing.content(draw(args.folder), args.figure.suffix[1:])
    args.figure.write_bytes(drawn)
    print(f"drew {args.figure}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
