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
from runtime import config

ROOT = Path(__file__).parent.parent
TOP = "rope positions model train sample evaluate".split()
FOLDERS = "configs data evaluation experiments runtime".split()
FILES = sorted([*ROOT.glob("*.py"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))])
ORDER = "rope positions model evaluation runtime train sample evaluate experiments".split()
GROUND = {"runtime.errors"}  # imports nothing of ours; everything may stand on it


ENCODINGS = ("learned", "sinusoidal", "rope", "alibi", "nope")


def imported(tree: ast.AST) -> set[str]:
    """Full names of the modules that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
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


@pytest.mark.parametrize("folder", ["configs", "configs/gpt2", "configs/passkey"])
def test_the_encodings_configs_differ_in_name_and_pos_alone(folder):
    runs = [vars(configs.load([str(ROOT / folder / f"{e}.py")])) for e in ENCODINGS]
    shared = [{k: v for k, v in run.items() if k not in ("name", "pos")} for run in runs]
    assert all(settings == shared[0] for settings in shared)
    assert [run["pos"] for run in runs] == ["learned", "sinusoidal", "rope", "alibi", "none"]
    assert len({run["name"] for run in runs}) == len(runs)


def test_every_setting_has_a_meaning_in_the_help():
    assert config.meanings().keys() == {f.name for f in fields(Config)}
    text = config.describe("usage")
    assert all(f"--{f.name}={f.default}" in text for f in fields(Config))


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_help_fits_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = config.describe("usage").splitlines()
    assert max(map(len, lines)) < columns


@pytest.mark.parametrize("scaling", rope.SCALINGS)
def test_a_scalings_settings_have_one_default(scaling):
    defaults = {f.name: f.default for f in fields(GPTConfig)}
    for name, default in rope.settings(scaling).items():
        assert defaults[name] == default
    assert inspect.signature(rope.frequencies).parameters["train_len"].default == 2048
