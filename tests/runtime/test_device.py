"""The machine that a run is on: what it says of it, and of the code."""

import subprocess
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InvalidCxxCompiler

from runtime import device, errors, setup


def repository(folder: Path) -> None:
    """A git repository with one commit."""
    folder.mkdir(parents=True, exist_ok=True)
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *who, *command], cwd=folder, check=True)


def test_the_commit_is_that_of_this_code_and_of_no_repository_around_it(tmp_path, monkeypatch):
    repository(tmp_path / "outer")
    code = tmp_path / "outer" / "nanorope"
    (code / "runtime").mkdir(parents=True)
    monkeypatch.setattr(device, "__file__", str(code / "runtime" / "device.py"))
    assert device.commit() is None
    repository(code)
    assert len(device.commit()) == 12


def test_a_dtype_that_the_cpu_emulates_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    config = setup.Config(dtype="bfloat16", device="cpu")
    setup.choose_machine(config, setup.ALONE)
    assert "this CPU emulates bfloat16: float32 is faster here" in capsys.readouterr().err
    setup.choose_machine(setup.Config(device="cpu"), setup.ALONE)
    assert capsys.readouterr().err == ""


def test_a_missing_compiler_is_told_in_one_sentence():
    error = BackendCompilerFailed(torch.compile, InvalidCxxCompiler(), None)
    expected = "compile needs a C++ compiler; install g++, or leave compile out"
    assert errors.message(error) == expected


@pytest.mark.parametrize(("count", "said"), [(1, "1 thread"), (2, "2 threads, passive wait")])
def test_threads_are_told_with_the_way_they_wait(count, said, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert device.threads_in_use() == said
