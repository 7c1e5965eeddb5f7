"""The scripts behind docs/claims.md: their models and variants, against independent formulas."""

import importlib
import itertools
import math
import os
import signal
from functools import partial

import numpy as np
import oracles_hf as twins
import pytest
import torch
from conftest import SMALL, fingerprint, losses, merged

import model as core
import rope
from data import tasks
from data.prepare import prepare
from data.tokenizer import Char
from evaluation import results, scoring, statistics
from experiments import claims, report
from experiments.claims import (
    Trained,
    amplitude,
    finetune,
    hybrid,
    identities,
    kv_cache,
    linear_attention,
    logit_scale,
    long_tokens,
    naive_yarn,
    precision,
    remapping,
    rerope,
    temperature,
    which_planes,
)
from model import GPT, GPTConfig
from positions import POSITIONS, Place, Position, Rope
from runtime import checkpoint

D, L, S = 32, 128, 4.0
THETA = 10000.0 ** (-np.arange(0, D, 2) / D)  # (F,)


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What `compare` adds to the names of scalings and encodings goes away after each test."""
    monkeypatch.setattr(rope, "SCALINGS", dict(rope.SCALINGS))
    before = dict(POSITIONS)
    yield
    POSITIONS.clear()
    POSITIONS.update(before)


def frequencies(variant, factor=S):
    """The frequencies and the attention factor of a variant's new scaling, as NumPy."""
    name = variant.overrides["rope_scaling"].removeprefix("dynamic_")
    inv_freq, attention_factor = claims.NEW_SCALINGS[name](D, 10000.0, factor, L)
    return inv_freq.numpy(), attention_factor


def variant(module, label):
    return next(v for v in module.VARIANTS if v.label == label)


def whole(length):
    """The place of a text of this length in a full forward pass."""
    return Place(torch.arange(length), torch.arange(length), length)


# ---- what the scripts put into a model


def test_one_side_of_the_border_is_interpolated():
    """The wavelength at the border of one rotation is the trained length."""
    wavelength = 2 * math.pi / THETA
    slow, factor = frequencies(variant(which_planes, "slow planes, under 1"))
    assert np.allclose(slow, np.where(wavelength > L, THETA / S, THETA), rtol=1e-14)
    assert factor == 1
    fast, factor = frequencies(variant(which_planes, "fast planes, from 1, sharpened"))
    assert np.allclose(fast, np.where(wavelength > L, THETA, THETA / S), rtol=1e-14)
    assert factor == pytest.approx(0.1 * math.log(S) + 1)


def test_an_attention_factor_leaves_the_frequencies_alone():
    for name in temperature.BASES:
        base = rope.frequencies(D, 10000.0, name, S, L)[0].numpy()
        inv_freq, factor = frequencies(variant(temperature, f"{name}, sharpened"))
        assert np.array_equal(inv_freq, base)
        assert factor == pytest.approx(0.1 * math.log(S) + 1)
    _, factor = frequencies(variant(temperature, "yarn at 0.3"))
    assert factor == pytest.approx(0.3 * math.log(S) + 1)


def test_the_yarn_of_the_texts_divides_every_angle():
    example = variant(naive_yarn, "theta / (0.25 s)")  # 8x with t = 2
    assert np.allclose(frequencies(example, 8.0)[0], THETA / 2, rtol=1e-14)
    assert np.allclose(frequencies(example, 2.0)[0], THETA, rtol=1e-14)  # t is at least 1


# Where a key at j stands behind a query at i (None: hidden), written from the papers.


def rerope_distance(i, j, L, step):
    d, W = i - j, L // 2
    return d if d < W else W + (d - W) / step


def self_extend_distance(i, j, L):
    """arXiv:2401.01325, figure 3, with groups of 8 and a window of L / 2."""
    d, W, G = i - j, L // 2, 8
    return d if d < W else (i // G + W - W // G) - j // G


def dual_chunk_distance(i, j, L):
    """arXiv:2402.17463, equations 3 to 5, at chunks of 5/8 L and a local window of L / 8."""
    s, c = 5 * L // 8, 6 * L // 8
    if i // s == j // s:
        return i - j
    if i // s == j // s + 1:
        return min(i % s + s, c) - j % s
    return c - j % s


def streaming_distance(i, j, L):
    """arXiv:2309.17453: positions are those within a cache of 4 first and L - 4 last tokens."""
    cache = range(i + 1) if i < L else [*range(4), *range(i - L + 5, i + 1)]
    return len(cache) - 1 - [*cache].index(j) if j in cache else None


REMAPPED = {
    "ReRoPE, W = 0.5 L": partial(rerope_distance, step=math.inf),
    "leaky ReRoPE, W = 0.5 L": partial(rerope_distance, step=(60 - 12) / (24 - 12)),
    "Self-Extend, G = 8, W = L/2": self_extend_distance,
    "Dual Chunk": dual_chunk_distance,
    "StreamingLLM": streaming_distance,
}


@pytest.mark.parametrize(("block", "last"), [(256, None), (16, None), (16, 23)])
@pytest.mark.parametrize("logn", [False, True])
@pytest.mark.parametrize("label", REMAPPED)
def test_remapped_attention_is_the_sum_over_pairs_at_their_distance(
    label, logn, block, last, monkeypatch
):
    """One complex product a pair of positions, in float64; in one block of queries or in many."""
    torch.manual_seed(0)
    T, L = 60, 24
    config = GPTConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=2 * D, block_size=L)
    state = {"model": GPT(config).state_dict(), "path": "made here"}
    made = variant(remapping, f"{label}{', log-n' * logn}")
    attention = made.build(state, config).h[0].attn
    x = torch.randn(1, T, 2 * D)
    q, k, v = attention.c_attn(x).unflatten(-1, (-1, D)).transpose(1, 2).chunk(3, 1)
    a, b = (torch.complex(y[..., : D // 2], y[..., D // 2 :]).to(torch.cdouble) for y in (q, k))
    angle, hidden = torch.zeros(T, T, D // 2).double(), torch.ones(T, T).bool()
    for i, j in itertools.combinations_with_replacement(range(T), 2):
        distance = REMAPPED[label](j, i, L)
        hidden[j, i] = distance is None
        angle[j, i] = (distance or 0) * torch.tensor(THETA)
    rotation = torch.polar(torch.ones_like(angle), angle)
    scores = torch.einsum("bhtf,bhsf,tsf->bhts", a, b.conj(), rotation).real / math.sqrt(D)
    if logn:
        grows = [max(1, math.log(i + 1) / math.log(L)) for i in range(T)]
        scores *= torch.tensor(grows)[:, None]
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1).float()
    expected = attention.c_proj((weights @ v).transpose(1, 2).flatten(2))
    monkeypatch.setattr(core, "BLOCK", block)
    y = attention(x, whole(T), None, last)
    assert torch.allclose(y, expected[:, -(last or T) :], atol=1e-5)


@torch.no_grad()
def test_rerope_within_its_window_is_rope():
    """In the whole model, which still makes the tables of its own encoding."""
    model = twins.tiny(pos="rope", block_size=16)
    state = {"model": model.state_dict(), "path": "made here"}
    idx, other = twins.tokens(16, batch=2), rerope.rerope(1.0, False).build(state, model.config)
    assert torch.allclose(other(idx), model(idx), atol=1e-5)
    beyond = twins.tokens(48)
    assert not torch.allclose(other(beyond), model(beyond), atol=0.1)


def test_one_step_of_the_table_is_rounded_to_bfloat16():
    config, at = GPTConfig(vocab_size=9), torch.arange(300)
    exact = [f(np.arange(300)[:, None] * THETA) for f in (np.cos, np.sin)]
    cos, _, sharpening = precision.RoundedPositions(config).table(at, 300)
    assert torch.equal(cos[257], cos[256])  # bfloat16 holds whole numbers up to 256
    assert np.allclose(cos[:256], exact[0][:256], atol=1e-7)
    assert sharpening == 1
    cos, sin, _ = precision.RoundedTable(config).table(at, 300)
    assert all(torch.equal(t, t.bfloat16().float()) for t in (cos, sin))
    assert np.allclose(sin, exact[1], atol=2**-8)
    inv_freq = torch.tensor(THETA).bfloat16().double().numpy()
    cos, _, _ = precision.RoundedFrequencies(config).table(at, 300)
    assert np.allclose(cos, np.cos(np.arange(300)[:, None] * inv_freq), atol=1e-6)
    angles = torch.tensor(np.arange(300)[:, None] * THETA).bfloat16().double().numpy()
    cos, _, _ = precision.RoundedAngles(config).table(at, 300)
    assert np.allclose(cos, np.cos(angles), atol=1e-6)


def test_without_rounding_the_table_is_that_of_rope():
    class Unrounded(precision.Rounded):
        step = "none of them"

    config = GPTConfig(vocab_size=9, rope_scaling="dynamic_yarn")
    tables = [encoding(config).table(torch.arange(900), 900) for encoding in (Unrounded, Rope)]
    for ours, theirs in zip(*tables, strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_every_step_is_rounded_under_a_name_of_its_own():
    POSITIONS.update(claims.NEW_POSITIONS)
    rounded = [v for v in precision.VARIANTS if "pos" in v.overrides]
    steps = [POSITIONS[v.overrides["pos"]].step for v in rounded]
    assert [v.label.split()[-1] for v in rounded] == steps
    assert len(set(steps)) == 4
    config = GPTConfig(vocab_size=9)
    for v in rounded:
        model = GPT(checkpoint.with_overrides(config, **v.overrides))
        assert isinstance(model.position, precision.Rounded)
        assert model.position.dynamic == v.label.startswith("yarn")


def test_the_exact_claims_hold():
    measured = identities.measure()
    small = "rotation less complex product", "rotation less 2 x 2 matrices", "output moved, v as"
    assert all(value < 1e-5 for name, value in measured.items() if name.startswith(small))
    assert all(value < 1e-5 for name, value in measured.items() if name.endswith("float32"))
    assert measured["output moved, v rotated too"] > 1


@pytest.mark.parametrize("pos", ["none", "rope"])
def test_linear_attention_is_the_sum_of_the_paper(pos):
    """RoFormer's eq. 19, a pair of positions at a time in float64; as trained, to bfloat16."""
    torch.manual_seed(0)
    T = 2 * linear_attention.CHUNK + 7
    config = GPTConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=2 * D, block_size=T, pos=pos)
    model, calls = linear_attention.LinearGPT(config), []
    model.h[0].attn.register_forward_hook(lambda attn, inputs, y: calls.append((*inputs, y)))
    model(torch.randint(9, (1, T)))
    attn, (x, at, *_, y) = model.h[0].attn, calls[0]
    heads = attn.c_attn(x).double().unflatten(-1, (-1, D)).transpose(1, 2)
    q, k, v = heads.chunk(3, 1)
    q, k = (torch.where(z > 0, z + 1, z.exp()) for z in (q, k))
    distance = (torch.arange(T)[:, None] - torch.arange(T)).double() * (pos == "rope")
    angle = distance[..., None] * torch.tensor(THETA)
    rotation = torch.polar(torch.ones(T, T, D // 2).double(), angle)
    a, b = (torch.complex(z[..., : D // 2], z[..., D // 2 :]) for z in (q, k))
    numerator = torch.einsum("bhtf,bhsf,tsf->bhts", a, b.conj(), rotation).real.tril()
    expected = (numerator @ v) / (q @ k.mT).tril().sum(-1, keepdim=True)
    projected = (expected.transpose(1, 2).flatten(2) @ attn.c_proj.weight.double().T).float()
    assert torch.allclose(y, projected, atol=1e-6)
    assert torch.allclose(attn(x, at, None, last=5), y[:, -5:], atol=1e-6)
    q, k, v = attn.features(x)
    rotated = attn.position.rotate(q, k, at)
    assert torch.allclose(linear_attention.numerator_scores(*rotated), numerator.float(), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = attn.features(x)
        rough = linear_attention.running(q, k, v, *attn.position.rotate(q, k, at))
    assert (rough - expected).abs().max() < 0.02 * expected.abs().max()


class OwnSlope(Position):
    """A bias that falls with distance, with a parameter in each layer."""

    per_layer = True

    def __init__(self, config, layer=None, kind="G"):
        super().__init__(config, layer)
        self.slope = torch.nn.Parameter(torch.ones(config.n_head, 1, 1))

    def bias(self, at, rows):
        return -self.slope * at.distance(rows)


class SameAttention(core.Attention):
    """Whole scores, as an experiment asks for them; the same numbers."""

    def scores(self, q, k, at, rows):
        return super().scores(q, k, at, rows)


@torch.no_grad()
@pytest.mark.parametrize("pos", ["rope", "own slope"])
def test_other_attention_has_the_same_weights_and_encodings(pos):
    POSITIONS["own slope"] = OwnSlope
    model = twins.tiny(pos=pos, n_kv_head=2)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    positions = [block.attn.position for block in model.h]
    idx = twins.tokens(8, batch=2)
    expected = model(idx)
    assert claims.with_attention(model, SameAttention) is model
    assert {type(block.attn) for block in model.h} == {SameAttention}
    assert [block.attn.position for block in model.h] == positions
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert torch.allclose(model(idx), expected, atol=1e-5)


def test_a_cache_of_rotated_keys_is_that_of_transformers():
    """GPT-NeoX with dynamic NTK and its own cache, a token at a time, to 4x its length."""
    model = twins.tiny(pos="rope", rope_scaling="dynamic_ntk", n_embd=128, block_size=16)
    theirs = twins.gpt_neox(model, rope_type="dynamic", factor=1.0)
    idx, cache, expected = twins.tokens(64, batch=2), None, []
    with torch.no_grad():
        for n in range(64):
            out = theirs(idx[:, n : n + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            expected.append(out.logits[:, 0])
        ours = list(kv_cache.stepwise(model, idx))
        fresh = model(idx)[:, -1]
    assert torch.allclose(torch.stack(ours), torch.stack(expected), atol=1e-4)
    assert not torch.allclose(ours[-1], fresh, atol=0.1)


@torch.no_grad()
def test_rotation_on_read_is_exact_in_the_first_layer_alone():
    idx, error = twins.tokens(32, batch=2), {}
    for layers in (1, 2):
        model = twins.tiny(pos="rope", rope_scaling="dynamic_yarn", n_embd=128, n_layer=layers)
        on_read, expected = (
            kv_cache.logits_after(model, idx, [9, 32], method)
            for method in ("rotated on read", "forward pass")
        )
        error[layers] = (on_read - expected).abs().max()
        assert {type(block.attn) for block in model.h} == {core.Attention}
    assert error[1] < 1e-5
    assert error[2] > 1e-3


@torch.no_grad()
def test_losses_along_a_text_are_those_of_evaluation(corpus, monkeypatch):
    """Unscaled, all three methods are one model."""
    monkeypatch.setattr(kv_cache, "STRIDE", 4)
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=40, n_layer=1, n_head=2, n_embd=16, block_size=8)).eval()
    state = {"run": {"dataset": "small", "data_dir": str(corpus)}}
    text = claims.held_out(state, 32, kv_cache.TEXTS)
    means = scoring.token_losses(model, text[:, :-1], text[:, 1:]).mean(0)
    parts = ((12, 16), (20, 24), (28,))
    expected = [means[torch.tensor(part) - 1].mean().item() for part in parts]
    for method in kv_cache.METHODS:
        assert kv_cache.losses(model, state, method) == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_accuracies_along_a_text_are_those_of_evaluation(monkeypatch):
    """Every second answer is the one that the model itself would write, digit by digit."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=12, n_layer=1, n_head=2, n_embd=16, block_size=8)).eval()
    tokenizer = Char("0123456789[]")

    def questions(length, count, seed):
        idx = torch.randint(12, (count, length), generator=torch.Generator().manual_seed(length))
        answers = model(idx)[:, -4:].argmax(-1)
        answers[::2] = (answers[::2] + 1) % 12
        assert scoring.answered(model, idx, answers).all(1).tolist() == [False, True] * (count // 2)
        texts = [[tokenizer.decode(row.tolist()) for row in x] for x in (idx, answers)]
        return [tasks.Question(*pair, 0.5) for pair in zip(*texts, strict=True)]

    monkeypatch.setattr(tasks.TASKS["passkey"], "questions", questions)
    state = {"tokenizer": tokenizer.to_meta()}
    for method in kv_cache.METHODS:
        assert kv_cache.accuracies(model, state, method) == [0.5, 0.5]


def test_unit_sinusoids_are_those_of_the_paper():
    config = GPTConfig(vocab_size=9, pos="sinusoidal")
    angles = np.arange(40)[:, None] * 10000.0 ** (-np.arange(0, 128, 2) / 128)
    waves = np.stack((np.sin(angles), np.cos(angles)), -1).reshape(40, 128)
    x = torch.randn(2, 40, 128)
    y = amplitude.UnitSinusoidal(config).embed(x, whole(40))
    assert np.allclose((y - x).numpy(), waves, atol=1e-5)


# ---- training what is missing


def test_every_model_that_is_tuned_is_a_config_of_train_py(monkeypatch, tmp_path):
    commands, started_from = [], {}
    monkeypatch.setattr(claims.train, "main", lambda argv, make: commands.append(argv) or 0)
    copy = lambda source, target: started_from.update({target: source})  # noqa: E731
    monkeypatch.setattr(claims, "copy_checkpoint", copy)
    for model in finetune.MODELS[1:]:
        for task in model.flags:
            model.train_if_missing(task, 1, str(tmp_path / "o u t"))
    configs = [claims.train.configs.load(argv) for argv in commands]
    by_folder = {config.folder: config for config in configs}
    assert len(by_folder) == 40
    assert {config.block_size / config.train_len for config in configs} == {4}
    assert all(config.tokens_per_step == config.block_size for config in configs)
    assert str(tmp_path / "o u t/passkey-rope-1") in {config.init_from for config in configs}
    for folder, config in by_folder.items():
        fewer = dict(zip(finetune.STEPS, (0, *finetune.STEPS), strict=False))[config.max_iters]
        name = folder.name.replace(f"-{config.max_iters}-", f"-{fewer}-")
        assert started_from.get(folder) == (folder.with_name(name) if fewer else None)


FIELD = (
    "encodings trained_frequencies gates hybrid logit_scale drope train_positions tokens "
    "optimizer remapping position_tasks"
).split()


@pytest.mark.parametrize("name", FIELD)
def test_every_model_of_a_script_is_a_config_under_a_name_of_its_own(name):
    module = importlib.import_module(f"experiments.claims.{name}")
    assert len({model.name for model in module.MODELS}) == len(module.MODELS)
    for model, task in itertools.product(module.MODELS, claims.TASKS):
        labels = [variant.label for variant in model.variants]
        assert len(set(labels)) == len(labels)
        if model.flags is not None and task in model.flags:
            config = claims.configs.load(model.command(task, 1, "out"))
            trained = hybrid.LENGTHS[task]
            assert config.block_size == trained
            for variant in model.variants:
                checkpoint.with_overrides(config.gpt, **variant.overrides)


def test_the_windows_of_hybrids_are_shares_of_the_trained_length():
    for task, L in (("prose", 256), ("keys", 128)):
        of_run = {}
        for model in hybrid.MODELS:
            config = claims.configs.load(model.command(task, 1, "out"))
            of_run[model.name] = config.layers, config.window / L, config.global_pos
        assert of_run["hybrid"] == ("LLLG", 1 / 4, "none")
        assert of_run["hybrid-eighth"] == ("LLLG", 1 / 8, "none")
        assert of_run["hybrid-lg"] == ("LG", 1 / 4, "none")
        assert of_run["swa"] == ("L", 1 / 4, None)
        assert of_run["hybrid-rope"] == ("LLLG", 1 / 4, None)


def test_the_fitted_scale_has_the_least_loss_on_texts_that_are_not_scored(tmp_path, corpus):
    flags = [*SMALL, f"--data_dir={corpus}", f"--out_dir={tmp_path}", "--pos=none"]
    assert claims.train.main(flags) == 0
    state = checkpoint.read(tmp_path)
    L, config = state["run"]["block_size"], checkpoint.config_of(state)
    x, y = logit_scale.texts(state, 4 * L)
    held_out = claims.data.load("small", corpus)
    text = held_out.val[: 16 * 4 * L + 1].astype(np.int64)
    assert np.array_equal(x.flatten(), text[:-1])
    assert np.array_equal(y[:, -1], text[4 * L :: 4 * L])
    best = logit_scale.fitted(state, config).config.logit_c
    losses = []
    for c in logit_scale.CANDIDATES:
        # By hand: the queries of the whole window are multiplied by one number.
        model = checkpoint.load(tmp_path)[0]
        for block in model.h:
            width = model.config.n_embd
            block.attn.c_attn.weight.data[:width] *= 1 + c * math.log(4)
        logits = model(x)[:, -y.size(1) :]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).item())
    assert best == logit_scale.CANDIDATES[int(np.argmin(losses))]


def test_a_run_of_more_steps_continues_the_run_of_fewer(tmp_path, corpus):
    """As one run that was stopped, and resumed with more steps: new windows, a longer cosine."""
    small = f"--data_dir={corpus} {' '.join(SMALL[:-1])}"
    flags = [small.replace("--max_iters=6", f"--max_iters={n}") for n in (3, 6)]
    short = Trained("short", [], {"prose": flags[0]})
    more = Trained("more", [], {"prose": flags[1]}, after=short)
    folder = more.train_if_missing("prose", 1, str(tmp_path))
    assert more.train_if_missing("prose", 1, str(tmp_path)) == folder  # nothing is left to do
    argv = [f"--out_dir={tmp_path / 'one'}", "--seed=1", "--device=cpu", "--wandb=disabled"]
    config = str(claims.ROOT / "configs/rope.py")
    assert claims.train.main([config, *argv, *flags[0].split()]) == 0
    assert claims.train.main([config, *argv, *flags[1].split(), "--resume"]) == 0
    resumed, continued = (checkpoint.read(path) for path in (tmp_path / "one", folder))
    assert continued["iter"] == 6
    assert all(torch.equal(resumed["model"][name], x) for name, x in continued["model"].items())
    assert checkpoint.read(tmp_path / "short-1")["iter"] == 3
    target = tmp_path / "more-2"  # stopped before the first step of its own
    claims.copy_checkpoint(short.train_if_missing("prose", 2, str(tmp_path)), target)
    assert checkpoint.read(more.train_if_missing("prose", 2, str(tmp_path)))["iter"] == 6


def test_a_missing_model_is_trained_once(tmp_path, corpus, monkeypatch):
    small = f"--data_dir={corpus} {' '.join(SMALL[:-1])}"
    model = Trained("tiny", [], {"prose": small}, linear_attention.LinearGPT)
    before = signal.getsignal(signal.SIGINT)
    folder = model.train_if_missing("prose", 1, str(tmp_path))
    assert signal.getsignal(signal.SIGINT) == before
    assert folder == model.folder("prose", 1, str(tmp_path)) == tmp_path / "tiny-1"
    assert len(losses(folder)) == 6
    commands = []
    monkeypatch.setattr(claims.train, "main", lambda argv, make: commands.append(argv) or 143)
    (folder / "status.json").unlink()  # as if it had been killed after the last save
    assert model.train_if_missing("prose", 1, str(tmp_path)) == folder
    assert not commands
    other = model._replace(flags={"prose": small.replace("--block_size=16", "--block_size=8")})
    with pytest.raises(ValueError, match="trained with block_size 16, not 8; remove it"):
        other.train_if_missing("prose", 1, str(tmp_path))
    longer = model._replace(flags={"prose": small.replace("--max_iters=6", "--max_iters=9")})
    with pytest.raises(ValueError, match="trained with max_iters 6, not 9; remove it"):
        longer.train_if_missing("prose", 1, str(tmp_path))
    with pytest.raises(checkpoint.CheckpointError, match="linear_attention is unknown"):
        checkpoint.load(folder)  # a plain GPT does not load it


def test_a_stopped_training_is_resumed(tmp_path, corpus, capsys):
    flags = [*SMALL[:-1], f"--data_dir={corpus}", "--eval_interval=1"]
    text = " ".join(merged(flags))
    model = Trained("tiny", [], {"prose": text}, linear_attention.LinearGPT)
    with pytest.MonkeyPatch.context() as patch:
        step = claims.train.train_step

        def interrupted(run):
            if run.iter == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(run)

        patch.setattr(claims.train, "train_step", interrupted)
        with pytest.raises(SystemExit, match="143"):
            model.train_if_missing("prose", 1, str(tmp_path))
    assert capsys.readouterr().err.endswith("Run the same command again to continue.\n")
    assert len(losses(model.train_if_missing("prose", 1, str(tmp_path)))) == 6
    uninterrupted = model.train_if_missing("prose", 1, str(tmp_path / "uninterrupted"))
    assert fingerprint(uninterrupted) == fingerprint(tmp_path / "tiny-1")


# ---- scoring


def test_a_script_asks_for_the_runs_of_its_task(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    argv = ["--seeds=1", "--task=keys", f"--out={tmp_path}"]
    message = r"passkey-rope-1337 is missing; experiments/reproduce.sh trains"
    with pytest.raises(ValueError, match=message):
        claims.compare("which_planes", which_planes.MODELS, argv)
    (tmp_path / "passkey-rope-1337").mkdir()
    (tmp_path / "passkey-rope-1337/ckpt.pt").touch()
    runs, plans = [], []
    monkeypatch.setattr(claims, "plan_of", lambda model, run, *rest: runs.append(run) or run)
    monkeypatch.setattr(claims.evaluate, "evaluate", lambda plan, args: plans.extend(plan))
    claims.compare("which_planes", which_planes.MODELS, argv)
    assert plans == runs == [tmp_path / "passkey-rope-1337"]
    assert "slow_planes,_under_1" in rope.SCALINGS
    with pytest.raises(ValueError, match="invalid choice: 'poems'"):
        claims.compare("which_planes", which_planes.MODELS, ["--task=poems"])


def scored(tmp_path, monkeypatch, models):
    """The rows that `compare` writes of models at 1x and 2x, on little text."""
    monkeypatch.setattr(claims, "scores_of", lambda task: tmp_path / f"{task}.jsonl")
    flags = {"prose": ["--tokens=64", "--window_tokens=256"]}
    monkeypatch.setattr(claims, "EVALUATION_FLAGS", flags)
    argv = ["--task=prose", "--seeds=1", f"--out={tmp_path}"]
    claims.compare("tiny", models, argv, ratios=(1, 2))
    return results.read(tmp_path / "prose.jsonl")


def test_only_what_compares_lengths_is_scored(tmp_path, corpus, monkeypatch):
    flags = {"prose": f"--data_dir={corpus} {' '.join(SMALL[:-1])}"}
    models = [Trained("tiny", [claims.NONE, claims.YARN], flags)]
    models.append(Trained("short", [claims.NONE], flags, ratios=(1,)))
    rows = scored(tmp_path, monkeypatch, models)
    assert {row["protocol"] for row in rows} == {"matched"}
    cells = {(row["run"], row["scaling"], row["length"] / row["trained"]) for row in rows}
    tiny = {("tiny", scaling, ratio) for scaling in ("none", "yarn") for ratio in (1, 2)}
    assert cells == {*tiny, ("short", "none", 1)}
    assert {row["folder"] for row in rows} == {"tiny-1337", "short-1337"}


def test_models_of_the_mixture_answer_all_its_tasks(tmp_path, monkeypatch):
    prepare("mixture", root=tmp_path)
    monkeypatch.setattr(claims, "scores_of", lambda task: tmp_path / f"{task}.jsonl")
    flags = {part: [f"--task={part}", "--keys=3"] for part in tasks.PARTS}
    monkeypatch.setattr(claims, "EVALUATION_FLAGS", flags)
    small = f"--data_dir={tmp_path} --n_layer=1 --n_head=2 --n_embd=8 --batch_size=2 --max_iters=2"
    small += " --warmup_iters=1 --eval_interval=2 --eval_tokens=256"
    models = [Trained("tiny", [claims.AS_TRAINED], {"mixture": small})]
    argv = ["--task=mixture", "--seeds=1", f"--out={tmp_path}"]
    claims.compare("tiny", models, argv, ratios=(1, 2))
    for part in tasks.PARTS:
        rows = results.read(tmp_path / f"{part}.jsonl")
        assert {row["length"] for row in rows} == {128, 256}
        assert {(row["run"], row["protocol"], row["count"]) for row in rows} == {
            ("mixture-tiny", part, 3)
        }
    with pytest.raises(ValueError, match="tiny has no settings for --task prose; leave it out"):
        claims.compare("tiny", models, ["--task=prose"])


def test_an_encoding_of_a_script_is_trained_and_scored(tmp_path, corpus, monkeypatch):
    """Under its own name in training; as a variant, it is scored at the trained length too."""

    class Rolled(Rope):
        def embed(self, x, at):
            return x.roll(1, -1)

    monkeypatch.setattr(claims, "NEW_POSITIONS", dict(claims.NEW_POSITIONS))
    variants = [
        claims.NONE,
        claims.Variant("rolled", {"pos": claims.new_position("rolled", Rolled)}),
    ]
    flags = f"--data_dir={corpus} {' '.join(SMALL[:-1])}"
    models = [Trained("tiny", variants, {"prose": flags})]
    flags += f" --pos={amplitude.NAME}"
    models.append(Trained(amplitude.NAME, [claims.AS_TRAINED], {"prose": flags}))
    rows = scored(tmp_path, monkeypatch, models)
    at_1x = [statistics.with_mean(row) for row in rows if row["length"] == row["trained"]]
    loss = {(row["run"], row["scaling"]): row["score"] for row in at_1x}
    assert loss["tiny", "rolled"] > loss["tiny", "none"] + 0.01
    assert {row["pos"] for row in rows} == {"rope", amplitude.NAME}


def test_what_is_compared_was_scored_on_the_same_targets():
    """Prose: in a file one set of targets at all lengths; keys: one set of texts a length."""
    prose, keys = report.Results(claims.ROOT).claims()
    assert len({summary.row["targets"] for summary in prose.by_cell.values()}) == 1
    texts = {(length, s.row["targets"]) for (_, length), s in keys.by_cell.items()}
    assert len(texts) == len(keys.lengths)


def test_tokens_that_profit_gain_two_nats_and_lose_less_than_two():
    short, long = torch.tensor([5.0, 3.9, 4.5, 1.0]), torch.tensor([1.0, 1.95, 2.4, 0.5])
    again = short + 0.5, long  # the means are 5.25, 4.15, 4.75, 1.25
    assert long_tokens.chosen([(short, long)]).tolist() == [True, False, False, False]
    assert long_tokens.chosen([(short, long), again]).tolist() == [True, True, False, False]


def test_the_losses_of_long_tokens_are_those_of_whole_windows(tmp_path, corpus, monkeypatch):
    assert claims.train.main([*SMALL, f"--data_dir={corpus}", f"--out_dir={tmp_path}"]) == 0
    monkeypatch.setattr(long_tokens, "SPANS", 2)
    monkeypatch.setattr(long_tokens, "LONG", 64)
    losses = long_tokens.losses(tmp_path, 16)
    held_out = claims.data.load("small", corpus)
    (start, end), model = held_out.documents("val")[0], checkpoint.load(tmp_path)[0]
    starts = claims.data.spans([(start + 64, end)], 32, 2)
    text = torch.from_numpy(held_out.val.astype(np.int64))
    for i, loss in enumerate(losses):
        last = starts[i // 32] + 1 + i % 32
        window = text[last - 16 : last + 1][None]
        expected = torch.nn.functional.cross_entropy(model(window[:, :-1])[0, -1:], window[0, -1:])
        assert loss == pytest.approx(expected.item(), abs=1e-5)
