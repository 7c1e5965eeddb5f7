"""What a run says: metrics.jsonl (the truth), wandb (a mirror of it), lines on the terminal, and
status.json (how it stands, for whoever started it)."""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

QUIET = 5.0  # seconds that wandb may take to find its server


def note(folder: Path, **changes: object) -> None:
    """Change what status.json says: state, iter (saved), exit_code, pid, launcher."""
    path = folder / "status.json"
    fresh = path.with_suffix(".tmp")
    with suppress(OSError):  # on a full disk the run goes on; it says so where it must
        fresh.write_text(json.dumps(noted(folder) | changes) + "\n")
        os.replace(fresh, path)


def noted(folder: Path) -> dict:
    """What status.json says; nothing where it is missing or was written by somebody else."""
    try:
        return dict(json.loads((folder / "status.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


class Log:
    """Rows of one run. Only the first process of a run makes one.

    On a resumed run, rows after its step are dropped first: that part will be written again.
    """

    def __init__(self, folder: Path, config: dict, start: int, run_id: str):
        self.path = folder / "metrics.jsonl"
        self.total, self.start, self.began = config["max_iters"], start, time.monotonic()
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(_kept(self.path, start)))
        os.replace(fresh, self.path)
        self.file = open(self.path, "a")  # noqa: SIM115 - open for as long as the run
        self.wandb = open_wandb(config, run_id, "train", self.path)

    def row(self, row: dict[str, float | int]) -> None:
        """Write and show one row; its `iter` is the number of optimizer steps done."""
        try:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        except OSError as error:  # a full disk; what is buffered goes with the next row
            print(f"{self.path}: {error.strerror}; it will be tried again", file=sys.stderr)
        if self.wandb is not None:
            try:
                self.wandb.log(row)
            except Exception as error:  # a mirror never ends a run, whatever it raises
                self.wandb = _off(error, self.path)
        self._line(row)

    def _line(self, row: dict[str, float | int]) -> None:
        """One plain line under 80 columns: step, losses, speed, time left."""
        done = row["iter"]
        left = (time.monotonic() - self.began) / (done - self.start) * (self.total - done)
        short = {"train/loss": "train", "val/loss": "val", "val/loss_2x": "2x", "val/loss_4x": "4x"}
        losses = [f"{short[name]} {row[name]:.3f}" for name in short if name in row]
        speed = f"{row['tokens_per_s'] / 1000:.1f}k tok/s {row['ms_per_step']:.0f} ms"
        clear = "\r\033[K" if sys.stdout.isatty() else ""
        self._say(f"{clear}{done}/{self.total} {' '.join(losses)} {speed} eta {clock(left)}\n")

    def status(self, done: int) -> None:
        """A line that the next one replaces; on a terminal only."""
        if sys.stdout.isatty():
            self._say(f"\r{done}/{self.total}")

    def _say(self, text: str) -> None:
        try:
            print(text, end="", flush=True)
        except BrokenPipeError:  # `python train.py | head`: nobody listens, the run goes on
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process

    def close(self, exit_code: int) -> None:
        try:
            self.file.close()
        except OSError as error:
            print(f"{self.path} lacks rows: {error.strerror}", file=sys.stderr)
        if self.wandb is not None:
            try:
                self.wandb.finish(exit_code=exit_code)
            except Exception as error:  # as in row
                _off(error, self.path)


def _kept(path: Path, start: int) -> list[str]:
    """The rows up to a step; what is torn or missing cannot be kept, and does not stop a run."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if start and path.exists() else []:
        if (done := _iter(line)) is None:
            print(f"{path}: a torn row was left out", file=sys.stderr)
        elif done <= start:
            rows.append(line + "\n")
    return rows


def _iter(line: str) -> int | None:
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


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _off(error: Exception, path: Path) -> None:
    print(f"wandb off: {_reason(error)}; logging to {path} only", file=sys.stderr)


def open_wandb(config: dict, run_id: str, job_type: str, path: Path):
    """A wandb run, or None after one line that says why not. Never prompts, never raises.

    wandb=auto is WANDB_MODE where that is set, else online where a key is found, else offline.
    """
    mode = config["wandb"]
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or None
    if mode == "disabled":
        return None
    try:
        import wandb  # noqa: PLC0415 - half a second that a run without it should not pay

        # Where it cannot write, wandb would write to /tmp.
        (Path(os.environ.get("WANDB_DIR") or ".") / "wandb").mkdir(parents=True, exist_ok=True)
        try:
            if mode in (None, "online"):  # init would ask for a key, and wait for ever
                mode = "online" if wandb.login(prompt=False) else "offline"
            return _init(wandb, config, run_id, job_type, mode)
        except wandb.Error as error:
            if mode == "offline":
                raise
            print(f"wandb offline: {_reason(error)}", file=sys.stderr)
        return _init(wandb, config, run_id, job_type, "offline")
    except Exception as error:  # not installed, folder not writable, ...: a mirror ends no run
        return _off(error, path)


def _init(wandb, config: dict, run_id: str, job_type: str, mode: str):
    settings = wandb.Settings(
        silent=True, console="off", init_timeout=QUIET, x_transaction_log_flush_interval=1
    )
    held = f"{config['dataset']}-{config['n_layer']}x{config['n_embd']}-{config['block_size']}"
    run = wandb.init(
        project=config["wandb_project"],
        id=run_id,
        name=config["name"] or config["pos"],
        group=held,  # what runs of different encodings have in common
        tags=[config["pos"], config["rope_scaling"]],
        job_type=job_type,
        config=config,
        mode=mode,
        resume="allow",
        settings=settings,
    )
    for metric in ("train/*", "val/*", "lr", "tokens_per_s", "ms_per_step", "grad_norm"):
        run.define_metric(metric, step_metric="iter")
    run.define_metric("ctx/*", step_metric="ctx/len")
    return run


def curve(config: dict, path: Path, rows: list[dict]) -> None:
    """Mirror one model's scores in wandb: ctx/METRIC over ctx/len, and a table of all rows.

    rows: of one protocol, each with its mean `score` (None: refused) and its `metric`.
    """
    label = f"{config['name'] or config['pos']}-{config['seed']}-{rows[0]['scaling']}"
    run_id = f"ctx-{label}-{time.strftime('%m%d-%H%M%S')}"
    run = open_wandb(config | {"name": label}, run_id, "eval", path)
    if run is None:
        return
    names = list(rows[0])
    try:
        import wandb  # noqa: PLC0415 - as in open_wandb

        for row in sorted(rows, key=lambda row: row["length"]):
            if row["score"] is not None:
                run.log({"ctx/len": row["length"], f"ctx/{row['metric']}": row["score"]})
        run.log({"results": wandb.Table(names, [[row.get(n) for n in names] for row in rows])})
        run.finish()
    except Exception as error:  # as in Log.row
        _off(error, path)
