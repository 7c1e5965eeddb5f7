"""How every command ends: one line on stderr, one exit code, stdout clean."""

import argparse
import os
import signal
import sys
from collections.abc import Callable

DONE, LOST, USAGE, DATA, CHECKPOINT, DIVERGED, RESOURCES, BUSY = range(8)
INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, where no run has begun that could be saved."""


class Parser(argparse.ArgumentParser):
    """Flags written out whole; a wrong one is a ValueError like any other."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> None:
        raise ValueError(f"{message}; --help lists all flags")


def exit_code(error: BaseException) -> int:
    """The exit code an error stands for: its own `exit_code`, or what its type says."""
    if isinstance(error, KeyboardInterrupt):
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    if isinstance(error, OSError) or out_of_memory(error):
        return RESOURCES
    if _lost(error):
        return LOST
    return getattr(error, "exit_code", USAGE)


def out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "unable to allocate")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _lost(error: BaseException) -> bool:
    """Whether it is what torch.distributed says when another process is gone, or silent."""
    of_torch = "gloo" in str(error).lower() or type(error).__name__.startswith("Dist")
    return isinstance(error, RuntimeError) and of_torch


def sentence(error: BaseException) -> str:
    """One line a person can act on."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by SIGTERM" if isinstance(error, Terminated) else "stopped by Ctrl-C"
    if out_of_memory(error) and not isinstance(error, ValueError):  # one of ours knows more
        return "out of memory: lower batch_size and raise gradient_accumulation_steps, or max_len"
    if _lost(error):
        return "another process of this run has ended or hangs; its own error says why"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'system'}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _terminate(number: int, frame) -> None:
    raise Terminated  # temporary files are cleared away, as after Ctrl-C


def end(main: Callable[[list[str]], int | None]) -> None:
    """Run `main(argv)` and leave the process with its exit code; `--debug` keeps the traceback."""
    argv = [a for a in sys.argv[1:] if a != "--debug"]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main(argv) or DONE
        sys.stdout.flush()
    except BrokenPipeError:  # `python sample.py | head` is no error; keep Python's own flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    except (Exception, KeyboardInterrupt) as error:
        if len(argv) < len(sys.argv) - 1:
            raise
        print(f"error: {sentence(error)}", file=sys.stderr)
        code = exit_code(error)
    sys.exit(code)
