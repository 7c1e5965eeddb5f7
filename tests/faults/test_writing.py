"""A checkpoint that is killed, refused or cut off while it is written: the old one or the new one
is there, never neither. Rows 1, 3-5 and 10 of the fault matrix; for 11-15 see test_folder.py."""

import builtins
import ctypes
import errno
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import fingerprint, forked, losses, merged, rows, run

import train
from model import GPT, GPTConfig
from runtime import checkpoint, errors
from runtime.checkpoint import SaveError
from runtime.log import Log

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # it forks
PIECES = 6  # that a file is written in, so that it can be torn
LIBC = ctypes.CDLL(None, use_errno=True)
TRACEME, SYSCALL, SETOPTIONS, EXITKILL = 0, 24, 0x4200, 0x100000  # of ptrace(2)
FORBIDDEN = 77


def state_of(step: int) -> dict:
    torch.manual_seed(step)
    config = GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8)
    return checkpoint.describe(GPT(config)) | {"iter": step, "tokenizer": {"kind": "char"}}


class Torn:
    """A file for writing that passes its text on in pieces, and may fail after some bytes."""

    def __init__(self, path, mode: str, room: float = float("inf"), error: int = 0):
        self.file = builtins.open(path, mode, buffering=0)  # noqa: SIM115 - closed by __exit__
        self.room, self.error = room, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, text) -> None:
        whole, size = bytes(text), -(-len(text) // PIECES)
        for start in range(0, len(whole), size):
            piece = whole[start : start + size]
            self.file.write(piece[: int(max(0, min(self.room, len(piece))))])
            self.room -= len(piece)
            if self.room < 0:
                raise OSError(self.error, os.strerror(self.error))


def opening(first: Callable[[], object] = lambda: None, **trouble) -> Callable:
    """An `open` whose files for writing are torn; `first` is done before the first of them."""
    todo = [first]

    def opened(path, mode: str):
        if "w" not in mode:
            return builtins.open(path, mode)
        while todo:
            todo.pop()()
        return Torn(path, mode, **trouble)

    return opened


# ---- killed ------------------------------------------------------------------------------------


def trace_me() -> None:
    """Stop here, to be traced from here on. Nothing before it has touched the disk."""
    if LIBC.ptrace(TRACEME, 0, None, None):
        os._exit(FORBIDDEN)
    os.kill(os.getpid(), signal.SIGSTOP)


def killed_at(stop: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that is killed at the stop-th entry to or return from the kernel.

    False where it has ended before.
    """
    child = forked(work)
    _, status = os.waitpid(child, os.WUNTRACED)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FORBIDDEN:
        pytest.skip("ptrace is not allowed here")
    LIBC.ptrace(SETOPTIONS, child, None, ctypes.c_void_p(EXITKILL))
    for _ in range(stop):
        LIBC.ptrace(SYSCALL, child, None, None)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return False
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    return True


def survivors(folder: Path, before: list[int], save: Callable) -> Counter:
    """What a folder with checkpoints of these steps holds after each death of a save of step 9."""
    (folder / "0").mkdir(parents=True)
    for step in before:
        checkpoint.save(folder / "0", state_of(step))
    after, state = Counter(), state_of(9)
    for stop in count(1):
        place = shutil.copytree(folder / "0", folder / str(stop))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "open", opening(trace_me), raising=False)
            if not killed_at(stop, lambda place=place: save(place, state)):
                return after
        held = checkpoint.last_good(place)
        after[held] += 1
        if held is not None:
            model, info = checkpoint.load(place)
            assert info["iter"] == held
            assert torch.equal(model.wte.weight, state_of(held)["model"]["wte.weight"])
        checkpoint.save(place, state_of(12))  # the next save finds nothing in its way
        assert checkpoint.read(place)["iter"] == 12
        assert not (place / checkpoint.FRESH).exists()


linux = pytest.mark.skipif(sys.platform != "linux", reason="ptrace is Linux's")


@linux
@pytest.mark.parametrize("before", [[], [1, 3]], ids=["first", "third"])
def test_killed_at_any_system_call_of_a_save_the_old_or_the_new_is_there(tmp_path, before):
    """Row 1, at each entry to the kernel and at each return from it."""
    after = survivors(tmp_path, before, checkpoint.save)
    assert after.keys() == {3 if before else None, 9}
    assert min(after.values()) > 5


def in_place(folder: Path) -> Callable:
    """What many programs do, whose files are as good as ours when nothing happens."""
    whole = checkpoint.save(folder, state_of(9)).read_bytes()

    def save(place: Path, _) -> None:
        with checkpoint.open(place / checkpoint.NEWEST, "wb") as file:
            file.write(whole)

    return save


@linux
def test_killed_at_any_system_call_a_writer_in_place_loses_the_run(tmp_path):
    """Row 1 bites."""
    after = survivors(tmp_path, [3], in_place(tmp_path))
    assert after[None] > after[3]


@linux
@pytest.mark.soak
def test_the_figures_of_killing(tmp_path, record):
    """Row 1, the second save of a run: the one that is the first to rotate."""
    began = time.monotonic()
    ours = survivors(tmp_path / "ours", [3], checkpoint.save)
    seconds = round(time.monotonic() - began, 1)
    theirs = survivors(tmp_path / "theirs", [3], in_place(tmp_path))
    record(
        "crash points of one save",
        points=ours.total(),
        lost=ours[None],
        seconds=seconds,
        points_in_place=theirs.total(),
        lost_in_place=theirs[None],
    )
    assert ours[None] == 0


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("room", "name"), [(train, "save"), (Log, "row"), (train, "enter_folder"), (os, "replace")]
)
def test_killed_between_checkpoint_and_log_the_rows_are_those_of_one_run(
    flags, tmp_path, room, name, when
):
    """Row 3: the step of the checkpoint counts; later rows go, and no row is there twice."""
    whole = run(flags, folder=tmp_path / "whole")
    part = run(flags, "--max_iters=3", folder=tmp_path / "part")
    original = getattr(room, name)

    def last(*arguments, **settings):
        if when == "after":
            original(*arguments, **settings)
        os.kill(os.getpid(), signal.SIGKILL)

    def resume():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(room, name, last)
            train.main(merged(flags, "--resume", folder=part))

    _, status = os.waitpid(forked(resume), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    if checkpoint.last_good(part) < 6:
        run(flags, "--resume", folder=part)
    assert fingerprint(part) == fingerprint(whole)
    assert [row["iter"] for row in rows(part)] == [1, 2, 3, 4, 5, 6]
    assert losses(part) == losses(whole)


def test_what_an_earlier_death_left_is_said_and_overwritten(flags, ended):
    """Row 4."""
    folder = run(flags, "--max_iters=3")
    (folder / checkpoint.FRESH).write_bytes(b"junk")
    code, said = ended(*merged(flags, "--resume"))
    assert code == errors.DONE
    assert said.count(f"{folder / checkpoint.FRESH} is half of a save that was cut short") == 1
    assert checkpoint.last_good(folder) == 6
    assert not (folder / checkpoint.FRESH).exists()


def test_a_power_cut_finds_the_file_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """Row 5: no kill shows this, since what is written outlives the process, not the machine."""
    calls, sync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        found = os.fstat(descriptor)
        names = [p.name for p in (tmp_path, *tmp_path.iterdir()) if p.stat().st_ino == found.st_ino]
        calls.append(("fsync", *names, found.st_size if names[0].endswith("tmp") else None))
        sync(descriptor)

    def replaced(source, target):
        calls.append(("replace", Path(source).name, Path(target).name))
        replace(source, target)

    checkpoint.save(tmp_path, {"iter": 3})  # small: a buffer could still hold it
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    size = checkpoint.save(tmp_path, {"iter": 9}).stat().st_size
    assert calls == [
        ("fsync", "ckpt.pt.tmp", size),  # all of it
        ("replace", "ckpt.pt", "ckpt.prev.pt"),
        ("replace", "ckpt.pt.tmp", "ckpt.pt"),
        ("fsync", tmp_path.name, None),
    ]


# ---- a disk that is full -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_save_that_fails_says_what_it_needed_and_leaves_what_was_there(
    tmp_path, monkeypatch, share, error
):
    """Row 10, after any number of bytes."""
    checkpoint.save(tmp_path, state_of(1))
    before = checkpoint.save(tmp_path, state_of(3)).read_bytes()
    torn = opening(room=int(share * (len(before) - 1)), error=error)
    monkeypatch.setattr(checkpoint, "open", torn, raising=False)
    with pytest.raises(SaveError) as caught:
        checkpoint.save(tmp_path, state_of(9))
    reason = "Input/output error" if error == errno.EIO else "disk full"
    asked = rf"{reason} while saving step 9 to {tmp_path} \(need 0\.0 MB, \d+\.\d MB free\)"
    assert re.fullmatch(f"{asked}; last good: step 3", errors.message(caught.value))
    assert errors.exit_code(caught.value) == errors.RESOURCES
    assert (tmp_path / checkpoint.NEWEST).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt.prev.pt", "ckpt.pt"]


def test_a_sync_that_fails_is_a_save_that_failed(tmp_path, monkeypatch):
    """Row 10: some disks say only then that they are full."""
    checkpoint.save(tmp_path, state_of(3))
    monkeypatch.setattr(os, "fsync", lambda _: Path("/dev/full").write_text("!"))
    with pytest.raises(SaveError, match=r"^disk full while saving step 9 .*last good: step 3$"):
        checkpoint.save(tmp_path, state_of(9))
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def test_a_disk_that_has_room_again_gets_the_next_checkpoint(flags, ended, tmp_path, monkeypatch):
    """Row 10: training goes on. The device /dev/full is as full as any disk."""
    original, folder = checkpoint.save, tmp_path / "run"

    def save(folder: Path, state: dict, **how) -> Path:
        if state["iter"] == 4:
            (folder / checkpoint.FRESH).symlink_to("/dev/full")
        return original(folder, state, **how)

    monkeypatch.setattr(checkpoint, "save", save)
    code, said = ended(*merged(flags, "--eval_interval=2"))
    assert code == errors.DONE
    assert f"disk full while saving step 4 to {folder} (need 0." in said
    assert "last good: step 2; training continues and saves again later" in said
    monkeypatch.undo()
    assert checkpoint.last_good(folder) == 6
    assert fingerprint(folder) == fingerprint(run(flags, folder=tmp_path / "whole"))


def test_a_disk_that_stays_full_ends_the_run_and_keeps_its_last_checkpoint(
    flags, ended, tmp_path, small_disk, monkeypatch
):
    """Row 10, on a file system of 2 MB that is filled to its last byte between two saves."""
    larger = merged(flags, "--n_layer=1", "--n_embd=64", "--max_iters=10", "--eval_interval=2")
    whole = run(larger, folder=tmp_path / "whole")
    part, original = small_disk / "run", train.train_step

    def fill(run):
        if run.iter == 4:
            with suppress(OSError), open(small_disk / "ballast", "wb", buffering=0) as file:
                while file.write(bytes(1000)):
                    pass
        return original(run)

    monkeypatch.setattr(train, "train_step", fill)
    code, said = ended(*merged(larger, folder=part))
    assert code == errors.RESOURCES
    assert re.search(
        r"\nerror: disk full while saving step 10 to .*run \(need 0\.6 MB, 0\.\d MB "
        r"free\); last good: step 4\n$",
        said,
    )
    assert said.count("last good: step 4; training continues") == 2  # at steps 6 and 8
    assert not (part / checkpoint.FRESH).exists()
    assert checkpoint.last_good(part) == 4
    monkeypatch.setattr(train, "train_step", original)
    (small_disk / "ballast").unlink()
    assert ended(*merged(larger, "--resume", folder=part))[0] == errors.DONE
    assert fingerprint(part) == fingerprint(whole)
    assert losses(part) == losses(whole)


def test_a_row_that_cannot_be_written_does_not_end_a_run(flags, ended, monkeypatch):
    """Row 10: it waits in memory for the next one."""

    class Full(Log):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.file.close()
            self.file = open("/dev/full", "a")  # noqa: SIM115 - Log closes it

    monkeypatch.setattr(train, "Log", Full)
    code, said = ended(*flags)
    assert code == errors.DONE
    assert said.count("metrics.jsonl: No space left on device; it will be tried again\n") == 6
    assert said.count("metrics.jsonl lacks rows: No space left on device\n") == 1
