"""Faults happen to forks of the test's own process: they are warm, so that each costs a moment."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import train
from runtime import errors


def fork(work: Callable[[], None], said: Path) -> int:
    """Start `work` in a process group of its own, its lines going to a file. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have it ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # whatever it is, the fork must not go on as a second pytest
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, seconds: float = 60) -> int:
    """Wait for a fork. Returns its exit code, or minus the signal that killed it."""
    late = time.monotonic() + seconds
    while time.monotonic() < late:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"the fork did not end within {seconds} seconds")


def command(flags: list[str]) -> None:
    """`python train.py FLAGS`, to the exit code."""
    sys.argv = ["train.py", *flags]
    errors.run(train.main)


def status(folder: Path) -> dict:
    """What status.json says of a run."""
    return json.loads((folder / "status.json").read_text())
