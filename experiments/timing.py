"""Measuring in turns: contestants, rounds, and what a row of bench.py's table says of them."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

Took = dict[str, list[float]]  # seconds of each round, by contestant


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
    return median(values), min(values), max(values)


def in_turn(contestants: dict[str, Callable[[], object]], rounds: int) -> Took:
    """Seconds that each takes in each round, after one turn to warm up."""
    took: Took = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            began = time.perf_counter()
            work()
            if number:
                took[name].append(time.perf_counter() - began)
    return took


def rows(work: str, took: Took, unit: str = "ms", amount: float | None = None) -> list[Row]:
    """ "ours" beside each of the others: milliseconds, or `amount` a second."""

    def shown(seconds: list[float]) -> tuple[float, ...]:
        return spread([amount / s if amount else 1000 * s for s in seconds])

    ours, found = took["ours"], []
    for peer, theirs in took.items():
        if peer != "ours":
            ratio = spread([b / a for a, b in zip(ours, theirs, strict=True)])
            found.append(Row(work, unit, shown(ours), peer, shown(theirs), ratio))
    return found or [Row(work, unit, shown(ours))]


def limits(rounds: int) -> tuple[dict[str, float], list[Row]]:
    """The machine's own: the best matrix product, operations a second by dtype; copying."""
    best, found, n = {}, [], 2048
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = torch.randn(2, n, n).to(dtype)
        took = in_turn({"ours": partial(torch.mm, a, b)}, rounds)
        found += rows(f"limit: {name} matrix product", took, "GFLOP/s", 2 * n**3 / 1e9)
        best[name] = 1e9 * found[-1].ours[2]
    source = torch.randn(2**24)
    took = in_turn({"ours": partial(torch.empty_like(source).copy_, source)}, rounds)
    return best, found + rows("limit: memory copy", took, "GB/s", 8 * source.numel() / 1e9)


def line(row: Row) -> str:
    def shown(values: tuple[float, ...]) -> str:
        middle, *ends = (f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}" for v in values or (0.0,))
        return (middle + (f" ({ends[0]} to {ends[1]})" if ends else "")) if values else "-"

    cells = row.work, row.unit, shown(row.ours), row.peer or "-", shown(row.theirs)
    return f"| {' | '.join(cells)} | {shown(row.ratio)} |"


def cpu() -> str:
    """The processor's name and instruction sets that matter here, as Linux tells them."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    about = {name.strip(): value.strip() for name, value in lines.items()}
    units = set(about.get("flags", "").split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    return " ".join([about.get("model name", platform.machine()), *sorted(units)])


def high_water() -> float:
    """The most memory that this process has held, megabytes, as Linux tells it.

    Not getrusage's ru_maxrss: a child begins there with what its parent held.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
