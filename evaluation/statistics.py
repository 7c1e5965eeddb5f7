"""From measured rows to estimates: means over seeds, intervals, paired differences.

All of it is computed on reading. Scores are grouped by document, since scores of one document are
not independent. Whether more is better, and how an interval is made, follows from a row's metric.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from evaluation.results import Key, Row, key_of

DRAWS = 2000  # of the bootstrap
Z = 1.96  # standard deviations that hold 95 % of a normal distribution


class Estimate(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    def __neg__(self) -> "Estimate":
        return Estimate(-self.mean, -self.high, -self.low)


def _rounded(*numbers: float) -> Estimate:
    return Estimate(*(round(float(x), 5) for x in numbers))


@lru_cache
def resampling(documents: tuple[int, ...]) -> np.ndarray:
    """Bootstrap weights, float64 (DRAWS, scores), each row of sum 1.

    documents: how many scores each document has. Documents are drawn with replacement, then the
    scores within each. The same weights for everything make every comparison paired.
    """
    draw = np.random.default_rng(0)
    picks = draw.multinomial(len(documents), [1 / len(documents)] * len(documents), DRAWS)
    parts = [draw.multinomial(picks[:, d] * n, [1 / n] * n) for d, n in enumerate(documents)]
    counts = np.concatenate(parts, 1)
    return counts / counts.sum(1, keepdims=True)


def bootstrap(values: np.ndarray, documents: tuple[int, ...]) -> Estimate:
    """The mean of values (scores,) with its two-stage bootstrap interval."""
    low, high = np.quantile(resampling(documents) @ values, (0.025, 0.975))
    return _rounded(values.mean(), low, high)


def wilson(k: float, n: int) -> Estimate:
    """The share k / n with its score interval (Wilson 1927)."""
    share = k / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2) / (1 + Z**2 / n)
    return _rounded(share, max(0.0, centre - half), min(1.0, centre + half))


def estimate(values: np.ndarray, documents: tuple[int, ...], metric: str) -> Estimate:
    """The mean of values (scores,) with an interval that suits the metric.

    A share of 0 or 1 does not vary, so that a bootstrap would give it no width: Wilson's does.
    """
    mean = values.mean()
    if metric == "accuracy" and mean in (0, 1):
        return wilson(mean * len(values), len(values))
    return bootstrap(values, documents)


class Group:
    """Rows of one model and setting that differ in the seed alone, scored on equal targets."""

    def __init__(self, rows: list[Row]):
        self.newest = rows[-1]
        self.rows = rows
        self.documents = tuple(len(scores) for scores in self.newest["scores"] or ())
        self.by_seed = {r["seed"]: np.concatenate(r["scores"]) for r in rows if r["scores"]}

    @property
    def values(self) -> np.ndarray | None:
        """Score by score the mean over seeds, (scores,); None if the model refuses the length."""
        return np.mean(list(self.by_seed.values()), 0) if self.by_seed else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds."""
        means = [values.mean() for values in self.by_seed.values()]
        return round(float(np.std(means, ddof=1)), 5) if len(means) > 1 else None


def paired_difference(group: Group, other: Group | None) -> Estimate | None:
    """`group` minus `other`, score by score, over the seeds that both have.

    None if there are none, or if their targets differ.
    """
    if other is None or group.newest["targets"] != other.newest["targets"]:
        return None
    shared = [seed for seed in group.by_seed if seed in other.by_seed]
    if not shared:
        return None
    differences = [group.by_seed[seed] - other.by_seed[seed] for seed in shared]
    return bootstrap(np.mean(differences, 0), group.documents)


@dataclass(frozen=True)
class Summary:
    """What a group of rows shows. An estimate is None where there is nothing to estimate."""

    key: Key
    row: Row  # the newest of the group
    seeds: list[int]
    score: Estimate | None  # None: the model refuses this length
    spread: float | None  # standard deviation over seeds
    gain: Estimate | None  # over the same model at its trained length; more is better
    above_window: Estimate | None  # score minus that of the reference run's sliding window
    beyond_window: Estimate | None  # share of questions whose answer lies before the last window
    depths: list[float]  # mean scores of ten equal groups of questions, by depth
    bins: list | None  # [first position, last position, mean score], ...

    @property
    def name(self) -> str:
        """How a table of the terminal names it: run (seeds) scaling."""
        factor = f" x{self.key.factor:g}" if self.key.factor else ""
        return f"{self.key.run} ({len(self.seeds)}) {self.key.scaling}{factor}"


def summarise(rows: Iterable[Row], against: str | None) -> list[Summary]:
    """One summary a group of rows, in order of appearance.

    against: the run whose sliding window, its unscaled score at its own trained length, all others
    are compared with. Within a group the newest targets count.
    """
    members: dict[Key, list[Row]] = {}
    for row in rows:
        members.setdefault(key_of(row)._replace(seed=None), []).append(row)
    groups = {key: Group(_on_newest_targets(group)) for key, group in members.items()}
    windows = _sliding_windows(groups, against)
    return [
        _summary(key, group, _unextended(key, groups), windows.get(key.protocol))
        for key, group in groups.items()
    ]


def _on_newest_targets(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["targets"] == rows[-1]["targets"]]


def _sliding_windows(groups: dict[Key, Group], against: str | None) -> dict[str, Group]:
    """By protocol, the reference run unscaled at its own trained length."""
    windows: dict[str, Group] = {}
    for key, group in groups.items():
        unscaled = (key.run, key.scaling, key.factor) == (against, "none", None)
        if unscaled and key.length == group.newest["trained"]:
            windows.setdefault(key.protocol, group)
    return windows


def _unextended(key: Key, groups: dict[Key, Group]) -> Group | None:
    """The same model at its trained length: unscaled, or as it was tuned."""
    as_it_is = key._replace(length=groups[key].newest["trained"])
    unscaled = as_it_is._replace(scaling="none", factor=None)
    return groups.get(unscaled, groups.get(as_it_is))


def _summary(key: Key, group: Group, unextended: Group | None, window: Group | None) -> Summary:
    row, values = group.newest, group.values
    gain = paired_difference(group, unextended)
    if gain is not None and not row["higher_is_better"]:
        gain = -gain
    score = beyond = None
    if values is not None:
        score = estimate(values, group.documents, row["metric"])
        if n := row.get("beyond_window_n"):  # questions are sorted by depth, the deepest first
            beyond = estimate(values[:n], group.documents[:n], row["metric"])
    return Summary(
        key,
        row,
        [r["seed"] for r in group.rows],
        score,
        group.spread,
        gain,
        paired_difference(group, window),
        beyond,
        _depths(row, values),
        _mean_bins(group.rows),
    )


def _depths(row: Row, values: np.ndarray | None) -> list[float]:
    if values is None or "beyond_window_n" not in row:
        return []
    tenths = np.array_split(values, min(10, len(values)))
    return [round(float(tenth.mean()), 4) for tenth in tenths]


def _mean_bins(rows: list[Row]) -> list | None:
    if any(row.get("bins") is None for row in rows):
        return None
    scores = np.mean([[score for _, _, score in row["bins"]] for row in rows], 0)
    edges = [(first, last) for first, last, _ in rows[0]["bins"]]
    return [
        [first, last, round(float(score), 5)]
        for (first, last), score in zip(edges, scores, strict=True)
    ]


def comparable(rows: list[Row]) -> list[Row]:
    """The rows that may stand in one table; the others are counted on stderr.

    They are those of the newest target set of their protocol, on the newest targets of their
    length.
    """
    sets = {row["protocol"]: row["target_set"] for row in rows}
    kept = [row for row in rows if row["target_set"] == sets[row["protocol"]]]
    targets = {(row["protocol"], row["length"]): row["targets"] for row in kept}
    kept = [row for row in kept if row["targets"] == targets[row["protocol"], row["length"]]]
    if len(kept) < len(rows):
        left_out = f"{len(rows) - len(kept)} of {len(rows)} rows"
        print(f"{left_out} were scored on older targets and are left out", file=sys.stderr)
    return kept


def with_mean(row: Row) -> Row:
    """A row with the mean `score` (None: refused) in the place of its scores."""
    values = np.concatenate(row["scores"]) if row["scores"] else None
    return row | {"scores": None, "score": None if values is None else float(values.mean())}
