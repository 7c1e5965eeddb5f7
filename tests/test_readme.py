"""What the README prints works as printed, and what it names exists."""

import importlib.util
import math
import re
from pathlib import Path

import pytest
import torch

import configs
from model import GPT, GPTConfig
from positions import POSITIONS
from rope import SCALINGS, frequencies
from runtime import checkpoint

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
RUN = "pip install -r requirements.txt && python train.py configs/rope.py"
TEST = "pip install -r requirements-dev.txt && pytest"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.fixture
def example(tmp_path):
    """Execute one of the README's examples as part of the file that it says it belongs in."""
    before = [(table, dict(table)) for table in (POSITIONS, SCALINGS)]

    def execute(number: int, module: str) -> None:
        path = tmp_path / "example.py"
        path.write_text(f"import torch\n\nfrom {module} import *\n\n{EXAMPLES[number]}")
        spec = importlib.util.spec_from_file_location("example", path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    yield execute
    for table, entries in before:
        table.clear()
        table.update(entries)


def small(**settings) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=8, **settings)).eval()


# Size and commands


def test_it_is_one_screen_and_shows_a_command_early():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert lines.index(RUN) + 1 < 30


@pytest.mark.parametrize("command", [RUN, TEST])
def test_a_set_up_command_is_alone_on_its_line_in_a_block(command):
    assert sum(block.splitlines().count(command) for block in BLOCKS) == 1
    assert len(re.findall(rf"^{command.split(' && ')[0]}\b", README, re.MULTILINE)) == 1


def test_the_cpu_build_of_torch_is_the_required_version():
    (required,) = re.findall(r"^torch==\S+$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert f"`pip install {required} --index-url https://download.pytorch.org/whl/cpu`" in README


def training_commands() -> list[list[str]]:
    """The arguments of every `python train.py`, a shell loop over encodings written out."""
    found = []
    for line in README.splitlines():
        loop = re.match(r"for e in (.*?); do (.*); done", line)
        words = loop[1].split() if loop else [""]
        for word in words:
            text = loop[2].replace("$e", word) if loop else line
            found += re.findall(r"python train\.py ([^`#;]*)", text)
    return [arguments.split() for arguments in found]


def test_every_training_command_is_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(checkpoint, "newest_run", lambda: Path("out/rope"))
    commands = training_commands()
    assert len(commands) >= 5
    for argv in commands:
        configs.load(argv)


# Files and links


def tree() -> list[str]:
    """Every path that the file tree names: one at the start of each line, inside the last folder
    where it is indented, and those that a line's description names."""
    (block,) = (block for block in BLOCKS if block.startswith("model.py "))
    paths, folder = [], ""
    for line in block.splitlines():
        indented, name = line.startswith("  "), line.split()[0]
        if name.endswith("/") and not indented:
            folder = name
        paths.append(folder + name if indented else name)
        inside = folder if indented or name == folder else ""
        paths += [inside + word.rstrip(":,") for word in line.split()[1:] if ".py" in word]
    return paths


def test_every_file_of_the_tree_exists():
    assert {"model.py", "data/prepare.py", "runtime/config.py", "docs/"} <= set(tree())
    missing = [path for path in tree() if not (ROOT / path).exists()]
    assert missing == []


def test_the_tree_names_every_file_at_the_top_and_every_folder():
    here = {path.name for path in ROOT.glob("*.py")}
    folders = "configs data runtime evaluation experiments results docs tests".split()
    assert here | {f"{folder}/" for folder in folders} <= set(tree())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    files = [link.partition("#")[0] for link in links if not re.match(r"https?:|#", link)]
    missing = [file for file in files if not (page.parent / file).exists()]
    assert missing == []


# The two examples


def test_the_encoding_works_as_printed(example):
    example(0, "positions")
    plain, decay = small(pos="none"), small(pos="decay")
    decay.load_state_dict(plain.state_dict())
    idx = torch.randint(9, (1, 100))
    logits, without = decay(idx), plain(idx)
    assert torch.allclose(logits[:, 0], without[:, 0], atol=1e-6)  # it sees one key, at distance 0
    assert not torch.allclose(logits[:, -1], without[:, -1], atol=1e-6)
    assert torch.allclose(decay(idx[:, :50]), logits[:, :50], atol=1e-6)  # causal
    token = next(iter(decay.generate(idx, 3, temperature=0)))
    assert int(token) == int(logits[0, -1].argmax())


def test_the_encoding_subtracts_what_it_says(example):
    """Its attention, computed apart: weights proportional to exp(q k / sqrt(D) - 0.05 distance)."""
    example(0, "positions")
    model, T, seen = small(pos="decay"), 12, {}
    attention = model.h[0].attn
    attention.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], y=output))
    model(torch.randint(9, (1, T)))
    q, k, v = attention.c_attn(seen["x"]).view(T, 3, 2, 4).permute(1, 2, 0, 3)  # (H, T, D) each
    distance = torch.arange(T)[:, None] - torch.arange(T)  # (T, T)
    scores = (q @ k.mT / 2 - 0.05 * distance).masked_fill(distance < 0, -math.inf)
    expected = attention.c_proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    assert torch.allclose(seen["y"][0], expected, atol=1e-6)


def test_the_scaling_works_as_printed(example):
    example(1, "rope")
    ratio = frequencies(8)[0] / frequencies(8, scaling="halves", factor=4)[0]
    assert ratio.tolist() == pytest.approx([1, 1, 4, 4])
    model = small(pos="rope", block_size=8, rope_scaling="dynamic_halves")
    assert model(torch.randint(9, (1, 32))).isfinite().all()
