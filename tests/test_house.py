"""The design of docs/design.md, checked against the files: layout, imports, gates, names."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

import configs
import rope
from configs import Config
from model import GPTConfig
from positions import POSITIONS
from runtime.help import describe, meanings

ROOT = Path(__file__).parent.parent
TOP = "evaluate model positions rope sample train".split()
FOLDERS = "configs data evaluation experiments runtime".split()
OTHERS = set(
    "README.md CONTRIBUTING.md LICENSE CITATION.cff pyproject.toml requirements.txt "
    "requirements-dev.txt requirements-models.txt docs results tests .ci .github .gitignore".split()
)
FILES = sorted([*ROOT.glob("*.py"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))])
ORDER = "rope positions model evaluation runtime train sample evaluate experiments".split()
READ_FIRST = "model.py positions.py rope.py train.py".split()
# One letter of each is in brackets, so that a search for the words does not find this line.
WORDS = "ane[w]|in vai[n]|hel[d] against|reads? o[n]|sli[p] of the hand|mende[d]"
ENCODINGS = ["nope" if name == "none" else name for name in POSITIONS]

every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def test_the_top_level_is_six_files_and_the_folders_behind():
    tracked = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists() or p.suffix == ".py"}
    assert tracked == {*(f"{name}.py" for name in TOP), *FOLDERS}
    passing = {".git", "out", "wandb", ".venv", ".pytest_cache", ".ruff_cache", ".hypothesis"}
    rest = {p.name for p in ROOT.iterdir()} - tracked - passing - {"__pycache__"}
    assert rest == OTHERS


def imported(tree: ast.AST) -> set[str]:
    """Full names of the modules that a file imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@every_file
def test_imports_run_one_way(path):
    """data and runtime/errors are ground; configs re-exports runtime's two names."""
    here = path.relative_to(ROOT).with_suffix("").parts[0]
    names = {n for n in imported(ast.parse(path.read_text())) if not n.startswith("runtime.errors")}
    for name in names:
        there = name.split(".")[0]
        if there == here or there not in {*ORDER, "data", "configs"}:
            continue
        assert here != "data", f"data imports {name}"
        if there == "configs":
            assert here in {"train", "experiments"}
        elif there != "data":
            assert here == "configs" or ORDER.index(there) < ORDER.index(here), name


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that are neither comments, docstrings nor blank."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    prose = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    code = {i for i, line in lines if line.strip() and not line.strip().startswith("#")}
    return code - prose


def branches(function: ast.FunctionDef) -> int:
    kinds = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler)
    return sum(isinstance(node, kinds) for node in ast.walk(function))


@every_file
def test_files_and_functions_stay_small_and_plain(path):
    """450 lines of code in model.py and positions.py, 300 elsewhere; 40 in a function; and three
    branches for every ten lines begun."""
    text = path.read_text()
    code = code_lines(text)
    assert len(code) <= (450 if path.name in ("model.py", "positions.py") else 300)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            size = len(code & set(range(node.lineno, node.end_lineno + 1)))
            assert size <= 40, node.name
            assert branches(node) <= 3 * -(-size // 10), node.name


@pytest.mark.parametrize("name", READ_FIRST)
def test_the_files_that_are_read_first_say_why(name):
    """At least 10 lines with a comment, shapes included, for every 100 of code."""
    text = (ROOT / name).read_text()
    code = code_lines(text)
    lines = enumerate(text.splitlines(), 1)
    comments = [i for i, line in lines if "  # " in line or line.strip().startswith("#")]
    assert len(comments) >= len(code) / 10


@every_file
def test_no_line_is_saved_by_switching_the_formatter_off(path):
    assert "fmt: " + "skip" not in path.read_text()
    assert "fmt: " + "off" not in path.read_text()


def test_plain_words():
    """Words that the English of HOUSE has no use for, in text and code alike."""
    import re  # noqa: PLC0415 - beside its only use

    paths = [*FILES, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*.md")]
    paths += [*ROOT.glob("configs/*.py"), *ROOT.glob("experiments/*.sh"), ROOT / ".ci" / "run"]
    for path in paths:
        match = re.search(rf"\b({WORDS})\b", path.read_text(), re.IGNORECASE)
        assert match is None, f"{path.name}: {match[0]}"


def test_the_encodings_configs_differ_in_pos_alone():
    for base in ([], ["gpt2.py"], ["passkey.py"]):
        runs = []
        for name in ENCODINGS:
            files = [str(ROOT / "configs" / file) for file in (*base, f"{name}.py")]
            runs.append(vars(configs.load(files)))
        shared = [{k: v for k, v in run.items() if k not in ("name", "pos")} for run in runs]
        assert all(settings == shared[0] for settings in shared)
        assert [run["pos"] for run in runs] == [*POSITIONS]
        assert len({run["name"] for run in runs}) == len(runs)


def test_every_setting_has_a_meaning_in_the_help():
    assert meanings().keys() == {f.name for f in fields(Config)}
    text = describe("usage")
    assert all(f"--{f.name}={f.default}" in text for f in fields(Config))


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_help_fits_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = describe("usage").splitlines()
    assert max(map(len, lines)) < columns


@pytest.mark.parametrize("scaling", rope.SCALINGS)
def test_a_scalings_settings_have_one_default(scaling):
    defaults = {f.name: f.default for f in fields(GPTConfig)}
    for name, parameter in rope.settings(scaling).items():
        assert defaults[name] == parameter.default
