"""A run's folder: claimed by one process, with config.json and status.json beside the checkpoints.

status.json says how the run stands: state, iter (the step that it saved last), exit_code, pid,
launcher. What an overwritten run left stays until the first save of the run that overwrites it.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch.distributed as dist

from runtime import checkpoint, errors
from runtime.config import CONFIG, Config

STATUS, METRICS, FRESH_METRICS = "status.json", "metrics.jsonl", "metrics.tmp"


class BusyError(ValueError):
    """A different process runs in this folder."""

    exit_code = errors.BUSY


def runs(root: str | Path = "out") -> list[Path]:
    """The run folders below `root` that hold a checkpoint, in the order of their names."""
    return [folder for folder in sorted(Path(root).glob("*")) if checkpoint.exists(folder)]


def update_status(folder: Path, **changes: object) -> None:
    with suppress(OSError):  # on a full disk the run goes on; a failed save says that it is full
        _write(folder / STATUS, json.dumps(read_status(folder) | changes))


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole: what it held stays where the disk is full."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(text + "\n", encoding="utf-8")
    os.replace(fresh, path)


def read_status(folder: Path) -> dict:
    """What status.json says; {} where it is missing or is not ours."""
    try:
        return dict(json.loads((folder / STATUS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


@contextmanager
def claim_folder(config: Config) -> Iterator[None]:
    """Make the run's folder and lock it; refuse one that holds another run, or is in use."""
    folder = config.folder
    _check_is_ours(config)
    descriptor = _make(folder)
    try:
        # The lock ends with the process, however the process ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        update_status(folder, pid=os.getpid())
        yield
    except BlockingIOError:
        pid = read_status(folder).get("pid")
        raise BusyError(
            f"{folder} is in use by another run (pid {pid}); choose another out_dir"
        ) from None
    except BaseException:
        _remove_if_unused(folder)
        raise
    finally:
        os.close(descriptor)


def _remove_if_unused(folder: Path) -> None:
    """A start that was refused leaves nothing behind."""
    if read_status(folder).keys() == {"pid"}:
        (folder / STATUS).unlink()
        with suppress(OSError):  # other files may lie in it
            folder.rmdir()


def _check_is_ours(config: Config) -> None:
    folder, exists = config.folder, checkpoint.exists(config.folder)
    if exists and not (config.resume or config.overwrite):
        raise ValueError(
            f"{folder} holds a run already (step {checkpoint.last_good(folder)}): --resume "
            "continues it, --overwrite replaces it, --name or --out_dir leaves it alone"
        )
    if config.resume and not exists:
        raise checkpoint.CheckpointError(
            f"{folder} holds no checkpoint to resume from; leave out --resume to start there"
        )


def _make(folder: Path) -> int:
    """Make a folder that can be written to, and open it. Returns the descriptor."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "it is not writable")
        return os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OSError(error.errno, f"out_dir cannot be used, {error.strerror}", folder) from None


def resume_if_restarted(config: Config) -> Config:
    """Set resume where torchrun has restarted the processes of a job, so that its run continues.

    Only what this job itself has saved is resumed: a run that an earlier job left is not touched.
    """
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    status = read_status(config.folder)
    ours = status.get("launcher") == os.getppid() and status.get("iter") is not None
    resume = [restarted and ours and checkpoint.exists(config.folder)]
    if dist.is_initialized():
        dist.broadcast_object_list(resume)  # as the first process sees the folder
    return replace(config, resume=True, overwrite=False) if resume[0] else config


def enter_folder(config: Config) -> None:
    """Nothing can fail before the first step now: say that the run is under way."""
    began = {"state": "running", "exit_code": None, "pid": os.getpid(), "launcher": os.getppid()}
    if not config.resume:
        began["iter"] = None
    update_status(config.folder, **began)
    if not holds_another_run(config):
        write_config(config)


def holds_another_run(config: Config) -> bool:
    """Before the first save: whether it will overwrite a run."""
    return checkpoint.exists(config.folder) and not config.resume


def write_config(config: Config) -> None:
    _write(config.folder / CONFIG, json.dumps(asdict(config), indent=1))


def save(config: Config, state: dict, first: bool) -> None:
    """Write a checkpoint. The first one of a run takes the place of all that another run left."""
    folder, overwrites = config.folder, first and holds_another_run(config)
    checkpoint.save(folder, state, keep_previous=not overwrites)
    if overwrites:
        os.replace(folder / FRESH_METRICS, folder / METRICS)
        with suppress(OSError):
            write_config(config)
    update_status(folder, iter=state["iter"])


def leave_folder(config: Config, code: int) -> None:
    by_signal = code > 128
    state = "done" if code == errors.DONE else "stopped" if by_signal else "failed"
    (config.folder / FRESH_METRICS).unlink(missing_ok=True)  # of a run that never saved
    update_status(config.folder, state=state, exit_code=code)
