"""The record of a run: metrics.jsonl, the lines on the terminal, and a mirror in wandb."""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from runtime.config import Config
from runtime.folder import FRESH_METRICS, METRICS, holds_another_run
from runtime.wandb_mirror import Mirror

SHORT = {"train/loss": "train", "val/loss": "val", "val/loss_2x": "2x", "val/loss_4x": "4x"}


class Log:
    """Rows of one run. Only the first process of a run makes one.

    `start` is the last step whose row is kept: the later ones will be written again. Where the run
    overwrites another, that one's rows stay until `folder.save` puts these in their place.
    """

    def __init__(self, config: Config, start: int, run_id: str):
        self.path, fresh = config.folder / METRICS, config.folder / FRESH_METRICS
        self.total, self.start, self.began = config.max_iters, start, time.monotonic()
        fresh.write_text("".join(_rows_until(start, self.path)), encoding="utf-8")
        self.file = open(fresh, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        if not holds_another_run(config):
            os.replace(fresh, self.path)
        self.mirror = Mirror(asdict(config), run_id, "train", self.path)

    def row(self, row: dict[str, float | int]) -> None:
        """Write and show one row; its `iter` is the number of optimizer steps done."""
        try:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        except OSError as error:  # a full disk; what is buffered goes with the next row
            print(f"{self.path}: {error.strerror}; it will be tried again", file=sys.stderr)
        self.mirror.log(row)
        self._show(row)

    def _show(self, row: dict[str, float | int]) -> None:
        """One plain line under 80 columns: step, losses, speed, time left."""
        done = row["iter"]
        left = (time.monotonic() - self.began) / (done - self.start) * (self.total - done)
        losses = [f"{short} {row[name]:.3f}" for name, short in SHORT.items() if name in row]
        speed = f"{row['tokens_per_s'] / 1000:.1f}k tok/s {row['ms_per_step']:.0f} ms"
        clear = "\r\033[K" if sys.stdout.isatty() else ""
        _print(f"{clear}{done}/{self.total} {' '.join(losses)} {speed} eta {clock(left)}\n")

    def status(self, done: int) -> None:
        """A line that the next one replaces; on a terminal only."""
        if sys.stdout.isatty():
            _print(f"\r{done}/{self.total}")

    def close(self, exit_code: int) -> None:
        try:
            self.file.close()
        except OSError as error:
            print(f"{self.path} lacks rows: {error.strerror}", file=sys.stderr)
        self.mirror.finish(exit_code)


class NoLog:
    """The log of all processes but the first: it writes nothing."""

    def row(self, row: dict[str, float | int]) -> None: ...

    def status(self, done: int) -> None: ...

    def close(self, exit_code: int) -> None: ...


def _print(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except OSError as error:
        # `python train.py | head`, a full disk, a closed terminal: the run goes on without it.
        if not isinstance(error, BrokenPipeError):
            print(f"stdout: {error.strerror}; rows go to {METRICS} alone", file=sys.stderr)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process


def _rows_until(start: int, path: Path) -> list[str]:
    """The rows up to a step. A torn row or a missing file does not stop a run."""
    if not start or not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        step = _step_of(line)
        if step is None:
            print(f"{path}: a torn row was left out", file=sys.stderr)
        elif step <= start:
            rows.append(line + "\n")
    return rows


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["iter"])
    except (ValueError, KeyError, TypeError):
        return None


def clock(seconds: float) -> str:
    """
    >>> clock(3725)
    '1:02:05'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def progress(what: str, share: float, left: float) -> None:
    """One line: replaced by the next on a terminal, a plain one elsewhere."""
    before, after = ("\r\033[K", "") if sys.stderr.isatty() else ("", "\n")
    text = f"{100 * share:3.0f}% eta {clock(left)} {what}"
    print(f"{before}{text[:79]}", end=after, file=sys.stderr, flush=True)
