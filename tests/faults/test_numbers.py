"""Losses that are not finite, and memory that runs out: what a run has saved stays as it was."""

import resource
from pathlib import Path

import pytest
import torch
from conftest import merged, rows, run
from forks import command, ended, fork, status

import configs
import train
from evaluation import scoring
from runtime import checkpoint, errors
from runtime.setup import setup

LONG = ["--max_iters=12", "--eval_interval=3"]


def stopped(argv: list[str], folder: Path, monkeypatch, fault, capsys) -> tuple[int, str]:
    """A run with a fault in step 8; all that it saved at step 6 must stay as it was.

    Returns its exit code and its last line.
    """
    original, before = train.train_step, {}

    def faulty(state):
        if state.iter == 7:
            before.update({f.name: f.read_bytes() for f in folder.glob("ckpt*")})
            fault(state)
        return original(state)

    monkeypatch.setattr(train, "train_step", faulty)
    monkeypatch.setattr("sys.argv", ["train.py"])  # to be put back
    with pytest.raises(SystemExit) as left:
        command(argv)
    assert {f.name: f.read_bytes() for f in folder.glob("ckpt*")} == before
    assert checkpoint.load(folder)[1]["iter"] == 6
    expected = {"state": "failed", "iter": 6, "exit_code": left.value.code}
    assert expected.items() <= status(folder).items()
    assert rows(folder)[-1]["iter"] == 7
    return left.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_a_run_before_its_step(
    poison, argv, folder, monkeypatch, capsys
):
    """Row 41."""
    kept = []

    def fault(state) -> None:
        with torch.no_grad():
            state.model.ln_f.weight[0] = poison
        kept.extend((p, p.detach().clone()) for p in state.model.parameters())

    code, last = stopped(argv, folder, monkeypatch, fault, capsys)
    assert code == errors.DIVERGED
    assert last.startswith("error: non-finite loss at step 7 (loss nan, grad norm nan, lr 0.00")
    assert last.endswith("the last checkpoint is untouched. Lower learning_rate")
    assert all(torch.equal(p.nan_to_num(), was.nan_to_num()) for p, was in kept)


def test_a_loss_that_explodes_stops_before_it_spoils_the_checkpoint(flags):
    """Row 41."""
    folder = run(flags, "--max_iters=3")
    before = (folder / "ckpt.pt").read_bytes()
    huge = ["--max_iters=6", "--resume", "--learning_rate=1e30", "--min_lr=1e30", "--grad_clip=0"]
    with pytest.raises(errors.DivergedError, match=r"non-finite loss at step \d \(.*lr 1e\+30"):
        run(flags, *huge)
    assert errors.exit_code(errors.DivergedError()) == errors.DIVERGED
    assert (folder / "ckpt.pt").read_bytes() == before


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_overflow_in_float16_skips_the_step_and_fifty_in_a_row_end_the_run(flags, optimizer):
    """Row 41."""
    small = [flag for flag in flags if not flag.startswith("--dtype")]
    run = setup(configs.load([*small, "--dtype=float16", f"--optimizer={optimizer}"]))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    before = [parameter.clone() for parameter in run.model.parameters()]
    train.train_step(run)
    assert (run.iter, run.skipped, run.scaler.get_scale()) == (1, 1, pytest.approx(5e37))
    assert all(map(torch.equal, run.model.parameters(), before))
    run.skipped = train.MAX_SKIPPED
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    with pytest.raises(errors.DivergedError, match="non-finite loss at step 1"):
        train.train_step(run)


def test_a_held_out_loss_that_is_no_number_is_not_saved_over_a_good_one(
    argv, folder, monkeypatch, capsys
):
    """Row 42. There is no "best" here; the newest and the one before it stay as they were."""
    original, asked = scoring.HeldOut.losses, []

    def losses(*args):
        asked.append(args)
        found = original(*args)
        return found | {"val/loss": float("nan")} if len(asked) == 3 else found

    monkeypatch.setattr(scoring.HeldOut, "losses", losses)
    with pytest.raises(errors.DivergedError, match="non-finite val/loss at step 9; the last"):
        run(argv)
    assert checkpoint.read_file(folder / "ckpt.pt")["iter"] == 6
    assert checkpoint.read_file(folder / "ckpt.prev.pt")["iter"] == 3
    assert rows(folder)[-1]["iter"] == 8
    assert (status(folder)["state"], status(folder)["exit_code"]) == ("failed", errors.DIVERGED)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"
            " memory: you tried to allocate 99 bytes. Error code 12"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)."),
        MemoryError("Unable to allocate 9.00 GiB for an array with shape (9,)"),
        MemoryError(),
    ],
    ids="cuda cpu mps numpy python".split(),
)
def test_out_of_memory_names_the_batch(error, argv, folder, monkeypatch, capsys):
    """Row 43: what torch, numpy and Python say."""

    def fault(_) -> None:
        raise error

    code, last = stopped(argv, folder, monkeypatch, fault, capsys)
    assert code == errors.RESOURCES
    assert last == (
        "error: out of memory at batch_size 4 x block_size 16; lower batch_size and raise "
        "gradient_accumulation_steps"
    )


def test_memory_that_is_really_not_there_is_told_the_same_way(argv, folder, tmp_path):
    """Row 43, for real: a limit on the memory of the process, and a batch past it."""

    def work() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**28
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        command(merged(argv, "--batch_size=100000"))

    assert ended(fork(work, tmp_path / "said")) == errors.RESOURCES
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert last.startswith("error: out of memory at batch_size 100000 x block_size 16; lower")
