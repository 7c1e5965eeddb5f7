"""What leads docs/results.md: every method in one table, and in one figure."""

from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from evaluation import tables
from evaluation.drawing import BLACK, BLUE, GREEN, GREY, RED
from evaluation.statistics import Estimate, Summary
from evaluation.tables import Method, Scores, interval, markdown

TASKS = "multikey overwrite copy locate-recurrent locate-absolute locate-growing".split()
AT = (4, 16)  # trained lengths at which the table has the excess loss
HYBRID, TRAIN = "train with windows", "train with it"
TUNE, READ = "tune a RoPE model", "read a RoPE model"
COLOURS = {TRAIN: BLACK, HYBRID: RED, TUNE: GREEN, READ: BLUE}
PLACES = [  # of a label beside its dot, in points: the first that is free is taken
    (dx, dy) for dy in (8, -8, 19, -19, 30, -30, 41, -41) for dx in (6, -6, 24, -24)
]


class Entry(NamedTuple):
    """A row: how one comes by the method, its name in the figure (none: not drawn), and among the
    costs (None: those of rope, or unknown)."""

    method: Method
    how: str
    name: str
    cost: str | None = None


def trained(run: str, name: str, cost: str | None = None, how: str = TRAIN) -> Entry:
    return Entry(Method(run), how, name, cost or run)


def read(variant: str, name: str, cost: str | None = None) -> Entry:
    return Entry(Method("rope", variant), READ, name, cost)


ENTRIES = [
    trained("rope", "RoPE"),
    trained("alibi", "ALiBi"),
    trained("hard_alibi", "hard ALiBi"),
    trained("t5", "T5"),
    trained("t5-10x", "T5, fast", "t5"),
    trained("kerple", "KERPLE"),
    trained("fire", "FIRE"),
    trained("fox", "FoX"),
    trained("fox-5", "FoX, open", "fox"),
    trained("pope", "PoPE"),
    trained("nope", "NoPE", "none"),
    trained("hope", "HoPE", "rope"),
    trained("lerope", "", "rope, learned"),
    trained("p-rope-0.25", "p-RoPE", "rope"),
    Entry(Method("p-rope-0.25", "yarn"), TRAIN, "", "rope"),
    trained("rope-random", "random positions", "rope"),
    trained("swa", "RoPE in windows", "swa", how=HYBRID),
    trained("hybrid", "hybrid", how=HYBRID),
    Entry(Method("hybrid", "logn"), HYBRID, "", "hybrid, logn"),
    Entry(Method("drope"), TUNE, "DroPE", "none"),
    Entry(Method("pose", "yarn"), TUNE, "PoSE", "rope, yarn"),
    Entry(Method("tuned-yarn-100", "yarn"), TUNE, "YaRN, tuned", "rope, yarn"),
    read("yarn", "YaRN", "rope, yarn"),
    read("yarn, log-n", ""),
    read("none, log-n", "log-n"),
    read("ReRoPE, W = 0.5 L", "ReRoPE"),
    read("Self-Extend, G = 8, W = L/2", "Self-Extend"),
    read("Dual Chunk", "Dual Chunk"),
    read("StreamingLLM", "StreamingLLM"),
]


BEST_KNOWN = [  # of README.md
    *map(Method, "hybrid kerple fox alibi pope fire t5 nope rope".split()),
    Method("rope", "yarn"),
]


def table(prose: Scores, keys: Scores, tasks: dict[str, Scores], cost: dict) -> str:
    """A row a method: losses, retrieval, tasks of the mixture at 4x, parameters and times."""
    head = ["method", "seeds", "loss at 1x"]
    head += [f"over rope's window at {ratio}x" for ratio in AT]
    head += [f"over its own at {ratio}x" for ratio in AT]
    head += ["retrieval at 4x", *(f"`{name}`" for name in TASKS)]
    head += ["parameters", "training step", "decoded token"]
    rows = []
    for entry in ENTRIES:
        method = entry.method
        cells = [f"{method}", prose.seeds(method), tables.score(prose.at(method, 1), ".3f")]
        cells += [tables.excess(prose.at(method, ratio)) for ratio in AT]
        cells += [tables.excess_over_itself(prose.at(method, ratio)) for ratio in AT]
        in_mixture = Method(f"mixture-{method.run}", method.scaling)
        cells += [exact(keys.at(method, 4))]
        cells += [tables.score(tasks[name].at(in_mixture, 4), ".2f") for name in TASKS]
        cells += costs(entry, cost)
        rows.append(cells)
    return markdown(head, rows)


def headline(prose: Scores, keys: Scores) -> str:
    """The best-known encodings, zero-shot: loss and retrieval."""
    head = ["method", "loss at 1x", *(f"excess at {ratio}x" for ratio in AT)]
    head += [f"retrieval at {ratio}x" for ratio in AT]
    rows = []
    for method in BEST_KNOWN:
        cells = [f"{method}", tables.score(prose.at(method, 1), ".3f")]
        cells += [tables.excess(prose.at(method, ratio)) for ratio in AT]
        cells += [exact(keys.at(method, ratio)) for ratio in AT]
        rows.append(cells)
    return markdown(head, rows)


def tasks_table(tasks: dict[str, Scores]) -> str:
    """Accuracy of each method in the tasks of the mixture, at 1x, 4x and 8x."""
    rows = []
    for method in next(iter(tasks.values())).methods:
        cells = [str(method).replace("mixture-", "")]
        for scores in tasks.values():
            at = [scores.at(method, ratio) for ratio in (1, 4, 8)]
            cells.append(", ".join(f"{s.score.mean:.2f}" if s else "-" for s in at))
        rows.append(cells)
    return markdown(["method", *(f"`{name}`" for name in tasks)], rows)


def exact(summary: Summary | None) -> str:
    return interval(summary.score, ".2f") if summary and summary.score else "-"


def costs(entry: Entry, cost: dict) -> list[str]:
    """Parameters beyond rope's, and the times of a step and a token as multiples of rope's."""
    name = entry.cost
    if name not in cost["parameters"]:
        return ["-", "-", "-"]
    more = cost["parameters"][name] - cost["parameters"]["rope"]
    times = [cost[kind].get(name) for kind in ("step", "token")]
    return [f"{more:+,}" if more else "0", *(f"{t[0]:.2f}" if t else "-" for t in times)]


def figure(prose: Scores, keys: Scores) -> Figure:
    """Excess loss at 4x against retrieval at 4x: a dot a method, with its intervals."""
    drawn = Figure(figsize=(9.5, 5.2))
    axes = drawn.subplots()
    drawn.subplots_adjust(left=0.07, right=0.98, top=0.93, bottom=0.1)
    axes.set_xscale("symlog", linthresh=0.1, linscale=1.5)
    axes.set_xlim(-0.1, 2.5)
    axes.set_ylim(-0.05, 1.12)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_xticks([-0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(0, color=GREY, ls=":", lw=1)
    axes.set_xlabel("excess loss on prose at 4x, nats a character (better: left)")
    axes.set_ylabel("retrieval at 4x, accuracy (better: up)")
    names = []
    for entry in ENTRIES:
        text, key = prose.at(entry.method, 4), keys.at(entry.method, 4)
        scored = None not in (text, key) and None not in (text.above_window, key.score)
        if not entry.name or not scored:
            continue
        names.append(dot(axes, entry, text.above_window, key.score))
    spread_out(drawn, names)
    for how, colour in COLOURS.items():
        axes.plot([], [], "o", color=colour, label=how)
    axes.legend(loc="lower left")
    return drawn


def dot(axes: Axes, entry: Entry, x: Estimate, y: Estimate) -> Annotation:
    """The dot, its intervals and its name, which is returned."""
    colour = COLOURS[entry.how]
    errors = [[[e.mean - e.low], [e.high - e.mean]] for e in (x, y)]
    axes.errorbar(
        x.mean, y.mean, *errors[::-1], fmt="none", ecolor=colour, elinewidth=0.6, zorder=0.5
    )
    axes.plot(x.mean, y.mean, "o", ms=5, color=colour, zorder=3)
    arrow = {"arrowstyle": "-", "lw": 0.4, "color": colour, "shrinkA": 0, "shrinkB": 0}
    at = {"xytext": PLACES[0], "textcoords": "offset points", "va": "center", "arrowprops": arrow}
    box = {"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none", "alpha": 0.8}
    at |= {"fontsize": 8.5, "color": colour, "bbox": box, "zorder": 1}
    return axes.annotate(entry.name, (x.mean, y.mean), **at)


def spread_out(drawn: Figure, names: list[Annotation]) -> None:
    """Move each name to the first of PLACES at which it covers no dot and no earlier name."""
    FigureCanvasAgg(drawn).draw()
    inside = drawn.axes[0].get_window_extent()
    dots = [name.axes.transData.transform(name.xy) for name in names]
    taken = []
    for name in names:
        for place in PLACES:
            name.set_position(place)
            name.set_ha("left" if place[0] > 0 else "right")
            box = Text.get_window_extent(name)  # without its line
            outside = not (inside.x0 < box.x0 and box.x1 < inside.x1 and box.y1 < inside.y1)
            if not (outside or box.count_overlaps(taken) or box.count_contains(dots)):
                break
        taken.append(box)
