"""Times of several works, measured in alternation, and the rows of bench.py's table."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

Times = dict[str, list[float]]  # seconds of each round, by the name of the work


@dataclass
class Row:
    """One line of the table. Numbers are (median, least, most)."""

    work: str
    unit: str
    ours: tuple[float, ...]
    peer: str = ""
    theirs: tuple[float, ...] = ()
    ratio: tuple[float, ...] = ()


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return median(values), min(values), max(values)


def interleaved(works: dict[str, Callable[[], object]], rounds: int) -> Times:
    """Seconds of each work in each round, A B A B, after one round to warm up."""
    times: Times = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if number > 0:
                times[name].append(time.perf_counter() - start)
    return times


def rows(work: str, times: Times, unit: str = "ms", amount: float | None = None) -> list[Row]:
    """ "ours" beside each of the others: in milliseconds, or as `amount` a second.

    A ratio is theirs / ours, in seconds of the same round.
    """

    def in_unit(seconds: list[float]) -> tuple[float, ...]:
        return spread([amount / s if amount else 1000 * s for s in seconds])

    ours = times["ours"]
    if len(times) == 1:
        return [Row(work, unit, in_unit(ours))]
    table = []
    for peer in [name for name in times if name != "ours"]:
        ratio = spread([b / a for a, b in zip(ours, times[peer], strict=True)])
        table.append(Row(work, unit, in_unit(ours), peer, in_unit(times[peer]), ratio))
    return table


def limits(rounds: int) -> tuple[dict[str, float], list[Row]]:
    """The machine's limits: its best matrix product, in operations a second by dtype; a copy."""
    best, table, n = {}, [], 2048
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = torch.randn(2, n, n).to(dtype)
        times = interleaved({"ours": partial(torch.mm, a, b)}, rounds)
        table += rows(f"limit: {name} matrix product", times, "GFLOP/s", 2 * n**3 / 1e9)
        best[name] = 1e9 * table[-1].ours[2]
    source = torch.randn(2**24)
    times = interleaved({"ours": partial(torch.empty_like(source).copy_, source)}, rounds)
    return best, table + rows("limit: memory copy", times, "GB/s", 8 * source.numel() / 1e9)


def line(row: Row) -> str:
    """A row of the table in Markdown."""
    cells = row.work, row.unit, text(row.ours), row.peer or "-", text(row.theirs), text(row.ratio)
    return f"| {' | '.join(cells)} |"


def text(values: tuple[float, ...]) -> str:
    """Numbers as "median (least to most)", or a single one; "-" for none."""
    if not values:
        return "-"
    middle, *ends = (f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}" for v in values)
    return f"{middle} ({ends[0]} to {ends[1]})" if ends else middle


def cpu() -> str:
    """The processor's name and the instruction sets that matter here, on Linux."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    lines = [line.split(":", 1) for line in path.read_text().splitlines() if ":" in line]
    about = {name.strip(): value.strip() for name, value in lines}
    units = set(about.get("flags", "").split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    return " ".join([about.get("model name", platform.machine()), *sorted(units)])


def peak_memory() -> float:
    """The most memory that this process has held, in megabytes, on Linux.

    Not getrusage's ru_maxrss: in a child process that starts at what its parent held.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
