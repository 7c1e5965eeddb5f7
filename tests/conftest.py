"""A small corpus and a small run, made here, so that no test needs the network."""

import random

import pytest
import torch

import data.prepare

WORDS = "to be or not that is the question whether nobler in mind suffer slings and arrows".split()
SMALL = (
    "--n_layer=2 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=6 "
    "--eval_interval=3 --eval_tokens=256 --log_interval=1 --warmup_iters=2 --dataset=small "
    "--dtype=float32 --wandb=disabled"
).split()


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


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models gain nothing from threads, and on a busy machine lose much."""
    torch.set_num_threads(1)
