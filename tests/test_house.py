"""The house's own rules, held against its files."""

import ast
import inspect
from dataclasses import fields
from pathlib import Path

import pytest

import configs
import rope
from configs import Config
from model import GPTConfig

ROOT = Path(__file__).parent.parent
FOLDERS = [*ROOT.glob("data/*.py"), *ROOT.glob("experiments/*.py"), ROOT / "configs/__init__.py"]
ROOMS = sorted([*ROOT.glob("*.py"), *FOLDERS])
BELOW = {  # what a room may know of; everything else is above it or beside it
    "rope": set(),
    "sampling": set(),
    "cli": set(),
    "positions": {"rope"},
    "attention": set(),
    "model": {"attention", "rope", "positions", "sampling"},
    "checkpoint": {"model", "positions", "rope"},
    "configs": {"model", "positions"},
    "data": {"cli"},
    "log": set(),
    "machine": {"cli"},
    "judge": {"data", "model"},
    "results": set(),
    "tables": set(),
    "drawing": set(),
    "plot": {"drawing", "tables"},
    "evaluate": set("checkpoint cli data judge log machine model positions results rope".split()),
    "sample": {"checkpoint", "data", "model", "sampling", "cli", "machine"},
    "run": {"checkpoint", "cli", "configs", "data", "judge", "log", "machine", "model"},
    "experiments": {"attention", "checkpoint", "cli", "configs", "data", "drawing", "evaluate"}
    | {"judge", "model", "positions", "rope", "tables", "train", "turns"},
    "turns": set(),
    "peers": {"model"},
    "bench": set("cli configs data judge machine model peers rope run train turns".split()),
    "train": {"checkpoint", "cli", "configs", "data", "log", "machine", "model", "run"},
}
ENCODINGS = ("learned", "sinusoidal", "rope", "alibi", "nope")


def room(path: Path) -> str:
    return path.parent.name if path.parent != ROOT else path.stem


def imported(tree: ast.AST) -> set[str]:
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    modules += [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: p.name)
def test_imports_run_one_way(path):
    known = imported(ast.parse(path.read_text())) & BELOW.keys() - {room(path)}
    assert known <= BELOW[room(path)]


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: p.name)
def test_a_room_stays_within_300_lines_and_a_function_under_40(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert all(n.end_lineno - n.lineno < 40 for n in functions)


@pytest.mark.parametrize("folder", ["configs", "configs/gpt2", "configs/passkey"])
def test_the_encodings_configs_differ_in_name_and_pos_alone(folder):
    runs = [vars(configs.load([str(ROOT / folder / f"{e}.py")])) for e in ENCODINGS]
    shared = [{k: v for k, v in run.items() if k not in ("name", "pos")} for run in runs]
    assert all(settings == shared[0] for settings in shared)
    assert [run["pos"] for run in runs] == ["learned", "sinusoidal", "rope", "alibi", "none"]
    assert len({run["name"] for run in runs}) == len(runs)


def test_every_setting_has_a_meaning_in_the_help():
    assert configs.meanings().keys() == {f.name for f in fields(Config)}
    text = configs.describe("usage")
    assert all(f"--{f.name}={f.default}" in text for f in fields(Config))


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_help_fits_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = configs.describe("usage").splitlines()
    assert max(map(len, lines)) < columns


@pytest.mark.parametrize("scaling", rope.SCALINGS)
def test_a_scalings_settings_have_one_default(scaling):
    defaults = {f.name: f.default for f in fields(GPTConfig)}
    for name, default in rope.settings(scaling).items():
        assert defaults[name] == default
    assert inspect.signature(rope.frequencies).parameters["train_len"].default == 2048
