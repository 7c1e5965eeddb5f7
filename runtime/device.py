"""Where a run runs: its device, its precision, its processes, and the signals that stop it."""

import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from runtime import errors

PATIENCE = timedelta(minutes=10)  # that processes wait for one that evaluates, saves, downloads


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """auto: cuda, else mps, else cpu. ValueError where torch does not see the one asked for."""
    seen = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    seen["cpu"] = True
    if name == "auto":
        name = next(kind for kind, there in seen.items() if there)
    if not seen.get(name.partition(":")[0]):
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
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bf16 else torch.float16
    units = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    native = units.get("avx512_bf16") or units.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def place(ids: np.ndarray, device: torch.device) -> torch.Tensor:
    """Token ids on the device; a GPU fetches them itself, from pinned memory, while we go on."""
    tensor = torch.from_numpy(ids)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def commit() -> str | None:
    """The commit of this code, `-dirty` where files differ; None where git cannot tell."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent.parent, capture_output=True, check=False
        )
    except OSError:
        return None
    return found.stdout.decode().strip() or None


@contextmanager
def processes() -> Iterator[tuple[int, int, int]]:
    """(rank, number of processes, local rank) of this process under torchrun, or (0, 1, 0)."""
    if "RANK" not in os.environ:
        yield 0, 1, 0
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    # torchrun's store outlives a restart, and what the dead wrote there must not be read again.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    yield rank, world, int(os.environ["LOCAL_RANK"])
    gc.collect()  # a model that DDP wraps still holds the group, whose threads must not outlive us
    dist.destroy_process_group()  # after an error it would wait for the others, who wait for us


def agree(mine: dict[str, object]) -> None:
    """ValueError, in all processes, where they were not started with the same values."""
    if not dist.is_initialized():
        return
    everyone: list[dict] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs[name] != value:
                raise ValueError(f"{name} is {theirs[name]} in process {rank}, {value} in process "
                                 "0; start all with the same settings and data")  # fmt: skip


class Stop:
    """SIGTERM and Ctrl-C ask a run to end after its step; a second Ctrl-C ends it at once."""

    EXIT: dict[int, int] = {  # noqa: RUF012
        signal.SIGTERM: errors.TERMINATED,
        signal.SIGINT: errors.INTERRUPTED,
    }

    def __init__(self):
        self.signal = 0
        self.before = {number: signal.signal(number, self._ask) for number in self.EXIT}

    def release(self) -> None:
        """What a signal did before, it does again."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame) -> None:
        if number == self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def asked(self, device: torch.device) -> int:
        """The signal that any of the processes has got, or 0. All of them must call this."""
        if dist.is_initialized():
            highest = torch.tensor(self.signal, device=device)
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            self.signal = int(highest)
        return self.signal
