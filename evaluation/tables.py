"""README's tables, made from results/*.json: what plot.py sets between the markers.

Group rows (seed null) alone are read: means over seeds, intervals over documents.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

ENCODINGS = "learned sinusoidal alibi nope rope".split()  # in the order of the tables
TUNED = [f"finetune-{scaling}" for scaling in "none linear ntk yarn".split()]
CEILING = "rope-4x"  # trained at 4x from the start: the most that stretching could hope for
SCALINGS = "none slide interpolate linear ntk ntk_by_parts yarn llama3".split()
PEERS = ("nanoGPT", "transformers", "LLaMA, complex")
KEYS = {"run", "seed", "scaling", "factor", "length", "trained", "protocol"}
Row = dict[str, object]


def zero_shot(run: str) -> bool:
    return run != CEILING and not run.startswith("finetune-")


class Method(NamedTuple):
    """What is read past its trained length, and how: a row of the tables."""

    run: str
    scaling: str = "none"
    factor: float | None = None

    def order(self) -> tuple:
        """The place in a table; what is not listed above, say a new encoding, comes last."""
        runs, kind = [*ENCODINGS, *TUNED, CEILING], self.scaling.removeprefix("dynamic_")
        place = [x.index(y) if y in x else 99 for x, y in ((runs, self.run), (SCALINGS, kind))]
        return place[0], kind != self.scaling, place[1], str(self)

    def __str__(self) -> str:
        """The config's name and the scaling, as one would type them."""
        plain = self.scaling == "none" or not zero_shot(self.run)
        factor = f" {self.factor:g}x" if self.factor else ""
        ceiling = " (ceiling)" if self.run == CEILING else ""
        return f"`{self.run}`" + ("" if plain else f" `{self.scaling}`{factor}") + ceiling


class Scores:
    """The rows of one protocol, each over all seeds, by method and context length."""

    def __init__(self, rows: list[Row], protocol: str):
        self.rows: dict[tuple[Method, int], Row] = {}
        for row in rows:
            if row["seed"] is None and row["protocol"] == protocol:
                run = row["run"].removeprefix("passkey-")
                self.rows[Method(run, row["scaling"], row["factor"]), row["length"]] = row
        self.methods = sorted({method for method, _ in self.rows}, key=Method.order)
        self.lengths = sorted({length for _, length in self.rows})
        # The ceiling alone was trained at more.
        self.trained = min((row["trained"] for row in self.rows.values()), default=1)

    def at(self, method: Method, length: int) -> Row:
        """A row, empty where there is none."""
        return self.rows.get((method, length), {})

    def seeds(self, *methods: Method) -> str:
        """How many: "3", or "1-3" where rows differ."""
        rows = [row for (m, _), row in self.rows.items() if m in (methods or self.methods)]
        counts = [len(row["seeds"]) for row in rows] or [0]
        return "-".join(map(str, sorted({min(counts), max(counts)})))


def read(path: Path, keys: set[str] = KEYS) -> list[Row]:
    """The rows of a results file; ValueError where there is none, or something else."""
    if not path.exists():
        raise ValueError(f"{path} is missing; `experiments/reproduce.sh` writes it")
    try:
        rows = json.loads(path.read_text())
        group = keys | {"seeds", "spread"}
        whole = [row.keys() >= (keys if row.get("seed", 0) is not None else group) for row in rows]
        if isinstance(rows, list) and all(whole):
            return rows
    except (ValueError, TypeError, AttributeError):
        pass  # torn, or JSON of another kind
    raise ValueError(f"{path} does not hold rows as `experiments/reproduce.sh` writes them")


def load(root: Path) -> dict[str, Scores]:
    """The protocols of the committed results, by name."""
    prose, passkey = (read(root / f"results/{name}.json") for name in ("prose", "passkey"))
    found = {name: Scores(prose, name) for name in ("matched", "windows")}
    return found | {"passkey": Scores(passkey, "passkey")}


def fixed(x: float | None, form: str) -> str:
    """A number, its zero without a minus; "-" where there is none."""
    return "-" if x is None else format(round(x, int(form[-2])) + 0.0, form)


def interval(x: float, low: float, high: float, form: str) -> str:
    """
    >>> interval(0.2661, 0.234, 0.298, "+.3f")
    '+0.266 [0.234, 0.298]'
    """
    low, high = (fixed(end, form.lstrip("+")) for end in (low, high))
    return f"{fixed(x, form)} [{low}, {high}]"


def spread(row: Row, name: str, form: str) -> str:
    """Mean and standard deviation over seeds."""
    sd = row.get("spread")
    return fixed(row.get(name), form) + ("" if sd is None else f" ± {fixed(sd, form)}")


def harm(row: Row) -> str:
    """Compact: half the interval stands for both its ends."""
    if row.get("over_window") is None:
        return "-"
    half = (row["over_window_high"] - row["over_window_low"]) / 2
    return f"{fixed(row['over_window'], '+.2f')} ± {half:.2f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), *rows)]
    return "".join(f"| {line} |\n" for line in lines)


def by_length(scores: Scores, cell: Callable[[Row], str]) -> str:
    """A row a method, a column a length."""
    ratios = [n / scores.trained for n in scores.lengths]
    head = [f"{r:g}x" if r >= 1 else f"1/{1 / r:g}x" for r in ratios]
    rows = [
        [str(m), scores.seeds(m), *(cell(scores.at(m, n)) for n in scores.lengths)]
        for m in scores.methods
    ]
    return markdown(["method", "seeds", *head], rows)


def prose(matched: Scores) -> str:
    def cell(row: Row) -> str:
        own = row.get("length") == matched.trained
        return spread(row, "loss", ".3f") if own else harm(row)

    return by_length(matched, cell)


def column(scores: Scores, name: str, form: str, best: Callable) -> dict[Method, str]:
    """Cells at 4x with their intervals; bold is the best one without any further training."""
    rows = {m: scores.at(m, 4 * scores.trained) for m in scores.methods}
    rows = {m: row for m, row in rows.items() if row.get(name) is not None}
    winner = best((row[name] for m, row in rows.items() if zero_shot(m.run)), default=None)
    cells = {}
    for m, row in rows.items():
        cell = interval(row[name], row[f"{name}_low"], row[f"{name}_high"], form)
        cells[m] = f"**{cell}**" if zero_shot(m.run) and row[name] == winner else cell
    return cells


def headline(text: Scores, keys: Scores) -> str:
    """Two numbers a method at 4x: what it costs on prose, what it wins on retrieval.

    A fixed factor of 4 is there what the dynamic form is.
    """
    harms, wins = column(text, "over_window", "+.3f", min), column(keys, "outside", ".2f", max)
    methods = sorted({m for m in harms | wins if not m.factor}, key=Method.order)
    rows = [[str(m), harms.get(m, "-"), wins.get(m, "-")] for m in methods]
    return markdown(["method", "harm on prose at 4x", "retrieval room won at 4x"], rows) + (
        f"\nHarm: nats a token at {4 * text.trained} more than `rope` on the last {text.trained} "
        f"tokens alone, same targets (seeds: {text.seeds()}). Room won: of the keys that lie "
        f"before the last {keys.trained} of {4 * keys.trained} tokens, the share named exactly; "
        f"a sliding window names none (seeds: {keys.seeds()}). 95 % intervals; bold: the best "
        "without further training.\n"
    )


def room(text: Scores) -> str:
    """Is there anything to win on prose?"""
    ceiling, far = Method(CEILING), 4 * text.trained
    row = text.at(ceiling, far)
    if row.get("over_window") is None:
        return f"The room on prose is not measured: no `{CEILING}` at {far}.\n"
    won, low, high = (-row[f"over_window{end}"] for end in ("", "_high", "_low"))
    verdict = "clearly positive" if low > 0 else "negative" if high < 0 else None
    return (
        f"Room on prose: a model trained at {far} from the start gains "
        f"{interval(won, low, high, '+.3f')} nats a token over the window of {text.trained} "
        f"(seeds: {text.seeds(ceiling)}): {verdict or 'not distinguishable from zero'}.\n"
    )


def tables(matched: Scores, windows: Scores, passkey: Scores) -> dict[str, str]:
    return {
        "headline": headline(matched, passkey),
        "room": room(matched),
        "prose": prose(matched),
        "windows": by_length(windows, lambda row: spread(row, "loss", ".3f")),
        "passkey": by_length(passkey, lambda row: spread(row, "accuracy", ".2f")),
    }


def faults(found: dict[str, Row]) -> str:
    """What `pytest -m soak tests/faults` found: results/faults.json."""
    killed, moments = found["crash points of one save"], found["kill at random moments"]
    flips, points = found["corruption of a checkpoint"], found["resume points, bit-exact"]
    asked, junk = found["SIGTERM"], found["fuzz"]
    modes = [name.removesuffix("_points") for name in points if name.endswith("_points")]
    exact, of = (sum(points[f"{mode}_{what}"] for mode in modes) for what in ("exact", "points"))
    rows = [
        ["killed at each system call of a save", f"{killed['lost']} of {killed['points']} lost a "
         f"run; of a writer in place {killed['lost_in_place']} of {killed['points_in_place']}"],
        ["kill -9 at random moments of training", f"{moments['kills']} kills, "
         f"{moments['kills_in_a_save']} of them within a save: {moments['lost']} saves lost, "
         f"{moments['not_bit_equal']} of {moments['runs_completed']} runs with other weights"],
        ["bits flipped in a checkpoint, files cut", f"{flips['flips_noticed']} of "
         f"{flips['flips']} and {flips['cuts_noticed']} of {flips['cuts']} noticed; `torch.load` "
         f"alone: {flips['flips_noticed_by_torch']} of {flips['flips']} flips"],
        [f"resumed at every step of {points['steps']}", f"{exact} of {of} bit-exact, in "
         f"{', '.join(modes)}, AdamW and Muon, dropout on"],
        ["SIGTERM in training, evaluation, first step", f"{asked['saved']} of {asked['sent']} "
         f"saved, {asked['resumed_bit_equal']} resumed bit-exact, "
         f"{asked['seconds_longest']:.2f} s at most"],
        ["random bytes into every reader", f"{junk['total']:,} inputs in {junk['seconds'] // 60} "
         f"minutes, {junk['tracebacks']} tracebacks"],
    ]  # fmt: skip
    return markdown(["injected", "found"], rows)


def speed(found: Row) -> str:
    """Of results/bench.json: other people's code beside ours, and the machine's own limits."""

    def shown(values: list[float]) -> str:
        middle, *ends = (f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}" for v in values)
        return middle + (f" ({ends[0]} to {ends[1]})" if ends else "")

    rows = [
        [r["work"], r["unit"], shown(r["ours"]), r["peer"], shown(r["theirs"]), shown(r["ratio"])]
        for r in found["rows"]
        if r["peer"] in PEERS
    ]
    limits = [r for r in found["rows"] if r["work"].startswith("limit: ")]
    most = [f"{r['work'].removeprefix('limit: ')} {shown(r['ours'])} {r['unit']}" for r in limits]
    return markdown("work,unit,ours,peer,theirs,ratio".split(","), rows) + (
        f"\n{found['date']}, {found['cpu']}, {found['threads']} threads, torch {found['torch']}; "
        f"medians, least and most. The machine's own limits: {'; '.join(most)}.\n"
    )


def markers(page: str, known: Iterable[str], maker: str = "plot.py") -> None:
    """ValueError for a marker of a table that there is not."""
    for name in re.findall(rf"<!-- /?{re.escape(maker)} (.*?) -->", page):
        if name not in known:
            raise ValueError(
                f"<!-- {maker} {name} --> marks no table; there are {', '.join(known)}"
            )


def splice(page: str, name: str, text: str, maker: str = "plot.py") -> str:
    """The page with this text between its markers."""
    start, end = f"<!-- {maker} {name} -->", f"<!-- /{maker} {name} -->"
    parts = re.split(f"({re.escape(start)}\n)(?:.*\n)*?({re.escape(end)})", page)
    if len(parts) != 4 or page.count(start) != 1 or page.count(end) != 1:
        raise ValueError(f"{start} and {end} must be lines of the page, once each")
    return parts[0] + parts[1] + text + parts[2] + parts[3]
