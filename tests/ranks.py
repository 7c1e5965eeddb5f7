"""Processes of a run, one of which has a fault: under torchrun's agent, or torchrun itself.

A fault is `name@step`. As a script this file is what torchrun starts.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import forks
from torch.distributed import distributed_c10d

import train
from runtime import device, setup

HERE = Path(__file__).parent
# Seconds that a process waits for the others. On a busy machine one may start much later than the
# other, and a closed connection is noticed at once: only where one hangs is the wait kept short.
PATIENT, IMPATIENT = 60, 4


def _hang(for_good: bool = False) -> None:
    if not for_good:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(1000)


def _break() -> None:
    raise ValueError("only this process breaks")


FAULTS = {  # what happens, and in which process
    "killed": (1, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "hangs": (1, _hang),
    "hangs for good": (1, lambda: _hang(for_good=True)),
    "breaks": (1, _break),
    "first breaks": (0, _break),
    "told to stop": (1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "launcher told to stop": (0, lambda: os.kill(os.getppid(), signal.SIGTERM)),
}


def work(fault: str, argv: list[str], second: list[str] | None) -> None:
    """One process: `argv`, or `second` in the second; the exit code stays in <out_dir>-RANK."""
    name, _, step = fault.partition("@")
    rank, again = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    original = train.train_step

    def faulty(state: setup.Run):
        faulty_rank, inject = FAULTS.get(name, (None, None))
        if name.startswith("hangs") and state.iter == int(step):
            # All processes have joined by now, so none is waited for because it starts late.
            distributed_c10d._set_pg_timeout(timedelta(seconds=IMPATIENT))
        if rank == faulty_rank and state.iter == int(step) and not again:
            inject()
        return original(state)

    train.train_step, device.PATIENCE = faulty, timedelta(seconds=PATIENT)
    if again and rank:
        time.sleep(1)  # what the dead one wrote must not be taken for this one
    folder = next(word.partition("=")[2] for word in argv if word.startswith("--out_dir="))
    try:
        forks.command((second if rank else None) or argv)
    except SystemExit as left:
        Path(f"{folder}-{rank}").write_text(str(left.code))
        raise


def agent(
    said: Path, fault: str, argv: list[str], second: list[str] | None = None, restarts=0, count=2
) -> int:
    """Start `count` processes under torchrun's agent, all forks. Returns the agent's pid."""
    from torch.distributed.launcher import api  # noqa: PLC0415 - for these tests alone

    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    settings = api.LaunchConfig(
        1,
        1,
        count,
        run_id="test",
        start_method="fork",
        shutdown_timeout=3,
        max_restarts=restarts,
        **place,
    )

    def launch() -> None:
        try:
            api.elastic_launch(settings, work)(fault, argv, second)
        except Exception as error:  # as torchrun does
            print(error)
            sys.exit(1)

    return forks.fork(launch, said)


def torchrun(fault: str, argv: list[str], restarts: int = 0, port: int | None = None):
    """The same by the real command, for as long as it runs. Returns (exit code, what it said)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = port or probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    place = ["--master_addr=127.0.0.1", f"--master_port={port}", f"--max_restarts={restarts}"]
    told = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    script = [__file__, json.dumps([fault, argv, None])]
    done = subprocess.run(
        [*launcher, *place, *script],
        env=os.environ | told,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    work(*json.loads(sys.argv[1]))
