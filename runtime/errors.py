"""How every command ends: one line on stderr, one exit code, stdout clean."""

import argparse
import os
import signal
import sys
from collections.abc import Callable

DONE, LOST, USAGE, DATA, CHECKPOINT, DIVERGED, RESOURCES, BUSY = range(8)
INTERRUPTED, TERMINATED = 130, 143  # 128 + the signal, as shells have it


class TooLargeError(ValueError):
    """A step does not fit into memory."""

    exit_code = RESOURCES


class DivergedError(ValueError):
    """The loss, its gradient or a weight is not finite."""

    exit_code = DIVERGED


class Terminated(KeyboardInterrupt):
    """SIGTERM, before a run has begun that could be saved."""

    exit_code = TERMINATED


class Parser(argparse.ArgumentParser):
    """Flags written out whole; a wrong one is a ValueError like any other."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> None:
        raise ValueError(f"{message}; --help lists all flags")


def exit_code(error: BaseException) -> int:
    """The exit code an error stands for: its own `exit_code`, or what its type says."""
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "exit_code", INTERRUPTED)
    if isinstance(error, OSError) or out_of_memory(error):
        return RESOURCES
    if _lost_process(error):
        return LOST
    return getattr(error, "exit_code", USAGE)


def out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "unable to allocate")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _lost_process(error: BaseException) -> bool:
    """Whether it is what torch.distributed raises when another process is gone, or silent."""
    of_torch = "gloo" in str(error).lower() or type(error).__name__.startswith("Dist")
    return isinstance(error, RuntimeError) and of_torch


def message(error: BaseException) -> str:
    """One line that says what is wrong and what would be right."""
    text = _message_of_others(error) or str(error)
    if isinstance(error, KeyboardInterrupt):
        text = text or "stopped by Ctrl-C"
    return " ".join(text.split()) or type(error).__name__


def _message_of_others(error: BaseException) -> str | None:
    """A sentence for what Python, torch or the system raised; None where the error is ours."""
    if out_of_memory(error) and not isinstance(error, ValueError):  # ours name the sizes
        return "out of memory: lower batch_size and raise gradient_accumulation_steps, or max_len"
    if _lost_process(error):
        return "another process of this run has ended or hangs; its own error says why"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'system'}: {error.strerror}"
    return None


def _terminate(number: int, frame) -> None:
    # An exception, so that temporary files are removed as after Ctrl-C.
    raise Terminated("stopped by SIGTERM")


def run(main: Callable[[list[str]], int | None]) -> None:
    """Run `main(argv)` and leave the process with its exit code; `--debug` keeps the traceback."""
    argv = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(argv) < len(sys.argv) - 1
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main(argv) or DONE
        sys.stdout.flush()
    except BrokenPipeError:  # `python sample.py | head` is not an error; silence Python's own flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        code = exit_code(error)
    sys.exit(code)
