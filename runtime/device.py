"""Where a run runs: its device, its precision, its processes, and the signals that stop it."""

import atexit
import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from runtime import errors

PATIENCE = timedelta(minutes=10)  # how long processes wait for one that saves or downloads


class Process(NamedTuple):
    """One process of a run, as torchrun numbers them."""

    rank: int = 0
    world: int = 1  # number of processes
    local_rank: int = 0  # rank on this machine


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """auto: cuda, else mps, else cpu. ValueError where torch does not see the device."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind in available if available[kind])
    if not available.get(name.partition(":")[0]):
        raise ValueError(f"device is {name!r}, which torch does not see here; try auto or cpu")
    device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 where float32 is left
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the hardware multiplies it, else float16 on CUDA, else float32."""
    if name != "auto":
        return getattr(torch, name)
    if multiplies_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16; others emulate it, ten times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    units = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(units.get("avx512_bf16") or units.get("amx_bf16"))


def threads_in_use() -> str:
    """How many threads torch uses on a CPU, and how they wait for each other."""
    count, policy = torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", "active").lower()
    return "1 thread" if count == 1 else f"{count} threads, {policy} wait"


def to_device(ids: np.ndarray, device: torch.device) -> torch.Tensor:
    """int64 ids on the device; a GPU copies them from pinned memory while the CPU continues."""
    tensor = torch.from_numpy(ids)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Later:
    """A truth value that a GPU computes: copied while both go on, and waited for when asked."""

    def __init__(self, flag: torch.Tensor):
        self.flag = flag.to("cpu", non_blocking=True)
        self.copied = torch.cuda.Event()
        self.copied.record()

    def __bool__(self) -> bool:
        self.copied.synchronize()
        return bool(self.flag)


def commit() -> str | None:
    """The commit of this code, `-dirty` where files differ; None where git cannot tell."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    root = Path(__file__).parent.parent
    # Not the commit of another repository that this folder may lie in.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)}
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout.decode().strip() or None


@contextmanager
def processes() -> Iterator[Process]:
    """This process under torchrun, joined with the others; Process(0, 1, 0) without torchrun."""
    if "RANK" not in os.environ:
        yield Process()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    # torchrun's store outlives a restart: keys that dead processes wrote must not be read again.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield Process(rank, world, int(os.environ["LOCAL_RANK"]))
    except BaseException as error:
        # The threads of the group that is left behind would abort the interpreter's exit.
        atexit.register(os._exit, errors.exit_code(error))
        raise
    # A model that DDP wraps still holds the group, whose threads must end before the process.
    gc.collect()
    # Not in a `finally`: after an error it would wait for the others, which wait for this process.
    dist.destroy_process_group()


def check_same_on_all_ranks(values: dict[str, object]) -> None:
    """ValueError, in all processes, where they were not started with the same values."""
    if not dist.is_initialized():
        return
    by_rank: list[dict] = [{}] * dist.get_world_size()
    dist.all_gather_object(by_rank, values)
    for rank, theirs in enumerate(by_rank):
        for name, value in by_rank[0].items():
            if theirs[name] != value:
                raise ValueError(
                    f"{name} is {theirs[name]} in process {rank}, {value} in process 0; "
                    "start all with the same settings and data"
                )


class Stop:
    """SIGTERM, SIGHUP and Ctrl-C end a run after its step; a second Ctrl-C ends it at once."""

    def __init__(self):
        self.received: signal.Signals | None = None  # by this process
        self.handlers_before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if signal.getsignal(number) != signal.SIG_IGN  # nohup ignores SIGHUP
        }

    def release(self) -> None:
        """Give the signals back to the handlers that had them."""
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            # Not print: the signal may have come in the middle of one.
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")

    def on_any_process(self, device: torch.device) -> signal.Signals | None:
        """The signal that some process has received, or None: the same answer in all of them.

        All processes must call this, and each waits here for the others.
        """
        if not dist.is_initialized():
            return self.received
        highest = torch.tensor(int(self.received or 0), device=device)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        if not highest:
            return None  # `received` is left alone: a signal may have come since
        self.received = signal.Signals(int(highest))
        return self.received
