"""What the tests of faults share: the figures of the long ones are kept."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import merged

import train
from runtime import errors

FIGURES = Path(__file__).parent.parent.parent / "results" / "faults.json"


@pytest.fixture
def record(request) -> Callable[..., None]:
    """`record(name, **figures)`: put a soak test's figures into results/faults.json.

    The same call in a test of the default suite writes nothing: its numbers are of a short run.
    """

    def keep(name: str, **figures) -> None:
        if request.node.get_closest_marker("soak") is None:
            return
        known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        text = json.dumps(known | {name: figures}, indent=1, sort_keys=True, allow_nan=False)
        fresh = FIGURES.with_suffix(".tmp")
        fresh.write_text(text + "\n")
        os.replace(fresh, FIGURES)

    return keep


@pytest.fixture
def ended(capfd, monkeypatch) -> Callable[..., tuple[int, str]]:
    """`ended(*argv)`: exit code and stderr of train.py, or of another `main`, in this process.

    Whatever fails must end in one line; what is trained before it may have said more.
    """

    def command(*argv: str, main: Callable = train.main) -> tuple[int, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["command", *argv])
        monkeypatch.setattr(sys, "stderr", sys.stderr)  # `run` replaces it
        with pytest.raises(SystemExit) as caught:
            errors.run(main)
        said = capfd.readouterr().err
        lines = [line.startswith("error: ") for line in said.splitlines()]
        if caught.value.code in (errors.DONE, errors.INTERRUPTED, errors.TERMINATED):
            assert not any(lines)
        else:
            assert lines[-1]
            assert sum(lines) == 1
        assert "Traceback" not in said
        return caught.value.code, said

    return command


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 2 MB, real; skipped where nobody may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def argv(flags, request) -> list[str]:
    """The small run of a test file's LONG settings."""
    return merged(flags, *request.module.LONG)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where that run goes."""
    return tmp_path / "run"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
