"""The blocks of other families: norms, MLPs, head sizes, parallel residual, untied head.

Logits are compared with transformers' in tests/runtime/test_hub.py, through an import; here a
twin is read straight from the papers in float64, and a model keeps what every model promises.
"""

import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import merged, run, stop_at
from oracles_hf import TINY, tiny, tokens

import configs
from model import GPT, GPTConfig, KVCache
from runtime import checkpoint

CONFIGS = Path(__file__).parent.parent / "configs"
BLOCKS = {
    "rmsnorm": {"norm": "rmsnorm", "norm_eps": 1e-2, "bias": False},
    "rmsnorm-bias": {"norm": "rmsnorm"},
    "gelu_tanh": {"mlp": "gelu_tanh"},
    "swiglu": {"mlp": "swiglu", "n_inner": 40},
    "head_dim": {"head_dim": 12, "n_kv_head": 2},
    "qk_norm": {"qk_norm": True, "norm": "rmsnorm", "n_kv_head": 1},
    "qk_layernorm": {"qk_norm": True},
    "untied": {"tie_embeddings": False},
    "parallel": {"parallel": True, "rope_fraction": 0.5},
    "llama": {"norm": "rmsnorm", "mlp": "swiglu", "tie_embeddings": False, "bias": False}
    | {"n_kv_head": 2, "head_dim": 6, "layers": "LG", "window": 5, "rope_scaling": "dynamic_yarn"},
}
every_block = pytest.mark.parametrize("settings", BLOCKS.values(), ids=BLOCKS)
IDX = tokens(20, batch=2)


# ---- a twin, from the papers


def norm(x, W, name, config):
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
    return x * W[f"{name}.weight"] + W.get(f"{name}.bias", 0)


def linear(x, W, name):
    return x @ W[f"{name}.weight"].T + W.get(f"{name}.bias", 0)


def activated(x, mlp):
    if mlp == "swiglu":
        gate, up = x.tensor_split(2, -1)
        return gate / (1 + (-gate).exp()) * up
    if mlp == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def attention(x, W, name, config):
    """Without positions: (T, C) -> the same."""
    T, D, H, G = len(x), config.head_size, config.n_head, config.kv_heads
    packed = linear(x, W, f"{name}.c_attn").view(T, H + 2 * G, D).transpose(0, 1)
    q, k, v = packed[:H], packed[H : H + G], packed[H + G :]
    if config.qk_norm:
        q, k = norm(q, W, f"{name}.q_norm", config), norm(k, W, f"{name}.k_norm", config)
    heads = []
    for h in range(H):
        scores = q[h] @ k[h * G // H].T / math.sqrt(D)
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[h * G // H])
    return linear(torch.cat(heads, -1), W, f"{name}.c_proj")


def slow_logits(model, idx):
    W, c = dict(model.named_parameters()), model.config
    x = W["wte.weight"][idx]
    for i in range(c.n_layer):
        y = x + attention(norm(x, W, f"h.{i}.ln_1", c), W, f"h.{i}.attn", c)
        wide = linear(norm(x if c.parallel else y, W, f"h.{i}.ln_2", c), W, f"h.{i}.mlp.c_fc")
        x = y + linear(activated(wide, c.mlp), W, f"h.{i}.mlp.c_proj")
    head = W["wte.weight" if c.tie_embeddings else "lm_head.weight"]
    return norm(x, W, "ln_f", c) @ head.T


@every_block
def test_logits_are_those_of_the_papers(settings):
    without = {k: v for k, v in settings.items() if k in BLOCK_FIELDS}
    model = tiny(torch.float64, pos="none", **without)
    for row, idx in zip(model(IDX), IDX, strict=True):
        torch.testing.assert_close(row, slow_logits(model, idx), rtol=0, atol=1e-9)


BLOCK_FIELDS = {field.name for field in fields(GPTConfig)} - {"rope_fraction", "rope_scaling"}
BLOCK_FIELDS -= {"layers", "window"}


# ---- what every model promises


@every_block
def test_cached_logits_are_those_of_a_full_forward(settings):
    fixed = {} if "window" in settings else settings
    model = tiny(**(fixed or settings | {"rope_scaling": "yarn", "rope_factor": 4.0}))
    cache, parts = KVCache(IDX.size(1)), []
    for start, end in ((0, 9), (9, 10), (10, 20)):
        parts.append(model.logits(model.hidden(IDX[:, start:end], cache)))
    torch.testing.assert_close(torch.cat(parts, 1), model(IDX), rtol=0, atol=1e-5)


@every_block
def test_greedy_tokens_are_the_likeliest_of_full_forwards(settings):
    model = tiny(**settings)
    text = IDX[:, :5]
    for token in model.generate(text, 9, temperature=0):
        text = torch.cat((text, model(text)[:, -1].argmax(-1, keepdim=True)), 1)
        assert torch.equal(text[:, -1], token)


@every_block
def test_gradients_reach_every_parameter(settings):
    model = tiny(**settings).train()
    model(IDX, IDX.roll(-1, 1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@every_block
def test_a_compiled_model_computes_the_same(settings):
    torch.compiler.reset()
    model = tiny(**settings)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IDX), model(IDX), rtol=0, atol=1e-5)


@every_block
def test_bfloat16_trains(settings):
    """Norms of queries and keys give float32, and values stay in bfloat16."""
    model = tiny(**settings).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(IDX, IDX.roll(-1, 1))
    loss.backward()
    exact = tiny(**settings)(IDX, IDX.roll(-1, 1))
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)


# ---- the defaults are what they were


def test_the_settings_of_blocks_change_no_model_that_leaves_them_out():
    names = GPT(GPTConfig(**TINY)).state_dict()
    written_out = {"head_dim": 8, "n_inner": 128, "norm": "layernorm", "mlp": "gelu"}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**TINY))
    torch.manual_seed(0)
    other = GPT(GPTConfig(**TINY, **written_out))
    assert [*names] == [*other.state_dict()]
    assert all(torch.equal(w, other.state_dict()[name]) for name, w in model.state_dict().items())
    assert not [name for name in names if "norm" in name or "lm_head" in name]


def test_an_untied_head_is_one_matrix_more():
    tied, untied = (
        GPT(GPTConfig(**TINY, tie_embeddings=tie)).state_dict() for tie in (True, False)
    )
    assert untied.keys() - tied.keys() == {"lm_head.weight"}
    assert untied["lm_head.weight"].std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("n_embd", "settings", "inner"),
    [
        (128, {}, 512),
        (128, {"mlp": "swiglu"}, 344),
        (768, {"mlp": "swiglu"}, 2048),
        (128, {"mlp": "swiglu", "n_inner": 100}, 100),
    ],
)
def test_an_mlp_has_as_many_channels_as_its_kind_takes(n_embd, settings, inner):
    config = GPTConfig(n_embd=n_embd, **settings)
    assert config.inner == inner
    model = GPT(GPTConfig(vocab_size=5, n_layer=1, n_embd=n_embd, **settings))
    wide = 2 if config.mlp == "swiglu" else 1
    assert model.h[0].mlp.c_fc.weight.shape == (wide * inner, n_embd)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm": "batchnorm"}, "norm is 'batchnorm'; it must be one of layernorm, rmsnorm"),
        ({"mlp": "relu"}, "mlp is 'relu'; it must be one of gelu, gelu_tanh, swiglu"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be above 0"),
        ({"norm_eps": 1}, "norm_eps is 1.0; it must be above 0, below 1"),
        ({"n_inner": 0}, "n_inner is 0; it must be at least 1"),
        ({"head_dim": 0}, "head_dim is 0; it must be at least 1"),
        ({"head_dim": 7}, "head_dim is 7; rotation needs an even number"),
        ({"qk_norm": 1}, "qk_norm is 1; it must be of type bool"),
        ({"n_embd": 30}, "n_embd is 30; it must be a multiple of n_head"),
    ],
)
def test_a_block_that_cannot_be_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        GPTConfig(**settings)


# ---- a small modern model


def llama(flags):
    return [str(CONFIGS / "llama.py"), *merged(flags, "--n_kv_head=1", "--qk_norm")]


def test_the_llama_config_stacks():
    config = configs.load([str(CONFIGS / file) for file in ("llama.py", "rope.py")])
    assert (config.name, config.norm, config.mlp) == ("llama-rope", "rmsnorm", "swiglu")
    assert (config.kv_heads, config.tie_embeddings) == (2, False)
    large = configs.load([str(CONFIGS / file) for file in ("gpt2.py", "llama.py", "alibi.py")])
    assert (large.inner, large.head_size, large.kv_heads) == (2048, 64, 2)


def test_a_small_modern_model_trains_and_resumes(flags, tmp_path):
    whole = run(llama(flags), folder=tmp_path / "whole")
    stop_at(3, llama(merged(flags, f"--out_dir={tmp_path / 'cut'}")))
    cut = run(merged(flags, "--resume"), folder=tmp_path / "cut")
    weights = [checkpoint.load(folder)[0].state_dict() for folder in (whole, cut)]
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())
    config = checkpoint.load(cut)[0].config
    assert (config.norm, config.mlp, config.qk_norm) == ("rmsnorm", "swiglu", True)


def test_fine_tuning_compares_what_a_size_comes_to(flags, tmp_path):
    first = run(llama(flags), "--max_iters=1", folder=tmp_path / "first")
    again = [f"--init_from={first}", "--max_iters=1", "--head_dim=8", "--n_inner=48"]
    run(llama(flags), *again, folder=tmp_path / "again")
    with pytest.raises(ValueError, match="inner is 47; it must be 48, as"):
        run(llama(flags), *again[:-1], "--n_inner=47", folder=tmp_path / "other")
