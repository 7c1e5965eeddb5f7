"""The encodings of 2020 to 2026 against transformers, and what their papers promise.

The slow twins of all encodings are in oracles.py; test_model.py compares whole models with them.
"""

import math

import oracles
import pytest
import torch
from conftest import run
from oracles_hf import TINY, rebuilt, tiny, tokens
from transformers import Cohere2Config, Llama4TextConfig, MistralConfig, T5Config
from transformers.models.cohere2.modeling_cohere2 import Cohere2Attention, Cohere2RotaryEmbedding
from transformers.models.llama4.modeling_llama4 import Llama4TextAttention
from transformers.models.mistral_large4.modeling_mistral_large4 import (
    MistralLarge4TextRotaryEmbedding,
    MistralLarge4TextSoftmaxScaling,
)
from transformers.models.t5.modeling_t5 import T5Attention

from model import GPT, GPTConfig, KVCache
from positions import POSITIONS, Kerple, Place
from runtime import checkpoint

L = TINY["block_size"]


def place(T):
    return Place(torch.arange(T), torch.arange(T), T)


def distance(a, b):
    return (a - b).abs().max().item()


# ---- against transformers


@pytest.mark.parametrize("end", [17, 32, 100, 128, 256, 1000])
def test_t5_buckets_are_those_of_transformers(end):
    position = GPT(GPTConfig(**TINY, pos="t5", t5_max_distance=end)).position
    d = torch.arange(5000)
    theirs = T5Attention._relative_position_bucket(-d, False, 32, end)
    assert torch.equal(position.bucket(d), theirs)


@torch.no_grad()
@pytest.mark.parametrize("T", [L, 5 * L])
def test_t5_biases_are_those_of_transformers(T):
    model = tiny(pos="t5", t5_max_distance=24)
    config = T5Config(num_heads=4, relative_attention_max_distance=24, is_decoder=True)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    theirs.relative_attention_bias.weight.copy_(model.position.by_bucket)
    seen = torch.ones(T, T).tril().bool()
    expected = theirs.compute_bias(T, T)[0].where(seen, 0.0)
    ours = model.position.bias(place(T), slice(0, T)).where(seen, 0.0)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(("block_size", "end"), [(8, 32), (200, 200)])
def test_t5_reaches_to_the_trained_length_unless_told_otherwise(block_size, end):
    position = GPT(GPTConfig(**TINY | {"block_size": block_size}, pos="t5")).position
    expected = [oracles.t5_bucket(d, end) for d in range(300)]
    assert position.bucket(torch.arange(300)).tolist() == expected


HYBRID = {"pos": "rope", "layers": "LLLG", "window": 5, "global_pos": "none", "n_layer": 4}
HYBRID |= {"rope_layout": "interleaved", "bias": False}
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4}
SIZES |= {"pad_token_id": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


@torch.no_grad()
def attention_outputs(model, theirs, layer, T=4 * L, **their_arguments):
    """What a layer of ours and an attention of transformers make of the same input (1, T, C)."""
    x = torch.randn(1, T, TINY["n_embd"], generator=torch.Generator().manual_seed(0))
    ours = model.h[layer].attn
    parts = ours.c_attn.weight.split((32, 8 * ours.config.kv_heads, 8 * ours.config.kv_heads))
    for linear, part in zip((theirs.q_proj, theirs.k_proj, theirs.v_proj), parts, strict=True):
        linear.weight.copy_(part)
    theirs.o_proj.weight.copy_(ours.c_proj.weight)
    seen = torch.ones(T, T).tril().bool()
    if ours.kind == "L":
        seen &= ~torch.ones(T, T).tril(-ours.window).bool()
    mask = torch.zeros(T, T).masked_fill(~seen, -math.inf)[None, None]
    at = model.place(torch.zeros(1, T, dtype=torch.long), None, None)[ours.kind]
    theirs.config._attn_implementation = "eager"
    y, _ = theirs(hidden_states=x, attention_mask=mask, **their_arguments)
    return ours(x, at, None), y


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_rope_in_windows_and_global_layers_without_positions_are_cohere2s(n_kv_head, layer):
    """Its attention, layer by layer: the residual stream of Cohere2 is a different one."""
    config = Cohere2Config(**SIZES, num_key_value_heads=n_kv_head, sliding_window=5)
    assert [kind[0] for kind in config.layer_types] == ["s", "s", "s", "f"]
    theirs = Cohere2Attention(config, layer)
    cos_sin = Cohere2RotaryEmbedding(config)(torch.zeros(1), torch.arange(4 * L)[None])
    model = tiny(**HYBRID, n_kv_head=n_kv_head)
    ours, expected = attention_outputs(model, theirs, layer, position_embeddings=cos_sin)
    assert distance(ours, expected) < 1e-5


@pytest.mark.parametrize("T", [L - 1, 10 * L])
def test_logit_scale_llama4_is_llama_4s(T):
    config = Llama4TextConfig(
        **SIZES, num_key_value_heads=4, head_dim=8, no_rope_layers=[1, 1, 1, 0], floor_scale=L
    )
    theirs = Llama4TextAttention(config, 3)
    model = tiny(**HYBRID, logit_scaling="llama4")
    ours, expected = attention_outputs(model, theirs, 3, T, position_embeddings=None)
    assert distance(ours, expected) < 1e-5
    plain, _ = attention_outputs(tiny(**HYBRID), theirs, 3, T, position_embeddings=None)
    assert (distance(ours, plain) > 1e-3) == (T > L)


@torch.no_grad()
def test_logit_scale_ssmax_is_mistral_large_4s():
    attention = tiny(pos="none", logit_scaling="ssmax").h[0].attn
    theirs = MistralLarge4TextSoftmaxScaling(TINY["n_head"])
    theirs.scale.copy_(attention.logit_scale.s)
    theirs.bias.copy_(attention.logit_scale.b)
    q = torch.randn(2, 4, 50, 8, generator=torch.Generator().manual_seed(0))
    expected = theirs(q, torch.arange(50)[None], head_dim_first=True)
    assert distance(q * attention.logit_scale(place(50)), expected) < 1e-5


def test_ssmax_begins_as_no_scale():
    """s = 0 and b = 1: Mistral Large 4's, too, does nothing before its weights are loaded."""
    model = GPT(GPTConfig(**TINY, pos="none", logit_scaling="ssmax"))
    assert (model.h[1].attn.logit_scale(place(100)) == 1).all()


@torch.no_grad()
def test_learned_frequencies_are_mistral_large_4s():
    model = tiny(pos="rope", rope_learned=True)
    config = MistralConfig(hidden_size=32, num_attention_heads=4, head_dim=8)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    theirs = MistralLarge4TextRotaryEmbedding(config)
    theirs.alpha.copy_(model.position.alpha)
    cos, sin = theirs(torch.zeros(1), torch.arange(5 * L)[None])
    ours = model.position.table(torch.arange(5 * L), 5 * L)
    assert distance(ours[0], cos[0, :, :4]) < 1e-5
    assert distance(ours[1], sin[0, :, :4]) < 1e-5


# ---- what the papers promise


def test_a_logit_scale_changes_nothing_within_the_trained_length():
    model, idx = tiny(torch.float64, pos="none"), tokens(L - 1, batch=2)
    for scaling in ("logn", "llama4", "log_length"):
        settings = {"logit_c": 0.3} if scaling == "log_length" else {}
        scaled = rebuilt(model, logit_scaling=scaling, **settings)
        assert distance(scaled(idx), model(idx)) == 0
        longer = tokens(3 * L)
        assert distance(scaled(longer), model(longer)) > 1e-3


def test_fire_squeezes_every_distance_into_the_inputs_of_training():
    model = tiny(torch.float64, pos="fire")
    inputs = []
    model.position.mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for T in (L, 50 * L):
        model.position.bias(place(T), slice(0, T))
    for shares in inputs:
        assert shares.min() >= 0
        assert shares.max() <= 1


def test_hard_alibi_sees_the_last_tokens_of_each_restricted_head():
    model = tiny(pos="hard_alibi", alibi_heads=3)
    bias = model.position.bias(place(6), slice(0, 6))
    seen = (bias == 0) & torch.ones(6, 6).tril().bool()
    assert [int(head[5].sum()) for head in seen] == [1, 2, 3, 6]


def test_the_scores_of_pope_depend_on_content_as_magnitudes_alone():
    """With delta 0 no score is negative at distance 0, whatever q and k are."""
    model = GPT(GPTConfig(**TINY, pos="pope", rope_theta=100.0))
    q, k = torch.randn(2, 1, 4, 1, 8, generator=torch.Generator().manual_seed(0))
    at = place(1)
    at.table = model.h[0].attn.position.table(at.positions, 1)
    polar_q, polar_k = model.h[0].attn.position.rotate(q, k, at)
    expected = torch.log1p(q.exp()) * torch.log1p(k.exp())
    assert distance((polar_q * polar_k).sum(-1), expected.sum(-1)) < 1e-5


def test_training_leaves_the_angles_of_pope_in_their_range(flags, tmp_path):
    run(flags, "--pos=pope", "--learning_rate=0.5", folder=tmp_path)
    state = checkpoint.load(tmp_path)[0].state_dict()
    angles = torch.cat([v for key, v in state.items() if key.endswith("delta")])
    assert angles.max() == 0
    assert -2 * math.pi <= angles.min() < 0


def test_the_slopes_of_kerple_stay_positive():
    model = GPT(GPTConfig(**TINY, pos="kerple"))
    model.position.p.data.fill_(-1)
    model.clamp_encodings()
    assert (model.position.p == Kerple.LEAST).all()
    assert (model.position.a > Kerple.LEAST).all()


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [{"pos": "rope", "rope_learned": True}, {"pos": "none"}], ids=str
)
def test_a_cache_filled_at_another_length_is_refused_under_log_length(settings):
    model = tiny(**settings, logit_scaling="log_length", logit_c=0.4)
    cache = KVCache(4 * L)
    model.hidden(tokens(2 * L), cache)
    with pytest.raises(ValueError, match="was filled under interpolation factors"):
        model.hidden(tokens(1), cache)
    whole = [*model.generate(tokens(2 * L), 5, temperature=0)]
    idx = tokens(2 * L)
    for token in whole:
        assert model(idx)[0, -1].argmax() == token
        idx = torch.cat((idx, token[None]), 1)


# ---- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"logit_scaling": "loud"}, "logit_scaling is 'loud'; it must be one of none, logn, ss"),
        ({"logit_scaling": "log_length"}, "logit_c is None; it must be given with logit_scaling"),
        ({"logit_c": 0.1}, r"logit_c is 0\.1; it must be left out without logit_scaling"),
        (
            {"layers": "L", "window": 4, "logit_scaling": "logn"},
            "logit_scaling is 'logn'; it must be none: no layer sees all tokens",
        ),
        ({"global_rope_theta": 1e6}, "global_rope_theta is .*; it must be left out unless layers"),
        (
            {"layers": "LG", "window": 4, "global_pos": "none", "global_rope_theta": 1e6},
            "global_rope_theta is .*; it must be left out unless layers has both L and G, and G",
        ),
        ({"rope_p": 0.0}, r"rope_p is 0\.0; it must be above 0, at most 1"),
        ({"rope_p": 0.05}, r"p is 0\.05; it must leave 1 to 4 planes"),
        ({"rope_scaling": "dynamic_clip"}, "rope_scaling is 'dynamic_clip'; it must be one of"),
        ({"rope_scaling": "clip", "rope_factor": 4.0}, "rope_factor is .*; it must be left out"),
        ({"pos": "t5", "t5_max_distance": 16}, "t5_max_distance is 16; it must be above 16"),
        ({"t5_max_distance": 99}, "t5_max_distance is 99; it must be left out: pos 'rope'"),
        ({"pos": "hard_alibi", "alibi_heads": 5}, r"alibi_heads is 5; it must be from 1 to n_head"),
        ({"pos": "pope", "rope_p": 0.5}, r"rope_p is 0\.5; it must be left out: pos 'pope'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(settings, words):
    with pytest.raises(ValueError, match=words):
        GPTConfig(**TINY | settings)


@torch.no_grad()
def test_bfloat16_products_agree_with_the_fused_kernel_for_every_encoding():
    """Training in bfloat16 on a CPU takes two products, evaluation the fused kernel."""
    for pos in POSITIONS:
        model, idx = tiny(torch.bfloat16, pos=pos), tokens(L)
        with torch.enable_grad():
            products = model(idx)
        assert distance(products.detach(), model(idx)) < 0.03 * model(idx).abs().max()
