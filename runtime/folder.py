"""A run's folder: claimed by one process, with config.json and status.json beside the checkpoints.

status.json says how the run stands: state, iter (the step saved last), exit_code, pid, launcher.
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
from runtime.config import Config

STATES = {errors.DONE: "done", errors.INTERRUPTED: "stopped", errors.TERMINATED: "stopped"}


class BusyError(ValueError):
    """A different process runs in this folder."""

    exit_code = errors.BUSY


def runs(root: str | Path = "out") -> list[Path]:
    """The run folders below `root` that hold a checkpoint, in the order of their names."""
    return [folder for folder in sorted(Path(root).glob("*")) if checkpoint.exists(folder)]


def update_status(folder: Path, **changes: object) -> None:
    path = folder / "status.json"
    fresh = path.with_suffix(".tmp")
    with suppress(OSError):  # on a full disk the run goes on; a failed save says that it is full
        fresh.write_text(json.dumps(read_status(folder) | changes) + "\n")
        os.replace(fresh, path)


def read_status(folder: Path) -> dict:
    """What status.json says; {} where it is missing or is not ours."""
    try:
        return dict(json.loads((folder / "status.json").read_text()))
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
    finally:
        os.close(descriptor)


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

    Only a run that this job itself began is resumed: one that an earlier job left is not touched.
    """
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    ours = read_status(config.folder).get("launcher") == os.getppid()
    resume = [restarted and ours and checkpoint.exists(config.folder)]
    if dist.is_initialized():
        dist.broadcast_object_list(resume)  # as the first process sees the folder
    return replace(config, resume=True, overwrite=False) if resume[0] else config


def enter_folder(config: Config) -> None:
    """Nothing can fail before the first step now: remove an overwritten run, write config.json."""
    if not config.resume:
        checkpoint.remove(config.folder)
    text = json.dumps(asdict(config), indent=1)
    (config.folder / "config.json").write_text(text + "\n")
    update_status(config.folder, state="running", exit_code=None, launcher=os.getppid())


def leave_folder(config: Config, code: int) -> None:
    update_status(config.folder, state=STATES.get(code, "failed"), exit_code=code)
