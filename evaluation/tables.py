"""Markdown tables of the committed results. Orders follow POSITIONS and SCALINGS."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from evaluation import results
from evaluation.statistics import Estimate, Summary, comparable, summarise
from positions import POSITIONS
from rope import SCALINGS

TUNED = "finetune-"  # begins the names of runs that were fine-tuned at 4x
CEILING = "rope-4x"  # trained at 4x from the start: the best that a scaling could do
UNSCALED = ("none", "slide", "interpolate")
PEERS = ("nanoGPT", "transformers", "LLaMA, complex")


class Method(NamedTuple):
    """A model and its variant past the trained length: a row of the tables."""

    run: str
    scaling: str = "none"
    factor: float | None = None

    @property
    def is_zero_shot(self) -> bool:
        """Whether the model has seen no window longer than the trained length."""
        return self.run != CEILING and not self.run.startswith(TUNED)

    def __str__(self) -> str:
        """The name of the run and the scaling, as one would type them."""
        name = f"`{self.run}`"
        if self.run == CEILING:
            return f"{name} (ceiling)"
        if self.scaling == "none" or not self.is_zero_shot:
            return name
        return f"{name} `{self.scaling}`" + (f" {self.factor:g}x" if self.factor else "")


def rank(name: str, names: list[str]) -> int:
    """The place of a name in a list; unlisted names come last."""
    return names.index(name) if name in names else len(names)


def order(method: Method, pos: str) -> tuple:
    """The place of a method in a table: zero-shot, tuned, ceiling; then encoding, then scaling."""
    group = (not method.is_zero_shot) + (method.run == CEILING)
    # Rotary encodings come last among the encodings, beside the tuned ones.
    encoding = (pos in POSITIONS and POSITIONS[pos].rotary, rank(pos, list(POSITIONS)))
    scaling = method.scaling.removeprefix("dynamic_")
    by_scaling = (scaling != method.scaling, rank(scaling, [*UNSCALED[1:], *SCALINGS]))
    if method.scaling == "none":
        by_scaling = (False, -1)
    if group == 1:
        return group, by_scaling, method
    return group, encoding, method.run, by_scaling, str(method)


class Scores:
    """The summaries of one protocol, by method and context length."""

    def __init__(self, summaries: list[Summary], protocol: str):
        self.by_cell: dict[tuple[Method, int], Summary] = {}
        self.pos: dict[str, str] = {}  # of each run
        for summary in summaries:
            key = summary.key
            if key.protocol == protocol:
                run = key.run.removeprefix(f"{protocol}-")  # passkey-rope is `rope` in a table
                self.by_cell[Method(run, key.scaling, key.factor), key.length] = summary
                self.pos[run] = summary.row["pos"]
        methods = {method for method, _ in self.by_cell}
        self.methods = sorted(methods, key=lambda method: order(method, self.pos[method.run]))
        self.lengths = sorted({length for _, length in self.by_cell})
        # The ceiling alone was trained at a longer length.
        lengths = [summary.row["trained"] for summary in self.by_cell.values()]
        self.trained = min(lengths, default=1)

    def at(self, method: Method, ratio: float) -> Summary | None:
        """The summary at a multiple of the trained length."""
        return self.by_cell.get((method, int(ratio * self.trained)))

    def seeds(self, *methods: Method) -> str:
        """How many seeds the methods (all by default) have: "3", or "1-3" if they differ."""
        chosen = methods or self.methods
        counts = [len(s.seeds) for (method, _), s in self.by_cell.items() if method in chosen]
        ends = sorted({min(counts, default=0), max(counts, default=0)})
        return "-".join(map(str, ends))


def check_exists(path: Path) -> None:
    """ValueError if a results file is missing."""
    if not path.exists():
        raise ValueError(f"{path} is missing; experiments/README.md says what writes it")


def load(path: Path, against: str) -> list[Summary]:
    """Summaries of a committed results file; ValueError if it is missing."""
    check_exists(path)
    return summarise(comparable(results.read(path)), against)


# Cells


def fixed(x: float | None, form: str) -> str:
    """A number, its zero without a minus; "-" for None."""
    return "-" if x is None else format(round(x, int(form[-2])) + 0.0, form)


def interval(estimate: Estimate, form: str) -> str:
    """
    >>> interval(Estimate(0.2661, 0.234, 0.298), "+.3f")
    '+0.266 [0.234, 0.298]'
    """
    low, high = (fixed(end, form.lstrip("+")) for end in (estimate.low, estimate.high))
    return f"{fixed(estimate.mean, form)} [{low}, {high}]"


def with_half(estimate: Estimate | None) -> str:
    """Compact: half the interval stands for both of its ends."""
    if estimate is None:
        return "-"
    return f"{fixed(estimate.mean, '+.2f')} ± {estimate.half:.2f}"


def score(summary: Summary | None, form: str) -> str:
    """Mean and standard deviation over seeds."""
    if summary is None or summary.score is None:
        return "-"
    spread = "" if summary.spread is None else f" ± {fixed(summary.spread, form)}"
    return fixed(summary.score.mean, form) + spread


def excess(summary: Summary | None) -> str:
    """Loss above that of the sliding window of `rope`."""
    return with_half(summary.above_window if summary else None)


def excess_over_itself(summary: Summary | None) -> str:
    """Loss above that of the same model at its trained length, unscaled."""
    gain = summary.gain if summary else None
    return with_half(-gain if gain is not None else None)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), *rows)]
    return "".join(f"| {line} |\n" for line in lines)


# Tables of the results


def by_length(scores: Scores, cell: Callable[[Summary | None], str]) -> str:
    """A row a method, a column a length."""
    ratios = [length / scores.trained for length in scores.lengths]
    head = [f"{ratio:g}x" if ratio >= 1 else f"1/{1 / ratio:g}x" for ratio in ratios]
    rows = []
    for method in scores.methods:
        cells = [cell(scores.at(method, ratio)) for ratio in ratios]
        rows.append([str(method), scores.seeds(method), *cells])
    return markdown(["method", "seeds", *head], rows)


def prose(scores: Scores) -> str:
    """The loss at the trained length, the excess loss elsewhere."""

    def cell(summary: Summary | None) -> str:
        at_trained = summary is not None and summary.key.length == scores.trained
        return score(summary, ".3f") if at_trained else excess(summary)

    return by_length(scores, cell)


def at_4x(scores: Scores, name: str, form: str, best: Callable) -> dict[Method, str]:
    """An estimate of each method at 4x with its interval; the best zero-shot one is bold."""
    estimates: dict[Method, Estimate] = {}
    for method in scores.methods:
        estimate = getattr(scores.at(method, 4), name, None)
        if estimate is not None:
            estimates[method] = estimate
    zero_shot = [e.mean for method, e in estimates.items() if method.is_zero_shot]
    winner = best(zero_shot, default=None)
    cells = {}
    for method, estimate in estimates.items():
        cell = interval(estimate, form)
        is_best = method.is_zero_shot and estimate.mean == winner
        cells[method] = f"**{cell}**" if is_best else cell
    return cells


def everything(text: Scores, keys: Scores) -> str:
    """Two numbers a method at 4x: excess loss on prose, retrieval beyond the window.

    Without the fixed factors: one of 4 is at 4x what the dynamic form is.
    """
    losses = at_4x(text, "above_window", "+.3f", min)
    accuracies = at_4x(keys, "beyond_window", ".2f", max)
    pos = keys.pos | text.pos
    methods = [method for method in losses | accuracies if not method.factor]
    methods.sort(key=lambda method: order(method, pos[method.run]))
    rows = [[str(m), losses.get(m, "-"), accuracies.get(m, "-")] for m in methods]
    head = ["method", "excess loss at 4x", "retrieval beyond the window at 4x"]
    return markdown(head, rows) + (
        f"\nExcess loss: nats a token at {4 * text.trained} tokens minus those of `rope` on the "
        f"last {text.trained} tokens alone, same targets ({text.seeds()} seeds). Retrieval beyond "
        f"the window: of the keys before the last {keys.trained} of {4 * keys.trained} tokens, "
        f"the share retrieved exactly; a sliding window retrieves none ({keys.seeds()} seeds). "
        "Brackets: 95 % intervals. Bold: the best without further training.\n"
    )


def room(text: Scores) -> str:
    """Does a longer context help on prose at all?"""
    ceiling, longer = Method(CEILING), 4 * text.trained
    summary = text.at(ceiling, 4)
    if summary is None or summary.above_window is None:
        return f"Not measured: no `{CEILING}` at {longer}.\n"
    gain = -summary.above_window
    verdict = "not distinguishable from zero"
    if gain.low > 0:
        verdict = "positive"
    if gain.high < 0:
        verdict = "negative"
    return (
        f"A model trained at {longer} tokens from the start gains {interval(gain, '+.3f')} nats a "
        f"token over the sliding window of {text.trained} ({text.seeds(ceiling)} seeds): "
        f"{verdict}.\n"
    )


def compare(
    shown: dict[str, Method],
    text: Scores,
    keys: Scores,
    ratios: tuple[int, ...],
    beyond: Callable[[Summary | None], str] = excess,
) -> str:
    """A row a method, under the name it is shown by: prose, then retrieval, by length.

    The trained length is left out if all methods are one model there.
    """

    def cells(method: Method, ratio: int) -> tuple[str, str]:
        on_text, on_keys = text.at(method, ratio), keys.at(method, ratio)
        loss = score(on_text, ".3f") if ratio == 1 else beyond(on_text)
        return loss, score(on_keys, ".2f")

    if len({cells(method, 1) for method in shown.values()}) == 1:
        ratios = ratios[1:]
    head = ["method"]
    for task in ("prose", "retrieval"):
        head += [f"{task} {ratio}x" if ratio == ratios[0] else f"{ratio}x" for ratio in ratios]
    rows = []
    for name, method in shown.items():
        losses, accuracies = zip(*(cells(method, ratio) for ratio in ratios), strict=True)
        rows.append([name, *losses, *accuracies])
    methods = shown.values()
    seeds = f"prose {text.seeds(*methods)}, retrieval {keys.seeds(*methods)}"
    return markdown(head, rows) + f"\nSeeds: {seeds}.\n"


# Tables of records


FAULTS = {  # fault: (its record in results/faults.json, what the record shows)
    "killed at each system call of a save": (
        "crash points of one save",
        "{lost} of {points} lost a run; a writer in place loses {lost_in_place} of "
        "{points_in_place}",
    ),
    "kill -9 at random moments of training": (
        "kill at random moments",
        "{kills} kills, {kills_in_a_save} of them within a save: {lost} saves lost, "
        "{not_bit_equal} of {runs_completed} runs with other weights",
    ),
    "bits flipped in a checkpoint, files cut": (
        "corruption of a checkpoint",
        "{flips_noticed} of {flips} and {cuts_noticed} of {cuts} noticed; `torch.load` alone: "
        "{flips_noticed_by_torch} of {flips} flips",
    ),
    "resumed at every step": (
        "resume points, bit-exact",
        "{exact} of {total} bit-exact, over {steps} steps in {modes}, AdamW and Muon, dropout on",
    ),
    "SIGTERM in training, evaluation, first step": (
        "SIGTERM",
        "{saved} of {sent} saved, {resumed_bit_equal} resumed bit-exact, {seconds_longest:.2f} s "
        "at most",
    ),
    "random bytes into every reader": (
        "fuzz",
        "{total:,} inputs in {minutes} minutes, {tracebacks} tracebacks",
    ),
}


def faults(record: dict[str, dict]) -> str:
    """What `pytest -m soak tests/faults` measured: results/faults.json."""
    derived = {
        "resume points, bit-exact": over_modes(record["resume points, bit-exact"]),
        "fuzz": {"minutes": record["fuzz"]["seconds"] // 60},
    }
    rows = []
    for fault, (name, shows) in FAULTS.items():
        rows.append([fault, shows.format(**record[name], **derived.get(name, {}))])
    return markdown(["fault", "result"], rows)


def over_modes(points: dict[str, int]) -> dict[str, object]:
    """Sums over the precisions of a record with MODE_points and MODE_exact."""
    modes = [name.removesuffix("_points") for name in points if name.endswith("_points")]
    total = sum(points[f"{mode}_points"] for mode in modes)
    exact = sum(points[f"{mode}_exact"] for mode in modes)
    return {"modes": ", ".join(modes), "total": total, "exact": exact}


def speed(record: dict) -> str:
    """Compared with the code of others, and with the limits of the machine: results/bench.json."""
    rows, limits = [], []
    for r in record["rows"]:
        ours = with_range(r["ours"])
        if r["peer"] in PEERS:
            theirs, ratio = with_range(r["theirs"]), with_range(r["ratio"])
            rows.append([r["work"], r["unit"], ours, r["peer"], theirs, ratio])
        if r["work"].startswith("limit: "):
            limits.append(f"{r['work'].removeprefix('limit: ')} {ours} {r['unit']}")
    machine = f"{record['cpu']}, {record['threads']} threads, torch {record['torch']}"
    return markdown(["work", "unit", "ours", "peer", "theirs", "ratio"], rows) + (
        f"\n{record['date']}, {machine}; medians (least to most). Limits of the machine: "
        f"{'; '.join(limits)}.\n"
    )


def with_range(values: list[float]) -> str:
    """`median (least to most)` of [median, least, most]."""
    middle, *ends = (f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}" for v in values)
    return middle + (f" ({ends[0]} to {ends[1]})" if ends else "")
