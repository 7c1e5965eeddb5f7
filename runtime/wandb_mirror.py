"""The rows of a run, mirrored in wandb. metrics.jsonl is the record; a mirror never ends a run."""

import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT = 5.0  # seconds that wandb may take to find its server
RUN_METRICS = ("train/*", "val/*", "lr", "tokens_per_s", "ms_per_step", "grad_norm")


class Mirror:
    """A wandb run; nothing after one line that says why, where wandb is missing or fails.

    job_type is "train" or "eval"; `path` is the file that holds the same rows, for that line.
    """

    def __init__(self, config: dict, run_id: str, job_type: str, path: Path):
        self.path = path
        self.run = open_wandb(config, run_id, job_type, path)

    def log(self, row: dict) -> None:
        self.attempt(lambda run: run.log(row))

    def finish(self, exit_code: int = 0) -> None:
        self.attempt(lambda run: run.finish(exit_code=exit_code))

    def attempt(self, action: Callable[[Any], None]) -> None:
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as error:  # whatever wandb raises, training goes on
            self.run = None
            _say_off(error, self.path)


def open_wandb(config: dict, run_id: str, job_type: str, path: Path):
    """A wandb run, or None after one line that says why not. Never prompts, never raises.

    wandb=auto is WANDB_MODE where that is set, else online where a key is stored, else offline.
    """
    mode = _mode(config["wandb"])
    if mode == "disabled":
        return None
    try:
        import wandb  # noqa: PLC0415 - half a second that a run without it should not pay

        # Where it cannot write here, wandb would write to /tmp.
        (Path(os.environ.get("WANDB_DIR") or ".") / "wandb").mkdir(parents=True, exist_ok=True)
        return _connect(wandb, config, run_id, job_type, mode)
    except Exception as error:  # not installed, folder not writable, ...
        return _say_off(error, path)


def _mode(setting: str) -> str | None:
    """None: online where a key is stored, else offline."""
    if setting != "auto":
        return setting
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    return os.environ.get("WANDB_MODE") or None


def _connect(wandb, config: dict, run_id: str, job_type: str, mode: str | None):
    """Online where that works, else offline after one line; other modes of wandb as they are."""
    if mode not in (None, "online"):
        return _init(wandb, config, run_id, job_type, mode)
    try:  # without a key, init would ask for one and wait forever
        if wandb.login(prompt=False):
            return _init(wandb, config, run_id, job_type, "online")
        if mode == "online":
            print("wandb offline: no API key; `wandb login` stores one", file=sys.stderr)
    except wandb.Error as error:
        print(f"wandb offline: {_reason(error)}", file=sys.stderr)
    return _init(wandb, config, run_id, job_type, "offline")


def _init(wandb, config: dict, run_id: str, job_type: str, mode: str):
    settings = wandb.Settings(
        silent=True, console="off", init_timeout=TIMEOUT, x_transaction_log_flush_interval=1
    )
    run = wandb.init(
        project=config["wandb_project"] or os.environ.get("WANDB_PROJECT") or "nanorope",
        id=run_id,
        name=os.environ.get("WANDB_NAME") or config["name"] or config["pos"],
        group=os.environ.get("WANDB_RUN_GROUP") or _group(config),
        tags=[config["pos"], config["rope_scaling"]],
        job_type=job_type,
        config=config,
        mode=mode,
        resume="allow",
        settings=settings,
    )
    for metric in RUN_METRICS:
        run.define_metric(metric, step_metric="iter")
    run.define_metric("ctx/*", step_metric="ctx/len")
    return run


def _group(config: dict) -> str:
    """What runs with different encodings have in common."""
    return f"{config['dataset']}-{config['n_layer']}x{config['n_embd']}-{config['block_size']}"


def new_id(name: str) -> str:
    """A run's id: readable, and unique also among runs that start in the same second."""
    name = re.sub(r"[^a-zA-Z0-9._-]", "-", name)[:64]
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def curve(config: dict, path: Path, rows: list[dict]) -> None:
    """Mirror one model's scores in wandb: ctx/METRIC over ctx/len, and a table of the rows.

    rows: of one protocol, each with its mean `score` (None: refused) and its `metric`.
    """
    label = f"{config['name'] or config['pos']}-{config['seed']}-{rows[0]['scaling']}"
    mirror = Mirror(config | {"name": label}, new_id(f"ctx-{label}"), "eval", path)
    for row in sorted(rows, key=lambda row: row["length"]):
        if row["score"] is not None:
            mirror.log({"ctx/len": row["length"], f"ctx/{row['metric']}": row["score"]})
    mirror.attempt(lambda run: run.log({"results": _table(rows)}))
    mirror.finish()


def _table(rows: list[dict]):
    import wandb  # noqa: PLC0415 - as in open_wandb

    columns = [name for name in rows[0] if name != "scores"]  # one number a span
    return wandb.Table(columns, [[row.get(name) for name in columns] for row in rows])


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _say_off(error: Exception, path: Path) -> None:
    print(f"wandb off: {_reason(error)}; logging to {path} only", file=sys.stderr)
