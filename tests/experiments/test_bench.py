"""bench.py: it compares the same work, and prints what it measures.

Speeds are not tested: they belong to a machine, and are in results/bench.json.
"""

import json

import numpy as np
import oracles
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

import rope
from experiments import baselines, bench, timing
from model import GPT, GPTConfig, KVCache
from train import train_step

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "batch_size": 2}
NANOGPT = '''
from dataclasses import dataclass

import torch


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(torch.nn.Module):
    """As long as the real one's calls: a bigram model."""

    def __init__(self, config):
        super().__init__()
        print("number of parameters")
        self.config = config
        self.wte = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, idx, targets=None):
        logits = self.wte(idx)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas)

    def generate(self, idx, max_new_tokens):
        return idx
'''


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the dataset `bench` of random characters."""
    folder = tmp_path_factory.mktemp("bench")
    bench.prepare(str(folder), None)
    return str(folder)


@pytest.fixture
def nanogpt(tmp_path):
    """A folder that looks like a clone of nanoGPT."""
    (tmp_path / "model.py").write_text(NANOGPT)
    return str(tmp_path)


# ---- times


def test_works_alternate_and_the_first_round_is_not_counted():
    order = []
    times = timing.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert "".join(order) == "abababab"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_a_ratio_compares_two_times_of_one_round():
    """The ratio of the medians is 2 too, but not its ends."""
    (row,) = timing.rows("work", {"ours": [1.0, 2.0, 4.0], "other": [3.0, 4.0, 4.0]})
    assert (row.work, row.peer, row.unit) == ("work", "other", "ms")
    assert row.ours == (2000, 1000, 4000)
    assert row.theirs == (4000, 3000, 4000)
    assert row.ratio == (2, 1, 3)


def test_a_rate_is_an_amount_a_second():
    (row,) = timing.rows("work", {"ours": [0.5, 2.0, 1.0]}, "tokens/s", 10)
    assert row.ours == (10, 5, 20)
    assert timing.line(row) == "| work | tokens/s | 10 (5 to 20) | - | - | - |"


# ---- baselines do the same work


@pytest.mark.parametrize("name", ["complex", "rotate_half"])
def test_rotations_of_others_are_rotations(name):
    T, D = 7, 16
    x = torch.randn(2, 3, T, D, generator=torch.Generator().manual_seed(0))
    cos, sin = rope.rotation_table(torch.arange(T), rope.frequencies(D)[0])
    rotated = {
        "complex": lambda: baselines.complex_rotation(x, torch.complex(cos, sin)),
        "rotate_half": lambda: baselines.rotate_half(x, cos.repeat(1, 2), sin.repeat(1, 2)),
    }[name]()
    layout = "interleaved" if name == "complex" else "half"
    inv_freq = oracles.none(D, 10000.0, 1, None)
    expected = oracles.rotate_by_matrices(x.double(), np.arange(T), inv_freq, layout)
    np.testing.assert_allclose(rotated, expected, rtol=0, atol=1e-6)


def test_transformers_twin_has_the_same_logits():
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 11, "block_size": 8}
    model, idx = GPT(GPTConfig(**sizes)).eval(), torch.randint(11, (2, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # so that every part shows in the logits
        ours, theirs = model(idx), baselines.gpt_neox(model)(idx).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert ours.abs().max() > 1


def test_a_folder_without_nanogpt_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nanogpt is .*; it must be a clone of nanoGPT"):
        baselines.load_nanogpt(str(tmp_path))


def test_a_step_of_nanogpt_trains_it(nanogpt, root, capsys):
    run = bench.new_run(root, **SMALL)
    model = baselines.nanogpt(nanogpt, run.config)
    before = model.wte.weight.clone()
    baselines.nanogpt_step(model, run.data.train, 2)()
    assert not torch.equal(model.wte.weight, before)
    assert model.wte.weight.grad is None
    assert capsys.readouterr().out == ""  # stdout is for the table


# ---- the parts


@pytest.mark.parametrize(
    ("part", "peers"),
    [
        ("train", {"-", "ours, float32", "nanoGPT"}),
        ("sample", {"-", "ours, one at a time", "nanoGPT", "transformers"}),
        ("eval", {"nanoGPT"}),
        ("rope", {"LLaMA, complex", "transformers"}),
    ],
)
def test_a_part_prints_rows_of_ratios(part, peers, nanogpt, monkeypatch, capsys):
    monkeypatch.setattr(bench, "LARGE", SMALL)
    monkeypatch.setattr(bench, "DEPTHS", (16, 64))
    monkeypatch.setattr(bench, "COUNT", 4)
    monkeypatch.setattr(bench, "ROTATED", ((2, 2, 8, 4),))
    monkeypatch.setattr(bench, "limits", lambda rounds: ({"float32": 1e9, "bfloat16": 1e9}, []))
    monkeypatch.setattr(bench, "in_new_process", lambda work, *arguments: 100.0)
    bench.main([part, "--rounds", "1", "--nanogpt", nanogpt])
    head, rule, *lines = capsys.readouterr().out.splitlines()
    assert head.split(" | ") == ["| work", "unit", "ours", "peer", "theirs", "ratio |"]
    assert {line.count("|") for line in (head, rule, *lines)} == {7}
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert {row[3] for row in cells} == peers
    for row in cells:
        assert row[3] == "-" or float(row[5].split()[0].replace(",", "")) > 0


def test_a_batch_of_samples_is_the_same_samples_one_by_one(monkeypatch):
    monkeypatch.setattr(bench, "COUNT", 4)
    drawn = []
    model = GPT(GPTConfig(**{k: v for k, v in SMALL.items() if k != "batch_size"}, vocab_size=11))
    original = model.generate

    def generate(prompt, *args, **settings):
        drawn.append(torch.stack(list(original(prompt, *args, **settings)), 1))
        return []

    monkeypatch.setattr(model, "generate", generate)
    (row,) = bench.batch_rows(model.eval(), 1)
    assert (row.peer, row.unit) == ("ours, one at a time", "tokens/s")
    assert drawn[0].shape == (bench.SAMPLES, 4)
    assert torch.equal(drawn[0], torch.cat(drawn[1 : 1 + bench.SAMPLES]))


def test_all_writes_what_it_prints(root, tmp_path, monkeypatch, capsys):
    row = timing.Row("work", "ms", (1.0, 1.0, 1.0), "other", (2.0, 2.0, 2.0), (2.0, 2.0, 2.0))
    for name in ("train", "sample", "rotation", "evaluate"):
        monkeypatch.setattr(bench, name, lambda args, folder: iter([row]))
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    bench.main(["all"])
    about = json.loads((tmp_path / "results/bench.json").read_text())
    assert [r["ratio"] for r in about["rows"]] == 4 * [[2, 2, 2]]
    assert about["threads"] == torch.get_num_threads()
    assert capsys.readouterr().out.count("| 2 (2 to 2) |\n") == 4


def test_peak_memory_is_measured_in_a_process_of_its_own(root):
    """Training cannot add less than its weights, gradients and moments."""
    run = bench.new_run(root, **bench.LARGE)
    weights = sum(p.numel() for p in run.model.parameters())
    assert bench.in_new_process(bench.training_memory, root) > 4 * 4 * weights / 1e6


# ---- what a GPU relies on


class Waits(TorchDispatchMode):
    """Counts the calls that make the host wait for the device: .item(), bool(), int()."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_waits_for_its_device_once(dtype, optimizer, root):
    """For the gradient's norm, before a step that could spoil the weights."""
    settings = {"dtype": dtype, "optimizer": optimizer, "gradient_accumulation_steps": 3}
    run = bench.new_run(root, **SMALL, **settings)
    with Waits() as waits:
        train_step(run)
    assert waits.count == 1


@pytest.mark.parametrize("pos", ["rope", "learned", "alibi"])
def test_a_growing_cache_is_compiled_twice_at_most(pos):
    torch.compiler.reset()
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 11, "block_size": 32}
    model, idx = GPT(GPTConfig(**sizes, pos=pos)).eval(), torch.randint(11, (1, 32))
    counter, cache = CompileCounter(), KVCache(32)
    compiled = torch.compile(model.hidden, backend=counter)
    with torch.no_grad():
        states = [compiled(idx[:, t : t + 1], cache) for t in range(32)]
        torch.testing.assert_close(torch.cat(states, 1), model.hidden(idx), rtol=0, atol=1e-5)
    assert counter.frame_count <= 2
