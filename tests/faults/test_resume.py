"""A run that was interrupted is the run that was not: to the last bit of weights, optimizer and
losses. Rows 25-30, 32 and 34 of the fault matrix; for row 31 see test_data.py."""

import os
import shutil
import signal
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from conftest import fingerprint, history, losses, merged, rows, run, stop_at

import data
import train
from evaluation.scoring import HeldOut
from runtime import checkpoint, errors

STEPS = 20
MODES = ["float32", "bfloat16", "float16"]


@pytest.fixture(autouse=True)
def _overflowing(monkeypatch):
    """A scale of float16 that overflows now and then: at the first steps, and when it has grown."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**24, growth_interval=2)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)


def saved_at_each_step(flags: list[str], place: Path) -> Path:
    """A run in `place`/whole, and folders `place`/1 and so on with the checkpoint of each step."""
    original = checkpoint.save

    def save(folder: Path, state: dict, **how) -> None:
        part = place / str(state["iter"])
        part.mkdir(parents=True)
        shutil.copy(original(folder, state, **how), part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        return run(flags, "--eval_interval=1", folder=place / "whole")


def hexed(found: list[float]) -> list[str]:
    return [loss.hex() for loss in found]


def exact(flags: list[str], place: Path, steps: int = STEPS) -> list[bool]:
    """Resume at each step: whether weights, optimizer, scaler and losses are those of one run."""
    flags = merged(flags, f"--max_iters={steps}", "--dropout=0.1", "--eval_tokens=64")
    whole, found = saved_at_each_step(flags, place), []
    for step in range(1, steps):
        part = run(flags, f"--eval_interval={steps}", "--resume", folder=place / str(step))
        same = hexed(losses(part)) == hexed(losses(whole)[step:])
        same = same and rows(part)[-1]["val/loss"] == rows(whole)[-1]["val/loss"]
        found.append(same and fingerprint(part) == fingerprint(whole))
    return found


@pytest.mark.parametrize("dtype", MODES)
def test_resuming_is_exact_from_every_step(flags, tmp_path, dtype):
    """Rows 25 and 26."""
    assert exact([*flags, f"--dtype={dtype}"], tmp_path) == [True] * (STEPS - 1)
    files = [tmp_path / str(step) / checkpoint.PREVIOUS for step in range(1, STEPS)]
    skipped = [checkpoint.read_file(file)["skipped"] for file in files]
    before, after = skipped[:-1], skipped[1:]
    if dtype == "float16":  # saves with an overflow just before them, just after, both, neither
        pairs = {(a > 0, b > a) for a, b in zip(before, after, strict=True)}
        assert len(pairs) == 4


@pytest.mark.soak
def test_the_figures_of_resuming(flags, tmp_path, record):
    """Rows 25 and 26, with both optimizers and with micro-steps."""
    more = [["--optimizer=adamw"], ["--optimizer=muon"], ["--gradient_accumulation_steps=4"]]
    found = {}
    for dtype in MODES:
        points = []
        for i, settings in enumerate(more):
            place = tmp_path / f"{dtype}{i}"
            points += exact([*flags, f"--dtype={dtype}", *settings], place)
        found |= {f"{dtype}_points": len(points), f"{dtype}_exact": sum(points)}
    record("resume points, bit-exact", steps=STEPS, **found)
    assert all(found[f"{m}_points"] == found[f"{m}_exact"] == 3 * (STEPS - 1) for m in MODES)


@pytest.mark.parametrize(
    ("room", "name", "dtype"),
    [
        (torch, "manual_seed", "float32"),  # dropout would go on from where the process is
        (torch.amp.GradScaler, "load_state_dict", "float16"),
        (torch.optim.AdamW, "load_state_dict", "float32"),
    ],
    ids=["random numbers", "scale", "moments"],
)
def test_a_resume_that_forgets_is_not_exact(flags, tmp_path, monkeypatch, room, name, dtype):
    """Rows 25 and 26 bite."""
    monkeypatch.setattr(room, name, lambda *_: None)
    assert not any(exact([*flags, f"--dtype={dtype}"], tmp_path, steps=6))


def test_overflows_in_a_row_are_counted_across_a_resume(flags):
    """Row 26: fifty of them end a run, however often it is interrupted."""
    folder = run(flags, "--dtype=float16", "--max_iters=3")
    run(flags, "--dtype=float16", "--max_iters=5", "--resume")
    assert checkpoint.read(folder)["skipped"] == 5


def test_a_signal_between_micro_steps_ends_the_run_after_the_step(flags, tmp_path, monkeypatch):
    """Row 27: nothing of a step is ever half done."""
    flags = merged(flags, "--gradient_accumulation_steps=4", "--dropout=0.1")
    whole, original = run(flags, folder=tmp_path / "whole"), data.batch

    def batch(tokens, size, length, seed, step, *more):
        if (step, more[:1]) == (2, (1,)):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(tokens, size, length, seed, step, *more)

    monkeypatch.setattr(data, "batch", batch)
    part = tmp_path / "part"
    assert train.main(merged(flags, "--eval_interval=6", folder=part)) == errors.TERMINATED
    assert checkpoint.last_good(part) == 3
    monkeypatch.undo()
    run(flags, "--resume", folder=part)
    assert fingerprint(part) == fingerprint(whole)
    assert hexed(losses(part)) == hexed(losses(whole))


def test_evaluating_and_sampling_do_not_disturb_training(flags, tmp_path, monkeypatch):
    """Row 28: nothing of the random numbers that they draw is seen by a step."""
    seldom = run(flags, "--dropout=0.1", "--eval_interval=6", folder=tmp_path / "seldom")
    original = HeldOut.losses

    def greedy(self, model, *arguments):
        list(model.eval().generate(torch.zeros(1, 1, dtype=torch.int64), 5))
        torch.rand(7)
        model.train()
        return original(self, model, *arguments)

    monkeypatch.setattr(HeldOut, "losses", greedy)
    often = run(flags, "--dropout=0.1", "--eval_interval=1", folder=tmp_path / "often")
    stop_at(3, flags, "--dropout=0.1", "--eval_interval=2", f"--out_dir={tmp_path / 'part'}")
    part = run(flags, "--dropout=0.1", "--eval_interval=2", "--resume", folder=tmp_path / "part")
    assert fingerprint(often) == fingerprint(seldom) == fingerprint(part)


def test_a_longer_run_of_the_same_schedule_is_the_run_it_would_have_been(flags, tmp_path, capsys):
    """Row 29: the learning rate is a function of the step alone."""
    flags = merged(flags, "--lr_decay_iters=5")
    whole = run(flags, "--max_iters=8", folder=tmp_path / "whole")
    part = run(flags, "--max_iters=4", folder=tmp_path / "part")
    capsys.readouterr()
    run(flags, "--max_iters=8", "--resume", folder=part)
    assert "max_iters was 4, is 8: not the run it would have been" in capsys.readouterr().err
    assert fingerprint(part) == fingerprint(whole)
    assert [row["lr"] for row in rows(part)] == [row["lr"] for row in rows(whole)]


def test_a_resumed_run_reads_the_batches_that_were_left(flags, tmp_path, monkeypatch):
    """Row 30."""
    read, original = [], data.batch

    def batch(*arguments):
        x, y = original(*arguments)
        read.append(sha256(x.tobytes() + y.tobytes()).hexdigest())
        return x, y

    flags = merged(flags, "--gradient_accumulation_steps=2")
    starts = 1  # one batch is drawn to see that there is one
    monkeypatch.setattr(data, "batch", batch)
    run(flags, folder=tmp_path / "whole")
    whole, read[:] = read[starts:], []
    stop_at(4, flags, f"--out_dir={tmp_path / 'part'}")
    first, read[:] = read[starts:], []
    run(flags, "--resume", folder=tmp_path / "part")
    assert first + read[starts:] == whole
    assert len(set(whole)) == len(whole) == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"threads": 3}, "threads 3 -> 1"),
        ({"torch": "1.0"}, f"torch 1.0 -> {torch.__version__}"),
        ({"device": "cuda", "dtype": "bfloat16"}, "device cuda -> cpu, dtype bfloat16 -> float32"),
    ],
    ids=["the same", "threads", "torch", "device"],
)
def test_another_machine_is_said(flags, capsys, change, words):
    """Row 32."""
    folder = run(flags, "--max_iters=3")
    state = checkpoint.read(folder)
    checkpoint.save(folder, state | change)
    capsys.readouterr()
    run(flags, "--resume")
    said = capsys.readouterr().err
    assert ("not bit-exact from here on" in said) == bool(change)
    assert not words or f"not bit-exact from here on: {words}\n" in said


def test_another_number_of_threads_changes_the_last_digits_alone(flags, tmp_path, capsys):
    """Row 32."""
    whole = run(flags, folder=tmp_path / "whole")
    part = run(flags, "--max_iters=3", folder=tmp_path / "part")
    torch.set_num_threads(2)
    run(flags, "--resume", folder=part)
    assert "not bit-exact from here on: threads 1 -> 2\n" in capsys.readouterr().err
    assert losses(part) == pytest.approx(losses(whole), abs=1e-3)


def test_a_resumed_run_is_the_same_run_in_wandb(flags, tmp_path, offline_wandb):
    """Row 34: one id, and steps that go on."""
    folder = run(flags, "--wandb=offline", "--max_iters=3", folder=tmp_path / "curves")
    run(flags, "--wandb=offline", "--resume", folder=folder)
    kept = sorted(offline_wandb.glob("offline-run-*"), key=lambda path: path.stat().st_mtime)
    run_id = checkpoint.read(folder)["run_id"]
    assert [path.name.endswith(f"-{run_id}") for path in kept] == [True, True]
    assert [row["iter"] for path in kept for row in history(path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_resumes_by_its_own_settings(flags, tmp_path, capsys):
    """What is left out is what it was started with, and flags go over that."""
    whole, folder = run(flags, folder=tmp_path / "whole"), tmp_path / "run"
    stop_at(4, flags)
    capsys.readouterr()
    assert train.main(["--resume", f"--out_dir={folder}"]) == errors.DONE
    assert "not the run it would have been" not in capsys.readouterr().err
    assert fingerprint(folder) == fingerprint(whole)
    assert train.main(["--resume", f"--out_dir={folder}", "--max_iters=8"]) == errors.DONE
    assert "max_iters was 6, is 8" in capsys.readouterr().err
    assert checkpoint.read(folder)["run"]["batch_size"] == 4


def test_resume_alone_takes_the_newest_run(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        run([f for f in flags if "out_dir" not in f], f"--name={name}", "--max_iters=2")
    assert train.main(["--resume", "--max_iters=3"]) == errors.DONE
    assert [checkpoint.read(f"out/{name}")["iter"] for name in ("first", "second")] == [2, 3]


def test_a_run_whose_folder_was_moved_resumes_there(flags, tmp_path):
    run(flags, "--max_iters=2").rename(tmp_path / "moved")
    assert train.main(["--resume", f"--out_dir={tmp_path}/moved", "--max_iters=3"]) == errors.DONE
    assert not (tmp_path / "run").exists()


def test_settings_that_are_damaged_are_named(flags, tmp_path):
    folder = run(flags)
    (folder / "config.json").write_text('{"n_layer": 2')
    with pytest.raises(ValueError, match=r"config.json is damaged; remove it and give"):
        train.main(["--resume", f"--out_dir={folder}"])
    (folder / "config.json").write_text('{"n_layr": 2}')
    with pytest.raises(ValueError, match=r"config.json: there is no setting 'n_layr'"):
        train.main(["--resume", f"--out_dir={folder}"])


def test_init_from_beside_resume_is_refused(flags, tmp_path):
    folder = run(flags)
    with pytest.raises(ValueError, match="init_from does nothing beside resume; leave it out"):
        train.main(["--resume", f"--out_dir={folder}", "--max_iters=7", "--init_from=elsewhere"])


def test_changed_data_is_named_before_the_vocabulary_that_changed_with_it(flags, corpus, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(corpus, root)
    folder = run(flags, f"--data_dir={root}")
    shutil.rmtree(root / "small")
    (root / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz .,:;!" * 500)
    data.prepare.prepare("small", [root / "text.txt"], root=root)
    with pytest.raises(data.DataError, match="changed since the checkpoint"):
        train.main(["--resume", f"--out_dir={folder}", "--max_iters=7"])


def test_a_run_that_was_compiled_says_that_it_no_longer_is(flags, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    run(flags, "--compile=True")
    run(flags, "--resume", "--max_iters=7", "--compile=False")
    assert "not bit-exact from here on: compile True -> False" in capsys.readouterr().err
