"""What leads docs/results.md: every method in one table, and in one figure."""

from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from evaluation import tables
from evaluation.drawing import BLACK, BLUE, GREEN, GREY, RED
from evaluation.statistics import Estimate, Summary
from evaluation.tables import Method, Scores, interval, markdown

AT = (4, 16)  # trained lengths at which the table has the excess loss
TRAIN, TUNE, READ = "train with it", "tune a rope model", "read a rope model"
COLOURS = {TRAIN: BLACK, TUNE: GREEN, READ: BLUE, "hybrid": RED}
PLACES = [  # of a label beside its dot, in points: the first that is free is taken
    (dx * step, dy * step) for step in (1, 2, 3, 4) for dy in (0, 8, -8) for dx in (6, -6)
]


class Entry(NamedTuple):
    """A row: how one comes by the method, and its name among the costs (None: as rope's)."""

    method: Method
    how: str = TRAIN
    cost: str | None = None


def trained(name: str, cost: str | None = None, scaling: str = "none", how: str = TRAIN) -> Entry:
    return Entry(Method(name, scaling), how, cost or name)


ENTRIES = [
    trained("rope"),
    trained("alibi"),
    trained("hard_alibi"),
    trained("t5"),
    trained("kerple"),
    trained("fire"),
    trained("fox"),
    trained("pope"),
    trained("nope", "none"),
    trained("hope", "rope"),
    trained("lerope", "rope, learned"),
    trained("p-rope-0.25", "rope"),
    trained("p-rope-0.25", "rope", "yarn"),
    trained("rope-random", "rope"),
    trained("swa", "hybrid", how="hybrid"),
    trained("hybrid", how="hybrid"),
    trained("hybrid", "hybrid, logn", "logn", how="hybrid"),
    Entry(Method("drope"), TUNE, "none"),
    Entry(Method("pose", "yarn"), TUNE),
    Entry(Method("tuned-yarn-100", "yarn"), TUNE),
    Entry(Method("rope", "yarn"), READ, "rope, yarn"),
    Entry(Method("rope", "yarn, log-n"), READ),
    Entry(Method("rope", "logn"), READ),
    Entry(Method("rope", "ReRoPE, w = L/2"), READ),
    Entry(Method("rope", "Self-Extend, G = 8, W = L/2"), READ),
    Entry(Method("rope", "Dual Chunk"), READ),
    Entry(Method("rope", "StreamingLLM"), READ),
]


def shown(prose: Scores, keys: Scores) -> list[Entry]:
    """The entries that have scores."""
    return [e for e in ENTRIES if e.method in {*prose.methods} & {*keys.methods}]


def table(prose: Scores, keys: Scores, cost: dict) -> str:
    """A row a method: losses, retrieval, parameters and times."""
    head = ["method", "seeds", "loss at 1x"]
    head += [f"over rope's window at {ratio}x" for ratio in AT]
    head += [f"over its own at {ratio}x" for ratio in AT]
    head += ["retrieval at 4x", "parameters", "training step", "decoded token"]
    rows = []
    for entry in shown(prose, keys):
        method = entry.method
        cells = [f"{method}", prose.seeds(method), tables.score(prose.at(method, 1), ".3f")]
        cells += [tables.excess(prose.at(method, ratio)) for ratio in AT]
        cells += [tables.excess_over_itself(prose.at(method, ratio)) for ratio in AT]
        cells += [exact(keys.at(method, 4)), *costs(entry, cost)]
        rows.append(cells)
    return markdown(head, rows)


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
    axes.set_ylim(-0.05, 1.08)
    axes.set_xticks([-0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(0, color=GREY, ls=":", lw=1)
    axes.set_xlabel("excess loss on prose at 4x, nats a character (better: left)")
    axes.set_ylabel("retrieval at 4x, accuracy (better: up)")
    names = []
    for entry in shown(prose, keys):
        text, key = prose.at(entry.method, 4), keys.at(entry.method, 4)
        if text is None or text.above_window is None or key is None or key.score is None:
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
    axes.errorbar(x.mean, y.mean, *errors[::-1], fmt="o", ms=5, color=colour, elinewidth=0.6)
    name = str(entry.method).replace("`", "")
    arrow = {"arrowstyle": "-", "lw": 0.4, "color": colour}
    at = {"xytext": PLACES[0], "textcoords": "offset points", "va": "center", "arrowprops": arrow}
    return axes.annotate(name, (x.mean, y.mean), fontsize=8, color=colour, **at)


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
            box = name.get_window_extent()
            outside = box.x0 < inside.x0 or box.x1 > inside.x1
            if not (outside or box.count_overlaps(taken) or box.count_contains(dots)):
                break
        taken.append(box)
