"""Rows of evaluations: kept in a JSON file, compared with intervals, printed as tables.

A row is what one model scored in one protocol at one length. Its `parts` hold the mean loss of
every target span, a list a document; everything else that is said of it follows from those.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

Row = dict[str, object]
DRAWS = 2000  # of the bootstrap
SAME = ("run", "scaling", "factor", "protocol", "length")  # rows that differ in the seed alone


def read(path: Path) -> list[Row]:
    """All rows; none where there is no file. ValueError where it holds something else."""
    try:
        rows = json.loads(path.read_text()) if path.exists() else []
        sound = all(isinstance(row, dict) and row.keys() >= {*SAME, "seed"} for row in rows)
        if not (isinstance(rows, list) and sound):
            raise ValueError
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{path} does not hold rows of evaluate.py; name another --json") from None
    return rows


@contextmanager
def rewriting(path: Path) -> Iterator[list[Row]]:
    """The rows of a file, to be changed in place: one process at a time, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = read(path)
        yield rows
        text = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        fresh = path.with_name(f".{path.name}.tmp")
        fresh.write_text(f"[\n{text}\n]\n")
        os.replace(fresh, path)


def identity(row: Row) -> tuple:
    return tuple(row[name] for name in (*SAME, "seed"))


def add(path: Path, row: Row) -> None:
    """Append a row, in the place of an older one and of all that earlier weights had scored."""
    with rewriting(path) as rows:
        rows[:] = [other for other in rows if not _outdated(other, row)] + [row]


def _outdated(other: Row, row: Row) -> bool:
    """Whether it is the same cell, of earlier weights, or a mean that the row makes untrue."""
    if other["run"] != row["run"]:
        return False
    mean = other["seed"] is None
    weights = other.get("checkpoint_sha") != row["checkpoint_sha"]
    return mean or identity(other) == identity(row) or (other["seed"] == row["seed"] and weights)


@lru_cache
def resampling(documents: tuple[int, ...]) -> np.ndarray:
    """Bootstrap weights of parts, float64 (DRAWS, parts), each row of sum 1.

    Documents are drawn with replacement, then the parts within each: parts of one document are
    not independent. The same weights for everything compared makes every comparison paired.
    """
    draw = np.random.default_rng(0)
    picks = draw.multinomial(len(documents), [1 / len(documents)] * len(documents), DRAWS)
    parts = [draw.multinomial(picks[:, d] * n, [1 / n] * n) for d, n in enumerate(documents)]
    counts = np.concatenate(parts, 1)
    return counts / counts.sum(1, keepdims=True)


def interval(values: np.ndarray, documents: tuple[int, ...]) -> tuple[float, float, float]:
    """(mean, low, high): the mean of per-part values and its 95 % bootstrap interval."""
    low, high = np.quantile(resampling(documents) @ values, (0.025, 0.975))
    return tuple(round(float(x), 5) for x in (values.mean(), low, high))


def labelled(name: str, values: np.ndarray | None, documents: tuple[int, ...]) -> Row:
    """{name, name_low, name_high}, of None where there is nothing to compare."""
    found = (None,) * 3 if values is None else interval(values, documents)
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


class Group:
    """Rows of several seeds of one run, or the one row of one model.

    Where rows were scored on different targets, those that match the newest count.
    """

    def __init__(self, rows: list[Row]):
        self.first = rows[-1]
        self.rows = [row for row in rows if row["targets"] == self.first["targets"]]
        self.documents = tuple(len(parts) for parts in self.first["parts"] or ())
        self.by_seed = {r["seed"]: np.concatenate(r["parts"]) for r in self.rows if r["parts"]}

    @property
    def values(self) -> np.ndarray | None:
        """The mean over seeds, part by part; None where the model refuses."""
        return np.mean(list(self.by_seed.values()), 0) if self.by_seed else None

    def less(self, other: "Group | None") -> np.ndarray | None:
        """Differences part by part, of the seeds that both have; None where there is no pair."""
        if other is None or self.first["targets"] != other.first["targets"]:
            return None
        both = [seed for seed in self.by_seed if seed in other.by_seed]
        pairs = [self.by_seed[seed] - other.by_seed[seed] for seed in both]
        return np.mean(pairs, 0) if pairs else None

    def spread(self) -> float | None:
        means = [values.mean() for values in self.by_seed.values()]
        return round(float(np.std(means, ddof=1)), 5) if len(means) > 1 else None

    def scores(self) -> Row:
        """Loss, or accuracy with that of each depth and that outside the window; intervals."""
        retrieval, values = self.first["protocol"] == "passkey", self.values
        found = (shares if retrieval else labelled)("score", values, self.documents)
        mean, low, high = found.values()
        score = {"ci_low": low, "ci_high": high}
        if not retrieval:
            return {"loss": mean} | score
        n, refused = self.first["outside_n"], values is None
        tenths = [] if refused else np.array_split(values, 10)
        depths = [round(float(part.mean()), 4) for part in tenths]
        outside = shares("outside", None if refused or n == 0 else values[:n], self.documents[:n])
        return {"loss": None, "accuracy": mean} | score | {"depths": depths} | outside


def shares(name: str, values: np.ndarray | None, documents: tuple[int, ...]) -> Row:
    """`labelled` for right or wrong. All right or all wrong has no bootstrap: Wilson's (1927)."""
    found = labelled(name, values, documents)
    if values is not None and found[name] in (0, 1):
        miss = round(1.96**2 / (len(values) + 1.96**2), 5)
        found |= {f"{name}_low": found[name] and 1 - miss, f"{name}_high": found[name] or miss}
    return found


def groups(rows: Iterable[Row], *more: str) -> dict[tuple, Group]:
    """Rows by run, scaling, factor, protocol and length (and `more`), in order of appearance."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in (*SAME, *more)), []).append(row)
    return {key: Group(members) for key, members in found.items()}


def settle(path: Path, against: str | None) -> list[Row]:
    """Rewrite what follows from the parts: intervals, differences, and a row a group of seeds.

    `against` names the run whose unscaled loss all others are compared with: at its own trained
    length, where it is the sliding window that needs no method at all, and at the same length.
    """
    with rewriting(path) as rows:
        alone = [row for row in rows if row["seed"] is not None]
        seeds = groups(alone, "seed")
        for row in alone:
            group = seeds[identity(row)]
            row.update(group.scores() | _differences(group, seeds, against, row["seed"]))
            row["against"] = against
        together = groups(alone)
        found = []
        for group in together.values():
            first = {k: v for k, v in group.first.items() if k not in ONE_MODEL}
            row = first | {"seed": None, "seeds": [row["seed"] for row in group.rows]}
            row |= group.scores() | _differences(group, together, against)
            if "bins" in first:
                row["bins"] = _mean_bins(group.rows)
            found.append(row | {"spread": group.spread()})
        rows[:] = alone + found
    return found


ONE_MODEL = ("parts", "checkpoint_sha", "seconds")  # what makes no sense of several


def _differences(group: Group, known: dict, against: str | None, *seed: int) -> Row:
    """Against the same model not extended, against the reference not extended, and as it is here.

    Not extended: unscaled at the trained length, which is what a sliding window of it reads. A
    model that was tuned with a scaling is compared with itself as it is.
    """
    row, protocol = group.first, group.first["protocol"]
    better = 1 if protocol == "passkey" else -1  # a gain is more accuracy, or less loss
    at_1x = (protocol, row["trained"], *seed)
    as_it_is = known.get((row["run"], row["scaling"], row["factor"], *at_1x))
    own = known.get((row["run"], "none", None, *at_1x), as_it_is)
    reference = (against, "none", None, protocol)
    windows = [
        other
        for key, other in known.items()
        if key[:4] == reference
        and other.first["length"] == other.first["trained"]
        and key[5:] == seed
    ]
    window = windows[0] if windows else None
    none = known.get((*reference, row["length"], *seed))
    gain = group.less(own)
    return (
        labelled("gain", None if gain is None else better * gain, group.documents)
        | labelled("over_window", group.less(window), group.documents)
        | labelled("against_none", group.less(none), group.documents)
    )


def _mean_bins(rows: list[Row]) -> list | None:
    if any(row["bins"] is None for row in rows):
        return None
    losses = np.mean([[loss for _, _, loss in row["bins"]] for row in rows], 0)
    return [
        [a, b, round(float(x), 5)] for (a, b, _), x in zip(rows[0]["bins"], losses, strict=True)
    ]


def lines(rows: list[Row]) -> Iterator[str]:
    """Group rows as plain text under 80 columns, a table a protocol."""
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        of = [row for row in rows if row["protocol"] == protocol]
        if protocol == "position":
            yield from _position_lines(of)
            continue
        lengths = sorted({row["length"] for row in of})
        n = max(row["tokens"] for row in of)
        score = "accuracy" if protocol == "passkey" else "loss"
        yield f"\n{protocol}: {score} by context length, {n} {UNITS[protocol]}"
        yield from _table(of, lengths, score)
        if protocol == "passkey":
            yield from _depths(of, max(lengths))
        if protocol == "matched":
            yield "gain: loss at 1x, unscaled or as it was tuned, less loss here (*: sure to 95 %)"
            yield from _table(of, lengths, "gain")
            yield from _verdicts(of)


UNITS = {
    "matched": "targets, the same at every length",
    "windows": "targets in windows side by side",
    "passkey": "keys at random depths (chance 0.0001)",
}


def _label(row: Row) -> str:
    factor = f" x{row['factor']:g}" if row["factor"] else ""
    return f"{row['run']} ({len(row['seeds'])}) {row['scaling']}{factor}"


def _table(rows: list[Row], lengths: list[int], name: str) -> Iterator[str]:
    labels = dict.fromkeys(map(_label, rows))
    width = min(max(map(len, labels), default=0), max(30, 79 - 7 * len(lengths)))
    yield f"{'run (seeds) scaling':<{width}}" + "".join(f"{length:>7}" for length in lengths)
    for label in labels:
        at = {row["length"]: row for row in rows if _label(row) == label}
        cells = "".join(f"{_cell(at.get(c), name):>7}" for c in lengths)
        yield f"{label[:width]:<{width}}{cells}"


def _cell(row: Row | None, name: str) -> str:
    if row is None or row.get(name) is None:
        return "-"
    if name != "gain":
        return f"{row[name]:.3f}"
    sure = row["gain_low"] > 0 or row["gain_high"] < 0
    return f"{row[name]:+.2f}" + "*" * sure


def _verdicts(rows: list[Row]) -> Iterator[str]:
    """Which methods are worse than reading only the last trained window."""
    for label in dict.fromkeys(map(_label, rows)):
        of = [row for row in rows if _label(row) == label and row["gain"] is not None]
        worse = [
            row["length"] for row in of if row["gain_high"] < 0 < row["length"] - row["trained"]
        ]
        if worse:
            lengths = ", ".join(map(str, sorted(worse)))
            yield f"{label}: worse than not extending at {lengths}"


def _depths(rows: list[Row], length: int) -> Iterator[str]:
    yield f"by depth of the key at {length}, in tenths: the first is farthest from the question"
    for row in rows:
        if row["length"] == length and row["depths"]:
            yield f"{_label(row)[:28]:<29}" + "".join(f"{depth:>5.2f}" for depth in row["depths"])


def _position_lines(rows: list[Row]) -> Iterator[str]:
    longest = max(row["length"] for row in rows)
    yield f"\nposition: loss by position in windows of {longest}"
    firsts = [first for first, _, _ in max((row["bins"] or [] for row in rows), key=len)]
    yield f"{'from position':<30}" + "".join(f"{first:>6}" for first in firsts[::3])
    for row in rows:
        found = {first: loss for first, _, loss in row["bins"] or []}
        cells = (f"{found[f]:.2f}" if f in found else "-" for f in firsts[::3])
        yield f"{_label(row)[:29]:<30}" + "".join(f"{cell:>6}" for cell in cells)
