"""A run's folder: what it keeps, and when it is refused. Rows 11-15 of the fault matrix."""

import errno
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import forked, merged, rows, run
from forks import status

import configs
import train
from runtime import checkpoint, errors
from runtime.folder import claim_folder, enter_folder, resume_if_restarted


def test_a_rotation_that_fails_loses_nothing(flags, ended, tmp_path, monkeypatch):
    """Row 11: of the two that are kept neither goes before there is a newer one."""
    replace, held, folder = os.replace, [], tmp_path / "run"

    def refuse(source, target):
        if Path(target).name == checkpoint.PREVIOUS and len(held) < 2:
            held.append([checkpoint.read_file(folder / n)["iter"] for n in (source, target)])
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        replace(source, target)

    for steps in (1, 2):
        run(flags, f"--max_iters={steps}", *["--resume"][: steps - 1])
    monkeypatch.setattr(os, "replace", refuse)
    code, said = ended(*merged(flags, "--resume", "--eval_interval=1"))
    assert code == errors.DONE
    assert held == [[2, 1], [2, 1]]
    assert said.count("Permission denied while saving step") == 2
    steps = [checkpoint.read_file(folder / n)["iter"] for n in ("ckpt.pt", "ckpt.prev.pt")]
    assert steps == [6, 5]
    assert {p.name for p in folder.iterdir() if "ckpt" in p.name} == {"ckpt.pt", "ckpt.prev.pt"}


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run", "read-only"])
def test_a_folder_that_cannot_be_is_named_before_a_model_is_built(
    flags, ended, tmp_path, monkeypatch, request, place
):
    """Row 12. Modes of files would not stop root."""
    (tmp_path / "file").write_text("")
    if place == "read-only":
        place = request.getfixturevalue("small_disk")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    monkeypatch.setattr(train, "setup", lambda *_: pytest.fail("it went on"))
    code, said = ended(*merged(flags, folder=tmp_path / place))
    assert code == errors.RESOURCES
    assert re.fullmatch(f"error: {tmp_path / place}: out_dir cannot be used, .*\n", said)


def test_a_missing_parent_is_made(flags, tmp_path):
    """Row 12."""
    run(flags, "--max_iters=1", folder=tmp_path / "a" / "b" / "run")


def test_a_run_is_not_overwritten_unless_asked(flags, ended):
    """Row 13, and what stands in the way of an overwrite is found before anything goes."""
    folder = run(flags)
    before = (folder / "ckpt.pt").read_bytes()
    code, said = ended(*flags)
    assert code == errors.USAGE
    assert said == (
        f"error: {folder} holds a run already (step 6): --resume continues it, "
        "--overwrite replaces it, --name or --out_dir leaves it alone\n"
    )
    code, said = ended(*merged(flags, "--vocab_size=3", "--overwrite"))
    assert code == errors.USAGE
    assert "vocab_size is 3; it must be at least" in said
    code, said = ended(*merged(flags, "--block_size=2500", "--overwrite"))
    assert code == errors.DATA
    assert "the longest document has" in said
    assert (folder / "ckpt.pt").read_bytes() == before
    run(flags, "--overwrite", "--max_iters=2")
    assert [row["iter"] for row in rows(folder)] == [1, 2]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # it forks
def test_a_folder_in_use_is_refused_until_the_other_is_gone(flags, ended, tmp_path):
    """Row 14: the lock goes with the process, even by kill -9."""
    config, (ready, tell) = configs.load(flags), os.pipe()

    def hold():
        with claim_folder(config):
            os.write(tell, b"!")
            signal.pause()

    child = forked(hold)
    assert os.read(ready, 1) == b"!"
    code, said = ended(*flags)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert code == errors.BUSY
    busy = rf"error: {config.folder} is in use by another run \(pid {child}\); choose .*\n"
    assert re.fullmatch(busy, said)
    run(flags)


@pytest.mark.parametrize("there", [True, False])
def test_nothing_to_resume_from_is_said(flags, ended, tmp_path, there):
    """Row 15. There is no `--resume=auto`: the sentence says what to leave out."""
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    code, said = ended(*flags, "--resume")
    assert code == errors.CHECKPOINT
    assert said == (
        f"error: {folder} holds no checkpoint to resume from; leave out --resume to start there\n"
    )
    assert folder.exists() == there


def weights(folder: Path) -> str:
    return checkpoint.read(folder)["sha256"]


def test_an_overwritten_run_stays_until_the_first_save(flags, ended, tmp_path):
    """Also its settings and rows: a run that ends before it saves changes nothing of it."""
    folder = run(flags)
    before = {name: (folder / name).read_bytes() for name in ("config.json", "metrics.jsonl")}
    old = weights(folder)
    fails = merged(flags, "--overwrite", "--learning_rate=1e30", "--warmup_iters=0")
    code, said = ended(*fails, f"--init_from={folder}")
    assert code == errors.DIVERGED
    assert "nothing was saved yet. Lower learning_rate" in said
    assert weights(folder) == old
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert not (folder / "metrics.tmp").exists()
    assert status(folder)["iter"] is None
    run(flags, "--resume", "--max_iters=7")  # it is the old run still
    assert rows(folder)[-1]["iter"] == 7


def test_the_first_save_takes_the_place_of_all_that_was_overwritten(flags):
    folder = run(flags, "--eval_interval=1")
    run(flags, "--overwrite", "--seed=2", "--max_iters=2", "--eval_interval=2")
    assert not (folder / checkpoint.PREVIOUS).exists()
    assert not (folder / "metrics.tmp").exists()
    assert checkpoint.read(folder)["iter"] == status(folder)["iter"] == 2
    assert json.loads((folder / "config.json").read_text())["seed"] == 2
    assert [row["iter"] for row in rows(folder)] == [1, 2]


@pytest.mark.parametrize("mistake", ["--device=cuda:99", "--dataset=nowhere"])
def test_a_refused_start_leaves_nothing_behind(flags, ended, tmp_path, mistake):
    code, _ = ended(*merged(flags, mistake))
    assert code
    assert not (tmp_path / "run").exists()


def test_a_restart_resumes_only_what_its_own_job_saved(flags, monkeypatch):
    config = configs.load(flags)
    run(flags)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resume_if_restarted(config).resume
    enter_folder(config)  # overwrites it, and has not saved
    assert not resume_if_restarted(config).resume


def test_a_tilde_is_the_home(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    run(merged(flags, "--out_dir=~/with space"))
    assert (tmp_path / "with space/ckpt.pt").exists()
    assert f"--out_dir '{tmp_path}/with space' --max_len 4x" in capsys.readouterr().err
    assert checkpoint.read("~/with space")["iter"] == 6
