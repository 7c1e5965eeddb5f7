"""Streams that are closed, full or read by nobody: a run trains, saves and exits 0 all the same."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import merged
from forks import status

from runtime import checkpoint, errors

ROOT = Path(__file__).parent.parent.parent
TRAIN = f"exec {sys.executable} train.py "


def shell(command: str, flags: list[str]) -> int:
    """The exit code of train.py with these flags, its streams set up by a shell."""
    words = " ".join(merged(flags, "--device=cpu"))
    return subprocess.run(
        ["bash", "-c", command.format(TRAIN + words)], cwd=ROOT, check=False
    ).returncode


@pytest.mark.parametrize(
    "command",
    [
        "{} >&-",
        "{} 2>&-",
        "{} >&- 2>&-",
        "{} >/dev/full 2>/dev/null",
        "{} 2>/dev/full >/dev/null",
        "{} >/dev/full 2>&1",
        "set -o pipefail; ( {} ) 2>&1 | true",
    ],
)
def test_no_stream_ends_a_run(command, flags, tmp_path):
    assert shell(command, flags) == errors.DONE
    assert checkpoint.read(tmp_path / "run")["iter"] == 6
    assert status(tmp_path / "run")["state"] == "done"


@pytest.mark.parametrize("command", ["{} --help >/dev/full 2>/dev/null"])
def test_an_answer_that_cannot_be_written_is_an_error(command, flags):
    assert shell(command, flags) == errors.RESOURCES


def test_a_text_in_another_encoding_is_written_with_question_marks(flags):
    """Not stopped in the middle: ISO 8859-1 has no snowman."""
    code = "from runtime import errors; errors.run(lambda argv: print('\\u2603 ok'))"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    assert done.stdout == b"? ok\n"


def test_ctrl_c_while_torch_is_imported_leaves_no_traceback():
    code = "import runtime.start, os; os.kill(os.getpid(), 2)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
    for name in ("train", "sample", "evaluate"):
        text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
        assert 0 < text.index("import runtime.start") < text.index("\nimport ")


def test_threads_that_wait_go_to_sleep_soon():
    """Before torch is imported; what the user has set stays."""
    code = "import runtime.start, os; print(os.environ['OMP_WAIT_POLICY'])"
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        environment |= {"OMP_WAIT_POLICY": given} if given else {}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        assert done.stdout.decode().strip() == expected
