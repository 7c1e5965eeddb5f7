"""Rows 9 and 50: wandb mirrors a run. Whatever becomes of it, the run goes on, with one line."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import fingerprint, history, merged, rows, run

from runtime import checkpoint, errors
from runtime.wandb_mirror import new_id

ROOT = Path(__file__).parent.parent.parent


def test_offline_wandb_holds_the_same_curves(flags, tmp_path, offline_wandb):
    folder = run(flags, "--wandb=auto", folder=tmp_path / "curves")
    (kept,) = offline_wandb.glob("offline-run-*")
    assert "curves" in kept.name
    shown = history(kept)
    assert shown == rows(folder)
    assert {"val/loss", "val/loss_2x", "val/loss_4x"} <= shown[-1].keys()


def test_weights_are_the_same_with_wandb_and_without(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with_it = run(flags, "--wandb=offline", "--dropout=0.1", folder=tmp_path / "with")
    without = run(flags, "--dropout=0.1", folder=tmp_path / "without")
    assert fingerprint(with_it) == fingerprint(without)


def test_a_run_goes_on_where_wandb_cannot(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    began = time.monotonic()
    run(flags, "--wandb=auto")
    assert "wandb off: " in capsys.readouterr().err
    assert time.monotonic() - began < 10


def test_online_without_a_key_never_prompts(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it prompted"))
    monkeypatch.setattr("getpass.getpass", lambda *_: pytest.fail("it prompted"))
    run(flags, "--wandb=online")
    assert "wandb offline: no API key; `wandb login` stores one" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["dryrun", "offline"])
def test_modes_of_wandb_that_upload_nothing_never_log_in(flags, monkeypatch, offline_wandb, mode):
    import wandb  # noqa: PLC0415 - as in conftest

    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("it logged in"))
    monkeypatch.setenv("WANDB_MODE", mode)
    run(flags, "--wandb=auto")
    wandb.teardown()  # it would keep the mode for the next test
    assert len(list(offline_wandb.glob("offline-run-*"))) == 1


def test_a_key_without_a_server_ends_up_offline_within_seconds(
    flags, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # closed
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    began = time.monotonic()
    run(flags, "--wandb=auto")
    assert time.monotonic() - began < 60
    said = capsys.readouterr().err
    assert "wandb offline: " in said
    assert "wandb off: " not in said


@pytest.mark.parametrize("where", ["file/inside", "/proc/nowhere"])
def test_a_folder_that_cannot_be_made_turns_wandb_off(
    where, flags, offline_wandb, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / where))
    folder = run(flags, "--wandb=auto")
    assert checkpoint.read(folder)["iter"] == 6
    said = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert len(said) == 1
    assert said[0].startswith("wandb off: ")
    assert said[0].endswith(f"; logging to {folder / 'metrics.jsonl'} only")


def test_a_full_disk_under_wandb_changes_nothing(flags, offline_wandb, tmp_path, capsys):
    tmp = tmp_path / "wandb"
    tmp.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "full", str(tmp)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        folder = run(flags, "--wandb=auto", "--dropout=0.1")
        offline_wandb_is_off()
        assert os.statvfs(tmp).f_bavail == 0
    finally:
        subprocess.run(["umount", "--lazy", str(tmp)], check=True)
    bare = run(flags, "--dropout=0.1", folder=tmp_path / "bare")
    assert fingerprint(folder) == fingerprint(bare)
    assert len(rows(folder)) == 6


def offline_wandb_is_off() -> None:
    import wandb  # noqa: PLC0415 - as in conftest

    wandb.teardown()  # its process holds files in the folder


@pytest.fixture
def endless(flags, tmp_path):
    """A real run with a wandb folder, in a process group of its own, five rows old."""
    few = ["--max_iters=1000000", "--wandb=auto", "--log_interval=10", "--eval_interval=100"]
    command = [sys.executable, "train.py", *merged(flags, *few)]
    told = {"WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | told,
            start_new_session=True,
            stderr=said,
            stdout=subprocess.PIPE,
            text=True,
        )
    for _ in range(5):
        process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_on_the_whole_group_saves_and_wandb_is_whole(endless, tmp_path):
    """Row 7 and 9, as a terminal does it: wandb's own process hears it too."""
    os.killpg(endless.pid, signal.SIGINT)
    endless.communicate(timeout=60)
    assert endless.returncode == errors.INTERRUPTED
    last, folder = (tmp_path / "said").read_text().splitlines()[-1], tmp_path / "run"
    at = checkpoint.read(folder)["iter"]
    assert last == (
        f"stopped by SIGINT at step {at} of 1000000, saved {folder}; "
        f"python train.py --resume --out_dir {folder} continues it"
    )
    (kept,) = (tmp_path / "wandb").glob("offline-run-*")
    assert history(kept) == rows(folder)


@pytest.mark.parametrize("both", [False, True])
def test_killed_its_wandb_folder_can_be_read(both, endless, tmp_path):
    """Its own process ends by itself then; or is killed too, as when a machine goes."""
    old = len(rows(tmp_path / "run"))
    time.sleep(2.5)  # wandb writes once a second
    assert servers(endless.pid)
    for pid in servers(endless.pid) if both else ():
        os.kill(pid, signal.SIGKILL)
    endless.kill()
    endless.communicate(timeout=60)
    assert endless.returncode == -signal.SIGKILL
    late = time.monotonic() + 30
    while servers(endless.pid) and time.monotonic() < late:
        time.sleep(0.1)
    assert not servers(endless.pid)
    (kept,) = (tmp_path / "wandb").glob("offline-run-*")
    shown, written = history(kept), rows(tmp_path / "run")
    assert shown == written[: len(shown)]
    assert len(shown) >= old


def servers(pid: int) -> list[int]:
    """wandb's own processes that serve this one."""
    listed = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True)
    ours = re.findall(rf"^ *(\d+) .*wandb-core .*-{pid}[.]", listed.stdout, re.MULTILINE)
    return [int(found) for found in ours]


def test_ids_of_runs_that_start_in_one_second_differ():
    ids = {new_id("s1/rope") for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"s1-rope-\d{8}-\d{6}-[0-9a-f]{6}", one) for one in ids)


def test_wandbs_own_variables_are_obeyed(flags, monkeypatch, offline_wandb):
    import wandb  # noqa: PLC0415 - as in conftest

    given, original = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **how: given.append(how) or original(**how))
    for name, value in (("PROJECT", "mine"), ("NAME", "first"), ("RUN_GROUP", "all")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    run(flags, "--wandb=offline")
    run(flags, "--wandb=offline", "--wandb_project=its", "--overwrite")
    assert [how["project"] for how in given] == ["mine", "its"]
    assert (given[0]["name"], given[0]["group"]) == ("first", "all")
    monkeypatch.setenv("WANDB_DISABLED", "true")
    run(flags, "--wandb=auto", "--overwrite")
    assert len(given) == 2
