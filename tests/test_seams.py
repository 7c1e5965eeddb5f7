"""What a fork adds: each throwaway here is written in this file and touches nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import merged, run
from oracles_hf import TINY, rebuilt, tiny, tokens
from torch import nn

import model as model_file
import rope
from model import GPT, GPTConfig, KVCache
from positions import POSITIONS, Position, Rope
from runtime import checkpoint
from runtime.setup import encoding_parameters, make_optimizers

ROOT = Path(__file__).parent.parent
L = TINY["block_size"]


class Forget(Position):
    """A gate a head and token lowers all scores across it, after FoX (arXiv:2503.02130).

    It opens door 3 with what it takes from the layer's input, and has parameters in each layer.
    """

    per_layer = True

    def __init__(self, config, layer=None, kind="G"):
        super().__init__(config, layer)
        self.gate = nn.Linear(config.n_embd, config.n_head)

    def initialise(self):
        nn.init.normal_(self.gate.weight, 0.0, 0.5)
        nn.init.zeros_(self.gate.bias)

    def observe(self, x, at, cache):
        log_f = F.logsigmoid(self.gate(x)).float().mT  # (B, H, T)
        if cache is not None:
            (log_f,) = cache.append(("forget", self.layer), log_f)  # (B, H, S)
        return type(at)(at.order, at.positions, at.T, (log_f.cumsum(-1),))

    def bias(self, at, rows):
        (total,) = at.table
        queries = total[..., -at.T :][..., rows]
        return queries[..., :, None] - total[..., None, :]  # (B, H, rows, S)


class ForgetRope(Forget, Rope):
    """Both at once: rotated, and gated by each layer's input."""

    rotary, settings = True, Rope.settings

    def __init__(self, config, layer=None, kind="G"):
        Rope.__init__(self, config, layer, kind)
        self.gate = nn.Linear(config.n_embd, config.n_head)

    def rotate(self, q, k, at):
        cos_sin = type(at)(at.order, at.positions, at.T, self.table(at.query_positions, at.length))
        return Rope.rotate(self, q, k, cos_sin)

    def logit_scale(self, at):
        return 1.0


class Shaw(Position):
    """Parameters that all layers share: a learned bias for each distance up to 7."""

    def __init__(self, config, layer=None, kind="G"):
        super().__init__(config)
        self.by_distance = nn.Parameter(torch.empty(config.n_head, 8))

    def bias(self, at, rows):
        return self.by_distance[:, at.distance(rows)[0].clamp(0, 7)]


class Scaled(Position):
    """Door 4 alone: a logit scale for each query, ln(position + 2)."""

    def logit_scale(self, at):
        return (at.query_positions + 2).double().log()[:, None]  # (T, 1)


THROWAWAYS = {"forget": Forget, "both": ForgetRope, "shaw": Shaw, "scaled": Scaled}


@pytest.fixture(autouse=True)
def throwaways(monkeypatch):
    for key, encoding in THROWAWAYS.items():
        monkeypatch.setitem(POSITIONS, key, encoding)


def slow_forget(model, idx):
    """Logits (T, V) of a one-layer model with Forget, written down without any block or mask."""
    block, c = model.h[0], model.config
    x = model.wte(idx)
    h = block.ln_1(x)
    q, k, v = (part.unflatten(-1, (c.n_head, -1)) for part in block.attn.c_attn(h).chunk(3, -1))
    f = torch.sigmoid(block.attn.position.gate(h))  # (T, H)
    rows = []
    for i in range(len(idx)):
        heads = []
        for a in range(c.n_head):
            decay = torch.stack([f[j + 1 : i + 1, a].prod() for j in range(i + 1)])
            scores = k[: i + 1, a] @ q[i, a] / c.head_size**0.5 + decay.log()
            heads.append(scores.softmax(0) @ v[: i + 1, a])
        rows.append(torch.cat(heads))
    x = x + block.attn.c_proj(torch.stack(rows))
    return model.logits(model.ln_f(x + block.mlp(block.ln_2(x))))


@torch.no_grad()
def test_an_encoding_may_read_the_layers_input():
    model, idx = tiny(torch.float64, pos="forget", n_layer=1), tokens(3 * L)
    torch.testing.assert_close(model(idx)[0], slow_forget(model, idx[0]), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("pos", THROWAWAYS)
@pytest.mark.parametrize("layered", [{}, {"layers": "LG", "window": 5}])
def test_a_new_encoding_works_with_the_cache_and_sees_no_later_token(pos, layered):
    model, idx = tiny(torch.float64, pos=pos, **layered), tokens(3 * L, batch=2)
    whole, cache = model(idx), KVCache(3 * L)
    pieces = [model.logits(model.hidden(x, cache)) for x in idx.split([7, 1, 1, 8, 7], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(idx[:, :9]), whole[:, :9], rtol=0, atol=1e-6)
    last = model.logits(model.hidden(idx, last=4))
    torch.testing.assert_close(last, whole[:, -4:], rtol=0, atol=1e-6)


def test_a_logit_scale_for_each_query_multiplies_its_scores():
    """An encoding without positions, whose queries are multiplied before the model sees them."""
    model, idx = tiny(torch.float64, pos="scaled", n_layer=1, bias=False), tokens(L)
    plain = rebuilt(model, pos="none")
    scale = torch.arange(2, L + 2).double().log()[:, None]
    original = plain.h[0].attn.qkv

    def qkv(x):
        q, k, v = original(x)
        return q * scale, k, v

    plain.h[0].attn.qkv = qkv
    torch.testing.assert_close(model(idx), plain(idx), rtol=0, atol=1e-12)


def test_parameters_stand_with_the_layer_or_with_the_model():
    forget, shaw = (tiny(pos=pos).state_dict().keys() for pos in ("forget", "shaw"))
    assert {k for k in forget if "position" in k} == {
        f"h.{i}.attn.position.gate.{part}" for i in range(2) for part in ("weight", "bias")
    }
    assert {k for k in shaw if "position" in k} == {"position.by_distance"}


@pytest.mark.parametrize("pos", THROWAWAYS)
def test_models_of_all_encodings_draw_equal_shared_weights(pos):
    torch.manual_seed(0)
    reference = GPT(GPTConfig(**TINY, pos="none")).state_dict()
    torch.manual_seed(0)
    weights = GPT(GPTConfig(**TINY, pos=pos)).state_dict()
    assert all(torch.equal(weights[key], value) for key, value in reference.items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_layers_own_parameters_take_neither_weight_decay_nor_muon(optimizer):
    from runtime.config import Config  # noqa: PLC0415 - beside its only use

    config = Config(vocab_size=9, pos="forget", optimizer=optimizer)
    model = GPT(config.gpt)
    own = encoding_parameters(model)
    assert len(own) == 2 * config.n_layer
    for opt in make_optimizers(config, model, torch.device("cpu")):
        for group in opt.param_groups:
            inside = [id(p) in own for p in group["params"]]
            assert not any(inside) or (
                isinstance(opt, torch.optim.AdamW) and not group["weight_decay"]
            )


@pytest.mark.parametrize("pos", THROWAWAYS)
def test_a_new_encoding_trains_resumes_and_loads_by_its_name(pos, flags, tmp_path):
    whole = run(flags, f"--pos={pos}", folder=tmp_path / "whole")
    half = run(
        flags, f"--pos={pos}", "--max_iters=3", "--lr_decay_iters=6", folder=tmp_path / "half"
    )
    run(flags, f"--pos={pos}", "--lr_decay_iters=6", "--resume", folder=half)
    ours, theirs = (checkpoint.load(folder)[0].state_dict() for folder in (half, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_new_scaling_works_by_its_name(monkeypatch):
    """Two settings of its own would be keyword arguments; this one has none."""

    def halves(head_dim, theta, factor, train_len):
        inv_freq = rope.unscaled(head_dim, theta)
        low = torch.arange(head_dim // 2) >= head_dim // 4
        return torch.where(low, inv_freq / factor, inv_freq), 1.0

    monkeypatch.setitem(rope.SCALINGS, "halves", halves)
    model, idx = tiny(torch.float64, rope_scaling="halves", rope_factor=4.0), tokens(2 * L)
    plain = rebuilt(model, rope_scaling="none", rope_factor=None)
    assert (model(idx) - plain(idx)).abs().max() > 1e-3
    assert torch.equal(rebuilt(model, rope_factor=1.0)(idx), plain(idx))
    dynamic = rebuilt(plain, rope_scaling="dynamic_halves")
    assert torch.equal(dynamic(idx[:, :L]), plain(idx[:, :L]))
    factor_2 = rebuilt(model, rope_factor=2.0)(idx)
    torch.testing.assert_close(dynamic(idx), factor_2, rtol=0, atol=1e-12)


def test_a_scaling_that_reads_no_factor_refuses_one(monkeypatch):
    def fixed(head_dim, theta, factor=1.0, train_len=None):
        return rope.unscaled(head_dim, 2 * theta), 1.0

    monkeypatch.setitem(rope.SCALINGS, "fixed", fixed)
    GPTConfig(rope_scaling="fixed")
    with pytest.raises(ValueError, match=r"rope_factor is 4\.0; it must be left out"):
        GPTConfig(rope_scaling="fixed", rope_factor=4.0)


def test_a_new_norm_is_one_function_of_model_py(monkeypatch):
    monkeypatch.setattr(model_file, "norm", lambda config, channels: nn.RMSNorm(channels))
    model, idx = GPT(GPTConfig(**TINY)), tokens(L, batch=2)
    model(idx, idx).backward()
    assert sum(isinstance(m, nn.RMSNorm) for m in model.modules()) == 2 * TINY["n_layer"] + 1
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


OWN_SETTING = '    beyond: str = "extend"', "    slope: float = 0.5  # of decay\n"
OWN_CLASS = (
    "POSITIONS = {",
    "class Decay(Position):\n    settings = ('slope',)\n\n"
    "    def bias(self, at, rows):\n        return -self.config.slope * at.distance(rows)\n"
    "\n\nDECAY = {'decay': Decay}\n",
)
OWN_SCALING = (
    "SCALINGS = {",
    "def sharp(head_dim, theta, factor, train_len, *,\n    edge: float = 2.0,  # of sharp\n):\n"
    "    return unscaled(head_dim, theta) / edge, 1.0\n\n\nSHARP = {'sharp': sharp}\n",
)


def edit(path, *insertions):
    """Put text before the line that begins so."""
    text = path.read_text()
    for place, more in insertions:
        assert text.count(place) == 1
        text = text.replace(place, more + place)
    text = text.replace("POSITIONS = {", "POSITIONS = DECAY | {")
    path.write_text(text.replace("SCALINGS = {", "SCALINGS = SHARP | {"))


def test_settings_of_a_new_encoding_and_scaling_take_one_file_each(tmp_path, flags):
    """In a copy of the repository: a class and its setting in one file, a function in one."""
    copy = tmp_path / "fork"
    folders = "configs data evaluation runtime".split()
    for folder in folders:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.bin", ".*"))
    for file in ROOT.glob("*.py"):
        shutil.copy(file, copy)
    edit(copy / "positions.py", OWN_SETTING, OWN_CLASS)
    edit(copy / "rope.py", OWN_SCALING)

    def train(*more):
        argv = [sys.executable, "train.py", *merged(flags, "--max_iters=2", *more)]
        return subprocess.run(argv, cwd=copy, capture_output=True, text=True, check=False)

    def out(key):
        return f"--out_dir={tmp_path / key}"

    for key, more in {
        "a": ["--pos=decay", "--slope=0.25"],
        "b": ["--rope_scaling=sharp", "--rope_factor=4", "--edge=3"],
    }.items():
        done = train(*more, out(key))
        assert done.returncode == 0, done.stderr
    done = train("--pos=alibi", "--slope=0.25", out("c"))
    assert done.returncode == 2
    assert "slope is 0.25; it must be left out: pos 'alibi'" in done.stderr
    done = train("--rope_scaling=yarn", "--rope_factor=4", "--edge=3", out("d"))
    assert done.returncode == 2
    assert "edge is 3.0; it must be left out" in done.stderr
    text = train("--help").stdout
    assert "--slope=0.5" in text
    assert "of sharp" in text


def test_the_three_files_copied_alone_train_a_step(tmp_path):
    for file in ("model.py", "positions.py", "rope.py"):
        shutil.copy(ROOT / file, tmp_path)
    program = (
        "import torch; from model import GPT, GPTConfig\n"
        "model = GPT(GPTConfig(vocab_size=9, n_layer=2, n_head=2, n_embd=16, block_size=8))\n"
        "optimizer = torch.optim.AdamW(model.parameters(), 0.01)\n"
        "idx = torch.arange(8)[None]; losses = []\n"
        "for _ in range(5):\n"
        "    loss = model(idx, idx + 1); loss.backward(); losses.append(loss.item())\n"
        "    optimizer.step(); optimizer.zero_grad()\n"
        "assert losses[-1] < losses[0] - 0.1, losses\n"
        "print(next(model.eval().generate(idx, 1, temperature=0)).shape)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("torch.Size([1])\n", "")
