"""Killed and told to stop, at any moment: a run saves, or had saved, and goes on bit for bit."""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import fingerprint, merged, rows, run, stop_at
from forks import command, ended, fork, status

import data
import train
from evaluation import scoring
from runtime import checkpoint, errors

STEPS = 40  # of a run that is killed
LONG = ["--max_iters=12", "--eval_interval=3", "--dropout=0.1"]


@pytest.fixture
def whole(argv, tmp_path) -> Path:
    """The same run, uninterrupted."""
    return run(argv, folder=tmp_path / "whole")


def untimed(folder: Path) -> list[dict]:
    clocks = ("tokens_per_s", "ms_per_step")
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows(folder)]


def before_step(step: int, fault: Callable[[], None]) -> None:
    """From now on, do `fault` right before that step."""
    original = train.train_step

    def faulty(state):
        if state.iter == step - 1:
            fault()
        return original(state)

    train.train_step = faulty


def tell(number: int) -> None:
    os.kill(os.getpid(), number)


# ---- kill -9 -----------------------------------------------------------------------------------


def killed_at_random(argv: list[str], folder: Path, expected: str, kills: int) -> dict[str, int]:
    """Kill a run, resume it, and so on; each time nothing that was saved may be lost."""
    told, said, draw = folder.parent / "saved", folder.parent / "said", random.Random(kills)
    found = {"kills": 0, "kills_in_a_save": 0, "lost": 0, "runs_completed": 0, "not_bit_equal": 0}

    def work(*more: str) -> None:
        original = train.save

        def save(state, **more) -> None:
            original(state, **more)
            told.write_text(str(state.iter))

        train.save = save
        command([*argv, *more])

    more = "--overwrite"
    while found["kills"] < kills or more == "--resume":
        pid = fork(partial(work, more), said)
        if found["kills"] < kills:
            time.sleep(draw.uniform(0.02, 0.6))
            os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        assert code in (errors.DONE, -signal.SIGKILL), said.read_text()
        if code != errors.DONE:
            found["kills"] += 1
            found["kills_in_a_save"] += (folder / "ckpt.pt.tmp").exists()
        saved = int(told.read_text() or 0) if told.exists() else 0
        at = checkpoint.read(folder)["iter"] if saved else 0
        found["lost"] += at < saved
        more = "--resume" if saved else "--overwrite"
        if at == STEPS:  # killed or not, it was done
            found["runs_completed"] += 1
            found["not_bit_equal"] += fingerprint(folder) != expected
            told.unlink()
            more = "--overwrite"
    return found


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.soak)])
def test_killed_at_random_moments_a_run_loses_nothing_it_had_saved(kills, argv, tmp_path, record):
    """Row 2. Saves at every step, so that many of the kills fall into one."""
    argv = merged(argv, f"--max_iters={STEPS}", "--eval_interval=1", "--eval_tokens=64")
    expected = fingerprint(run(argv, folder=tmp_path / "whole"))
    found = killed_at_random(argv, tmp_path / "run", expected, kills)
    record("kill at random moments", **found)
    assert (found["kills"], found["lost"], found["not_bit_equal"]) == (kills, 0, 0)
    assert found["runs_completed"] > 0


# ---- SIGTERM and Ctrl-C ------------------------------------------------------------------------


def test_sigterm_ends_a_run_after_its_step_saved(argv, folder, tmp_path, whole):
    """Row 6."""

    def work() -> None:
        before_step(5, partial(tell, signal.SIGTERM))
        command(argv)

    assert ended(fork(work, tmp_path / "said")) == errors.TERMINATED
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert last == (
        f"stopped by SIGTERM at step 5 of 12, saved {folder}; "
        f"python train.py --resume --out_dir {folder} continues it"
    )
    expected = {"state": "stopped", "iter": 5, "exit_code": errors.TERMINATED}
    assert expected.items() <= status(folder).items()
    run(argv, "--resume")
    assert fingerprint(folder) == fingerprint(whole)
    assert untimed(folder) == untimed(whole)
    assert (status(folder)["state"], status(folder)["iter"]) == ("done", 12)


def test_a_second_ctrl_c_within_the_save_ends_at_once(argv, folder, tmp_path, whole):
    """Row 7. What was saved before is there."""

    def work() -> None:
        before_step(5, partial(tell, signal.SIGINT))
        original = os.fsync

        def slow(descriptor: int) -> None:
            if train.checkpoint.read(folder)["iter"] == 3:
                tell(signal.SIGINT)
            original(descriptor)

        before_step(5, lambda: setattr(os, "fsync", slow))
        command(argv)

    assert ended(fork(work, tmp_path / "said")) == errors.INTERRUPTED
    assert (tmp_path / "said").read_text().splitlines()[-1] == "error: stopped by Ctrl-C"
    assert checkpoint.read(folder)["iter"] == status(folder)["iter"] == 3
    run(argv, "--resume")
    assert fingerprint(folder) == fingerprint(whole)
    assert untimed(folder) == untimed(whole)


@pytest.mark.parametrize("step", [6, 12])
def test_sigterm_within_an_evaluation_waits_for_one_batch_of_it(
    step, argv, folder, monkeypatch, tmp_path
):
    """Row 8. The resumed run evaluates that step first, even where no other is left."""
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 64)  # 4 batches a length, 12 in all
    whole, read, original = run(argv, folder=tmp_path / "whole"), [], scoring.token_losses

    def batch(model, x, y):
        read.append(x.shape)
        if len(read) == 12 * (step // 3 - 1) + 5:
            tell(signal.SIGTERM)
        return original(model, x, y)

    monkeypatch.setattr(scoring, "token_losses", batch)
    assert train.main(argv) == errors.TERMINATED
    assert len(read) == 12 * (step // 3 - 1) + 5
    assert checkpoint.read(folder)["iter"] == step
    assert rows(folder)[-1]["iter"] == step - 1  # its losses are still to come
    monkeypatch.setattr(scoring, "token_losses", original)
    run(argv, "--resume")
    assert fingerprint(folder) == fingerprint(whole)
    assert untimed(folder) == untimed(whole)


def test_killed_after_the_late_evaluation_its_row_stands_once(argv, folder, whole, monkeypatch):
    """Row 8 and 3: between the row that an interrupted evaluation owed and the next save."""
    original = scoring.HeldOut.losses
    monkeypatch.setattr(scoring.HeldOut, "losses", lambda *_: tell(signal.SIGTERM) or {})
    assert train.main(argv) == errors.TERMINATED
    monkeypatch.setattr(scoring.HeldOut, "losses", original)
    save, saves = train.save, []
    monkeypatch.setattr(train, "save", lambda run, **_: saves.append(run) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(argv, "--resume")
    monkeypatch.setattr(train, "save", save)
    assert rows(folder)[-1]["iter"] == 3
    run(argv, "--resume")
    assert untimed(folder) == untimed(whole)


def test_sigterm_in_the_first_step_saves_it(argv, folder, whole):
    """Row 8. Compiling is a part of the first step."""
    stop_at(1, argv)
    assert checkpoint.read(folder)["iter"] == 1
    run(argv, "--resume")
    assert fingerprint(folder) == fingerprint(whole)


def test_sigterm_while_data_loads_leaves_all_as_it_was(argv, folder, tmp_path):
    """Row 8: there is nothing to save, and what an earlier run left stays."""
    run(argv, "--max_iters=3")
    before = (folder / "ckpt.pt").read_bytes()

    def work() -> None:
        data.load = lambda *_: tell(signal.SIGTERM) or time.sleep(60)
        command([*argv, "--overwrite"])

    began = time.monotonic()
    assert ended(fork(work, tmp_path / "said")) == errors.TERMINATED
    assert time.monotonic() - began < 30
    assert (tmp_path / "said").read_text() == "error: stopped by SIGTERM\n"
    assert (folder / "ckpt.pt").read_bytes() == before
    assert (status(folder)["state"], status(folder)["iter"]) == ("done", 3)


@pytest.mark.soak
def test_twenty_sigterms_in_training_evaluation_and_first_step(argv, folder, tmp_path, record):
    """Row 8: what users wait for after SIGTERM, and whether all is saved."""
    argv = merged(argv, "--eval_interval=6", "--eval_tokens=2048")
    expected = fingerprint(run(argv, folder=tmp_path / "whole"))
    draw, waited, saved, equal = random.Random(20), [], 0, 0
    for i in range(20):
        place, sent = ("training", "evaluation", "first step")[i % 3], tmp_path / "sent"

        def send(delay: float, sent: Path = sent) -> None:
            def now() -> None:
                sent.write_text(str(time.monotonic()))
                tell(signal.SIGTERM)

            threading.Timer(delay, now).start()

        def work(place: str = place, send=send) -> None:
            start = {"training": draw.randrange(2, 11), "first step": 1}.get(place)
            if start:
                before_step(start, lambda: send(draw.uniform(0, 0.01)))
            else:
                original = scoring.HeldOut.losses
                scoring.HeldOut.losses = lambda *a: send(draw.uniform(0, 0.05)) or original(*a)
            command([*argv, "--overwrite"])

        draw.random()
        code = ended(fork(work, tmp_path / "said"))
        waited.append(time.monotonic() - float(sent.read_text()))
        saved += code == errors.TERMINATED and checkpoint.read(folder)["iter"] > 0
        run(argv, "--resume")
        equal += fingerprint(folder) == expected
    record(
        "SIGTERM",
        sent=20,
        saved=saved,
        resumed_bit_equal=equal,
        seconds_longest=round(max(waited), 2),
    )
    assert (saved, equal) == (20, 20)


def test_status_says_how_a_run_stands_and_who_holds_it(argv, folder, tmp_path):
    """Row 37 and 14."""
    seen = []

    def work() -> None:
        before_step(8, lambda: seen.append(status(folder)) or tell(signal.SIGKILL))
        command(argv)

    pid = fork(work, tmp_path / "said")
    assert ended(pid) == -signal.SIGKILL
    expected = {"state": "running", "iter": 6, "exit_code": None, "pid": pid}
    assert expected.items() <= status(folder).items()
    run(argv, "--resume")
    expected = {"state": "done", "iter": 12, "exit_code": 0, "pid": os.getpid()}
    assert expected.items() <= status(folder).items()


def test_a_folder_in_use_names_the_process_that_holds_it(argv, folder, tmp_path, capfd):
    """Row 14; it is free again when that process is killed."""

    def work() -> None:
        before_step(2, lambda: time.sleep(60))
        command(argv)

    holder = fork(work, tmp_path / "said")
    while not (folder / "metrics.jsonl").exists() or not rows(folder):
        time.sleep(0.01)
    assert ended(fork(partial(command, argv), tmp_path / "second")) == errors.BUSY
    busy = f"error: {folder} is in use by another run (pid {holder}); choose another out_dir"
    assert (tmp_path / "second").read_text() == busy + "\n"
    os.kill(holder, signal.SIGKILL)
    ended(holder)
    run(argv)
    assert re.fullmatch(r"\{.*\}\n", (folder / "status.json").read_text())


def test_a_closed_terminal_ends_a_run_saved(argv, folder, tmp_path, whole):
    """SIGHUP is the most frequent end of a training that was started by hand."""

    def work() -> None:
        before_step(5, partial(tell, signal.SIGHUP))
        command(argv)

    assert ended(fork(work, tmp_path / "said")) == 128 + signal.SIGHUP
    assert (status(folder)["state"], status(folder)["iter"]) == ("stopped", 5)
    run(argv, "--resume")
    assert fingerprint(folder) == fingerprint(whole)


def test_under_nohup_a_closed_terminal_changes_nothing(argv, folder, tmp_path):
    def work() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        before_step(5, partial(tell, signal.SIGHUP))
        command(argv)

    assert ended(fork(work, tmp_path / "said")) == errors.DONE
    assert status(folder)["iter"] == 12


def test_the_first_ctrl_c_says_what_happens(argv, tmp_path):
    def work() -> None:
        before_step(5, partial(tell, signal.SIGINT))
        command(argv)

    assert ended(fork(work, tmp_path / "said")) == errors.INTERRUPTED
    expected = "stopping after this step; Ctrl-C again stops at once"
    assert expected in (tmp_path / "said").read_text().splitlines()
