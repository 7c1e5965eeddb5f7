"""How every command ends: one line on stderr, one exit code, stdout clean."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

DONE, LOST, USAGE, DATA, CHECKPOINT, DIVERGED, RESOURCES, BUSY = range(8)
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as shells have it
OF_TORCH = {
    "InvalidCxxCompiler": "compile needs a C++ compiler; install g++, or leave compile out",
}


class TooLargeError(ValueError):
    """What was asked for does not fit into memory."""

    exit_code = RESOURCES


class DivergedError(ValueError):
    """The loss, its gradient or a weight is not finite."""

    exit_code = DIVERGED


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, before a run has begun that could be saved."""

    def __init__(self, number: signal.Signals):
        super().__init__(f"stopped by {number.name}")
        self.exit_code = 128 + number


class Parser(argparse.ArgumentParser):
    """Flags written out whole; a wrong one is a ValueError like any other."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> None:
        if "expected one argument" in message:  # also where the value begins with a dash
            raise ValueError(f"{message}: write it as --flag='VALUE'")
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
    cause = getattr(error, "inner_exception", error)  # torch's compiler wraps what it raises
    text = OF_TORCH.get(type(cause).__name__) or _message_of_others(error) or str(error)
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
    raise Terminated(signal.Signals(number))


class Tolerant:
    """A stream whose reader may be gone and whose disk may be full: what cannot be written is lost.

    stderr is one, because what a command says about its work must not end the work.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def prepare_streams() -> None:
    """stdout and stderr that can be written to: in any encoding, and also where one is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 - for the whole process
        stream.reconfigure(errors="replace")
        setattr(sys, name, stream)
    sys.stderr = Tolerant(sys.stderr)


def discard(stream: TextIO) -> None:
    """From now on nothing that is written to the stream arrives, and nothing fails."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(main: Callable[[list[str]], int | None]) -> None:
    """Run `main(argv)` and leave the process with its exit code; `--debug` keeps the traceback."""
    argv = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(argv) < len(sys.argv) - 1
    prepare_streams()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _terminate)
    try:
        code = main(argv) or DONE
        sys.stdout.flush()
    except BrokenPipeError:  # `python sample.py | head` is not an error
        discard(sys.stdout)
        code = DONE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        code = exit_code(error)
    _leave(code)


def _flush(stream: TextIO | None) -> None:
    """Write what is left, or else drop it: Python's own flush would fail too, with code 120."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        discard(stream)


def _leave(code: int) -> None:
    _flush(sys.__stdout__)
    _flush(sys.__stderr__)
    sys.exit(code)
