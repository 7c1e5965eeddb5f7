"""A small corpus and a small run, made here, so that no test needs the network."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import configs
import data.prepare
import train
from runtime import checkpoint, errors

WORDS = "to be or not that is the question whether nobler in mind suffer slings and arrows".split()
SMALL = (
    "--n_layer=2 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=6 "
    "--eval_interval=3 --eval_tokens=256 --log_interval=1 --warmup_iters=2 --dataset=small "
    "--dtype=float32 --wandb=disabled"
).split()


def history(folder: Path) -> list[dict]:
    """The rows of an offline wandb run, as wandb itself reads them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{k: v for k, v in item.items() if not k.startswith("_")} for item in items]


def fingerprint(folder: Path) -> str:
    """A hash of weights and optimizer state."""
    state, digest = checkpoint.read(folder), hashlib.sha256()
    for name in sorted(state["model"]):
        digest.update(state["model"][name].numpy().tobytes())
    for optimizer in state["optimizers"]:
        for _, moments in sorted(optimizer["state"].items()):
            for name in sorted(moments):
                digest.update(moments[name].numpy().tobytes())
    digest.update(repr(state["scaler"]).encode())
    return digest.hexdigest()


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in rows(folder)]


def merged(flags: list[str], *more: str, folder: Path | None = None) -> list[str]:
    """Flags in which later ones have replaced earlier ones."""
    last = [] if folder is None else [f"--out_dir={folder}"]
    return list({f.partition("=")[0]: f for f in [*flags, *more, *last]}.values())


def run(flags: list[str], *more: str, folder: Path | None = None) -> Path:
    """Train in this process; later flags replace earlier ones. Returns the run's folder."""
    argv = merged(flags, *more, folder=folder)
    assert train.main(argv) == errors.DONE
    return configs.load(argv).folder


def stop_at(step: int, flags: list[str], *more: str) -> None:
    """A real SIGTERM in the middle of a step; the run ends after that step, saved."""
    original = train.train_step

    def interrupted(run):
        if run.iter == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        assert train.main(merged(flags, *more)) == errors.TERMINATED


def forked(work: Callable[[], object]) -> int:
    """The id of a process that does `work`."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A data folder that holds the dataset `small`."""
    root, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    text = root / "text.txt"
    text.write_text(" ".join(draw.choice(WORDS) for _ in range(4000)))
    data.prepare.prepare("small", [text], root=root)
    return root


@pytest.fixture
def flags(corpus, tmp_path):
    """Flags of a small run in a folder of its own."""
    return [*SMALL, f"--data_dir={corpus}", f"--out_dir={tmp_path / 'run'}"]


@pytest.fixture
def offline_wandb(tmp_path, monkeypatch):
    """wandb without a key, in a folder of its own: returns where its runs will lie."""
    import wandb  # noqa: PLC0415 - half a second that the other tests should not pay

    wandb.teardown()  # it keeps the first folder that it was ever told
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    return tmp_path / "wandb"


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models gain nothing from threads, and on a busy machine lose much."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def signals():
    """`train.main` takes the signals; give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
