"""Many processes: one is killed, hangs, breaks or disagrees; the others neither wait nor lose."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import fingerprint, losses, merged, rows, run, stop_at
from forks import ended, status
from ranks import IMPATIENT, PATIENT, agent, torchrun

import data.prepare
from evaluation import scoring
from runtime import checkpoint, errors

LONG = ["--max_iters=12", "--eval_interval=3", "--dropout=0.1", "--gradient_accumulation_steps=2"]
BOTH = [pytest.param(agent, id="agent"), pytest.param(torchrun, id="torchrun")]
LOST = "error: another process of this run has ended or hangs; its own error says why"


@pytest.fixture
def launch(tmp_path):
    """launch(how, fault, argv, ...): two processes to their end. (exit code, what they said)."""

    def to_the_end(how, fault: str, argv: list[str], *more, **settings) -> tuple[int, str]:
        said = tmp_path / "said"
        if how is not agent:
            return torchrun(fault, argv, **settings)
        pid = agent(said, fault, argv, *more, **settings)
        return ended(pid, 2 * PATIENT), said.read_text()

    return to_the_end


@pytest.fixture
def whole(argv, tmp_path) -> Path:
    """The same run in one process, uninterrupted."""
    return run(argv, folder=tmp_path / "whole")


def codes(folder: Path) -> list[int]:
    """The exit codes of both processes."""
    return [int(Path(f"{folder}-{rank}").read_text()) for rank in (0, 1)]


def refused(code: int, said: str, why: str) -> bool:
    """By each process; but torchrun may have ended the slower one before it said so."""
    return code == 1 and "exitcode  : 2" in said and f"error: {why}" in said


def test_two_processes_train_as_one_does(launch, flags, folder, tmp_path):
    """Row 33: a batch in halves."""
    argv = merged(flags, "--dropout=0.0")
    one = run(argv, folder=tmp_path / "one")
    code, said = launch(agent, "none@0", argv)
    assert code == errors.DONE, said
    assert losses(folder) == pytest.approx(losses(one), abs=1e-4)
    found, expected = (rows(where)[-1]["val/loss_4x"] for where in (folder, one))
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_an_evaluation_and_get_the_numbers_of_one(
    count, launch, argv, folder, whole, tmp_path, monkeypatch
):
    """Nine batches of three lengths: each process scores its share, and no digit differs."""
    original, scored = scoring.token_losses, tmp_path / "scored"

    def counted(*batch):
        with open(f"{scored}-{os.environ.get('RANK', 'alone')}", "a") as file:
            file.write(".")
        return original(*batch)

    monkeypatch.setattr(scoring, "token_losses", counted)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 512)
    still = ["--learning_rate=0", "--min_lr=0", "--weight_decay=0", "--max_iters=1"]
    argv = merged(argv, f"--init_from={whole}", "--eval_tokens=1500", *still)
    argv = merged(argv, f"--gradient_accumulation_steps={count}")
    one = run(argv, folder=tmp_path / "one")
    code, said = launch(agent, "none@0", argv, count=count)
    assert code == errors.DONE, said
    found, expected = ({k: v for k, v in rows(f)[-1].items() if "val" in k} for f in (folder, one))
    assert found.keys() == {"val/loss", "val/loss_2x", "val/loss_4x"}
    assert found == expected
    done = [len(Path(f"{scored}-{who}").read_text()) for who in ("alone", *range(count))]
    assert done == [9, *[-(-9 // count)] * count]


def test_sigterm_to_one_process_in_an_evaluation_stops_all_before_the_same_batch(
    launch, argv, folder, whole, monkeypatch
):
    """Row 37: the second process alone gets it, in its first batch of 12."""
    original = scoring.token_losses

    def told(*batch):
        if os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*batch)

    monkeypatch.setattr(scoring, "BATCH_TOKENS", 64)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "token_losses", told)
        code, _ = launch(agent, "none@0", argv)
    assert (code, codes(folder)) == (1, [errors.TERMINATED, errors.TERMINATED])
    assert (checkpoint.read(folder)["iter"], rows(folder)[-1]["iter"]) == (3, 2)
    code, said = launch(agent, "none@0", [*argv, "--resume"])
    assert code == errors.DONE, said
    assert fingerprint(folder) == fingerprint(whole)
    assert [row["iter"] for row in rows(folder)] == list(range(1, 13))


def test_one_process_two_and_one_again_end_where_one_does(launch, argv, folder, whole):
    """Row 33: micro-steps shared among processes, bit for bit, dropout and all."""
    stop_at(4, argv)
    code, _ = launch(agent, "told to stop@7", [*argv, "--resume"])
    assert (code, checkpoint.read(folder)["iter"]) == (1, 8)
    run(argv, "--resume")
    assert fingerprint(folder) == fingerprint(whole)
    assert [x.hex() for x in losses(folder)] == [x.hex() for x in losses(whole)]


@pytest.mark.parametrize("how", BOTH)
def test_a_killed_process_is_started_again_and_nothing_is_lost(how, launch, argv, folder, whole):
    """Row 35. --overwrite, too, means the run before this job and not the job's own."""
    run(argv, "--max_iters=1")
    code, said = launch(how, "killed@7", [*argv, "--overwrite"], restarts=1)
    assert code == errors.DONE, said
    assert said.count("tokens a step, 2 x cpu") == 2
    assert len([line for line in said.splitlines() if line.startswith("5/12 train")]) == 1
    assert fingerprint(folder) == fingerprint(whole)
    assert [row["iter"] for row in rows(folder)] == list(range(1, 13))
    assert status(folder)["state"] == "done"


def test_a_killed_process_without_restarts_ends_the_job(launch, argv, folder):
    """Row 35."""
    code, said = launch(agent, "killed@7", argv)
    assert code == 1
    assert LOST in said.splitlines()
    assert checkpoint.read(folder)["iter"] == 6
    assert (status(folder)["state"], status(folder)["iter"]) == ("failed", 6)


def test_a_restart_does_not_take_another_run_for_its_own(launch, argv, folder):
    """Row 35 and 13."""
    run(argv, "--max_iters=6")
    before = (folder / "ckpt.pt").read_bytes()
    code, said = launch(agent, "none@0", argv, restarts=1)
    assert code == 1
    assert said.count("holds a run already (step 6): --resume continues it") == 2
    assert (folder / "ckpt.pt").read_bytes() == before
    assert status(folder)["state"] == "done"


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        pytest.param(agent, "hangs@7", id="agent"),
        pytest.param(torchrun, "hangs for good@7", id="torchrun", marks=pytest.mark.soak),
    ],
)
def test_a_process_that_hangs_is_not_waited_for_for_ever(how, fault, launch, argv, folder):
    """Row 36. torchrun gives one that does not heed SIGTERM 30 seconds more."""
    began = time.monotonic()
    code, said = launch(how, fault, argv)
    assert IMPATIENT < time.monotonic() - began < IMPATIENT + 60
    assert code == 1
    assert LOST in said.splitlines()
    assert checkpoint.read(folder)["iter"] == 6
    assert status(folder)["state"] == "failed"


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        pytest.param(agent, "launcher told to stop@7", id="agent"),
        pytest.param(torchrun, "launcher told to stop@7", id="torchrun"),
        pytest.param(agent, "told to stop@7", id="one-process"),
    ],
)
def test_sigterm_stops_all_processes_saved(how, fault, launch, argv, folder, whole):
    """Row 37. torchrun itself always ends with 1; what the run says stands in status.json."""
    code, said = launch(how, fault, argv)
    assert code == 1
    assert codes(folder) == [errors.TERMINATED, errors.TERMINATED]
    assert said.count("stopped by SIGTERM at step") == 1
    at = checkpoint.read(folder)["iter"]
    assert at >= 8
    assert {"state": "stopped", "exit_code": errors.TERMINATED, "iter": at}.items() <= status(
        folder
    ).items()
    run(argv, "--resume")
    assert fingerprint(folder) == fingerprint(whole)


def test_processes_with_other_settings_are_refused(launch, argv, folder):
    """Row 38."""
    code, said = launch(agent, "none@0", argv, merged(argv, "--seed=2"))
    assert refused(code, said, "seed is 2 in process 1, 1337 in process 0; start all with the")
    assert not checkpoint.exists(folder)


def test_processes_with_other_data_are_refused(launch, argv, folder, tmp_path):
    """Row 38."""
    (tmp_path / "text").write_text("to be or not to be that is the question " * 500)
    data.prepare.prepare("small", [tmp_path / "text"], root=tmp_path)
    argv = merged(argv, "--vocab_size=50")
    code, said = launch(agent, "none@0", argv, merged(argv, f"--data_dir={tmp_path}"))
    assert refused(code, said, "train.bin is ")
    assert not checkpoint.exists(folder)


@pytest.mark.parametrize("breaks", [0, 1])
def test_an_error_in_one_process_ends_all(breaks, launch, argv, folder):
    """Row 39."""
    code, said = launch(agent, "breaks@7" if breaks else "first breaks@7", argv)
    first, second = (errors.LOST, errors.USAGE) if breaks else (errors.USAGE, errors.LOST)
    assert (code, codes(folder)) == (1, [first, second])
    assert {LOST, "error: only this process breaks"} <= set(said.splitlines())
    assert checkpoint.read(folder)["iter"] == 6
    assert (status(folder)["state"], status(folder)["exit_code"]) == ("failed", first)


def test_an_error_in_the_first_process_alone_while_it_saves_ends_all(
    launch, argv, folder, monkeypatch
):
    """Row 39: nobody else saves or writes rows."""

    def unreadable(*_, **__):
        raise checkpoint.CheckpointError("the folder is gone")

    monkeypatch.setattr(checkpoint, "save", unreadable)
    code, said = launch(agent, "none@0", argv)
    assert (code, codes(folder)) == (1, [errors.CHECKPOINT, errors.LOST])
    assert "error: the folder is gone" in said


def test_only_what_torch_says_is_taken_for_a_lost_process():
    """Row 39: a name in a sentence of ours is not."""
    torch_says = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert (
        errors.exit_code(torch_says)
        == errors.exit_code(dist.DistBackendError("NCCL"))
        == errors.LOST
    )
    assert errors.exit_code(ValueError("igloo.txt is no setting")) == errors.USAGE
    assert errors.exit_code(RuntimeError("something else")) == errors.USAGE


def test_a_step_that_two_processes_cannot_share_is_refused(launch, argv, folder):
    """Row 40."""
    code, said = launch(agent, "none@0", [*argv[:-1], "--gradient_accumulation_steps=3"])
    assert refused(code, said, "gradient_accumulation_steps 3 is not divisible by 2 processes")
    assert not checkpoint.exists(folder)


def test_a_port_in_use_is_said_by_torchrun(argv, folder):
    """Row 40: before a process of ours begins."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = torchrun("none@0", argv, port=taken.getsockname()[1])
    assert code == 1
    assert "EADDRINUSE" in said
    assert not folder.exists()
