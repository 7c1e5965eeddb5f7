"""Measured rows: JSON lines that are appended, one a cell.

A cell is one model (run and seed), in one variant, in one protocol at one context length. Its row
holds raw scores only: means, intervals and differences are computed on reading (statistics.py).
The folder of the run tells weights that were trained again from a different run of the same name.
"""

import fcntl
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

Row = dict[str, object]


class Key(NamedTuple):
    """What names a cell. Rows of one group differ in the seed alone; its key has seed None."""

    run: str
    scaling: str
    factor: float | None
    protocol: str
    length: int
    seed: int | None


FIELDS: dict[str, tuple[type, ...]] = {
    "run": (str,),
    "seed": (int,),
    "folder": (str, type(None)),  # of the run (None: a row of the first release)
    "pos": (str,),
    "scaling": (str,),
    "factor": (float, int, type(None)),
    "length": (int,),
    "trained": (int,),  # length
    "protocol": (str,),
    "metric": (str,),  # loss, accuracy
    "higher_is_better": (bool,),
    "checkpoint_sha": (str,),
    "target_set": (str,),  # settings that determine the targets, at all lengths
    "targets": (str,),  # digest of the targets: only scores on equal ones may be compared
    "count": (int,),  # targets, or questions
    "scores": (list, type(None)),  # a list a document; None: the model refuses this length
}


def key_of(row: Row) -> Key:
    return Key(*(row[name] for name in Key._fields))


def check(row: object) -> Row:
    """The row; ValueError with the reason if it is not one."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    row.setdefault("folder", None)
    for name, types in FIELDS.items():
        if name not in row:
            raise ValueError(f"{name} is missing")
        if type(row[name]) not in types:
            raise ValueError(f"{name} is {row[name]!r:.40}")
    documents = row["scores"] or []
    if not all(isinstance(scores, list) and scores for scores in documents):
        raise ValueError("scores is not a list of lists")
    if not all(_is_finite(score) for scores in documents for score in scores):
        raise ValueError("scores holds something that is not a finite number")
    return row


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def read_lines(path: Path, check: Callable[[object], Row]) -> Iterator[Row]:
    """The rows of a JSON-lines file, in file order; an absent file has none.

    A line that cannot be parsed, or that `check` refuses with ValueError, is named on stderr and
    skipped. ValueError if the file holds something other than JSON lines.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    refuse_other_formats(path, b"".join(lines[:1]))
    for number, line in enumerate(lines, 1):
        if (row := _parse(line, check, f"{path}:{number}")) is not None:
            yield row


def _parse(line: bytes, check: Callable[[object], Row], place: str) -> Row | None:
    """The row of a line; None, and a line on stderr, if it is bad."""
    try:
        return check(json.loads(line))
    except (ValueError, RecursionError) as error:
        print(f"{place}: skipped a bad line: {error}", file=sys.stderr)
        return None


def refuse_other_formats(path: Path, first_line: bytes) -> None:
    """ValueError unless a file that starts with this line may hold JSON lines."""
    if first_line.startswith(b"["):
        raise ValueError(
            f"{path} is a JSON array, which earlier versions wrote; rows are JSON lines now: "
            "move it away and measure again"
        )
    if first_line and not first_line.startswith(b"{"):
        raise ValueError(f"{path} does not hold rows of evaluate.py; name a different --json")


def read(path: Path) -> list[Row]:
    """The rows that count, oldest first; an absent file has none. ValueError as in read_lines.

    The last row of a cell and target set counts, if it has the weights that were scored last for
    its run and seed.
    """
    latest: dict[tuple, Row] = {}
    weights: dict[tuple, str] = {}
    for row in read_lines(path, check):
        cell = (key_of(row), row["target_set"])
        latest.pop(cell, None)  # to stand at its new place
        latest[cell] = row
        weights[row["run"], row["seed"]] = row["checkpoint_sha"]
    return [r for r in latest.values() if r["checkpoint_sha"] == weights[r["run"], r["seed"]]]


def append(path: Path, row: Row) -> None:
    """Add a row at the end, in one write; several processes may do so at once.

    ValueError if it is not a row, or if the file holds something else.
    """
    line = json.dumps(check(row), allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file
        file.seek(0)
        refuse_other_formats(path, file.readline(100))
        # A crash may have left a line without its end; this row must not be joined to it.
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
