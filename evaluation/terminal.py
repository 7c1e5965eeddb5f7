"""Summaries as plain text under 80 columns: what evaluate.py prints."""

from collections.abc import Callable, Iterator

from evaluation.statistics import Estimate, Summary

Column = Callable[[Summary], str]  # the text of a cell


def lines(summaries: list[Summary], protocols: dict[str, str], against: str) -> Iterator[str]:
    """A table a protocol. protocols: {name: the targets it scores}.

    Lengths are compared in the first protocol, whose targets do not depend on the length.
    """
    first_protocol = next(iter(protocols))
    for protocol, targets in protocols.items():
        shown = [summary for summary in summaries if summary.key.protocol == protocol]
        if not shown:
            continue
        if any(summary.bins for summary in shown):
            for length in sorted({summary.key.length for summary in shown if summary.bins}):
                yield from _by_position([s for s in shown if s.key.length == length])
            continue
        metric, count = shown[0].row["metric"], max(s.row["count"] for s in shown)
        yield f"\n{protocol}: {metric} by context length, {count} {targets}"
        yield from _table(shown, _score)
        yield from _by_depth(shown)
        if protocol == first_protocol:
            yield from _extrapolation(shown, against)


def _extrapolation(summaries: list[Summary], against: str) -> Iterator[str]:
    """Differences between scores on equal targets at different lengths."""
    past = [s for s in summaries if s.key.length > s.row["trained"]]
    if not any(s.gain for s in past):
        return
    yield "gain over the same model at 1x, unscaled or as it was tuned (*: 95 % sure)"
    yield from _table(summaries, lambda s: _signed(s.gain))
    if any(s.above_window for s in past):
        metric = summaries[0].row["metric"]
        yield f"{metric} minus that of the sliding window of {against} (*: 95 % sure)"
        yield from _table(summaries, lambda s: _signed(s.above_window))
    yield from _worse_than_unextended(past)


def _score(summary: Summary) -> str:
    return f"{summary.score.mean:.3f}" if summary.score else "-"


def _signed(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    sure = estimate.low > 0 or estimate.high < 0
    mean = round(estimate.mean, 2) + 0.0  # no minus before a zero
    return f"{mean:+.2f}{'*' if sure else ''}"


def _table(summaries: list[Summary], column: Column) -> Iterator[str]:
    """A row a run and scaling, a column a length."""
    lengths = sorted({summary.key.length for summary in summaries})
    rows: dict[str, list] = {"run (seeds) scaling": lengths}
    for name in dict.fromkeys(summary.name for summary in summaries):
        cells = {s.key.length: column(s) for s in summaries if s.name == name}
        rows[name] = [cells.get(length, "-") for length in lengths]
    yield from _aligned(rows, 7)


def _aligned(rows: dict[str, list], width: int) -> Iterator[str]:
    """Lines with whole names and cells of this width. rows: {name: cells}."""
    names = max(map(len, rows))
    for name, cells in rows.items():
        yield f"{name:<{names}}" + "".join(f"{cell:>{width}}" for cell in cells)


def _worse_than_unextended(past: list[Summary]) -> Iterator[str]:
    """The lengths at which a model is surely worse than on its last trained window alone."""
    for name in dict.fromkeys(summary.name for summary in past):
        of_name = [s for s in past if s.name == name and s.gain is not None]
        worse = sorted(s.key.length for s in of_name if s.gain.high < 0)
        if worse:
            yield f"{name}: worse than not extending at {', '.join(map(str, worse))}"


def _by_depth(summaries: list[Summary]) -> Iterator[str]:
    """Accuracy at the longest length by tenths of the depth."""
    longest = max(summary.key.length for summary in summaries)
    shown = [s for s in summaries if s.key.length == longest and s.depths]
    if shown:
        yield f"by depth at {longest}, in equal parts: the first is farthest from the question"
        rows = {summary.name: [f"{depth:.2f}" for depth in summary.depths] for summary in shown}
        yield from _aligned(rows, 5)


def _by_position(summaries: list[Summary]) -> Iterator[str]:
    """The loss along windows of one length, every third bin."""
    yield f"\nposition: loss by position in windows of {summaries[0].key.length}"
    all_bins = max((summary.bins or [] for summary in summaries), key=len)
    firsts = [first for first, _, _ in all_bins][::3]
    rows: dict[str, list] = {"from position": firsts}
    for summary in summaries:
        losses = {first: f"{loss:.2f}" for first, _, loss in summary.bins or []}
        rows[summary.name] = [losses.get(first, "-") for first in firsts]
    yield from _aligned(rows, 6)
