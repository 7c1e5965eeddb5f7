"""What the README prints works as printed."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import configs
import positions
import rope
from model import GPT, GPTConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Run one of the README's examples as the file that it says it belongs in."""
    monkeypatch.setattr(positions, "POSITIONS", dict(positions.POSITIONS))
    monkeypatch.setattr("model.POSITIONS", positions.POSITIONS)
    monkeypatch.setattr(rope, "SCALINGS", dict(rope.SCALINGS))

    def run(number: int, room: str) -> None:
        path = tmp_path / "example.py"
        private = "from rope import _theta\n" if room == "rope" else ""
        head = f"import math\n\nimport torch\n\nfrom {room} import *\n{private}"
        path.write_text(head + EXAMPLES[number])
        spec = importlib.util.spec_from_file_location("example", path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    return run


def test_the_encoding_of_ten_lines_is_one(example):
    example(0, "positions")
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=8, pos="window")).eval()
    idx = torch.randint(9, (1, 100))
    changed = idx.clone()
    changed[0, :30] = 0  # more than 64 before the last token
    assert torch.allclose(model(idx)[0, -1], model(changed)[0, -1], atol=1e-6)
    assert next(model.generate(idx, 3, temperature=0)) == int(model(idx)[0, -1].argmax())


def test_the_scaling_of_ten_lines_is_one(example):
    example(1, "rope")
    stretch = rope.frequencies(8)[0] / rope.frequencies(8, scaling="halves", factor=4)[0]
    assert stretch.tolist() == pytest.approx([1, 1, 4, 4])
    GPT(GPTConfig(vocab_size=9, rope_scaling="dynamic_halves"))


def test_every_training_command_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"python train\.py (.*)|(?:train\.py) (configs/rope\.py)`", README)
    flags = [(a or b).strip("`").split("`")[0].split() for a, b in commands]
    assert len(flags) >= 3
    for argv in flags:
        if "--help" not in argv:
            configs.load(argv)


def test_the_file_map_names_every_room():
    rooms = {path.name for path in ROOT.glob("*.py")}
    assert all(f"`{room}`" in README for room in rooms)
