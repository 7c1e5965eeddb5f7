"""Whole models to compare a GPT with: its twins in transformers, and a slow one in float64 loops.

The twins are built from a GPT's weights and from what transformers documents; the slow one is
written from the papers. Neither calls this repository's code. Also the tiny models that the tests
compare, of large weights: at initialisation attention is nearly even and hides a wrong rotation.

B batch, T time, C channels, H heads, D head_dim, F = D/2 planes, V vocabulary.
"""

import dataclasses
import math
from inspect import signature

import numpy as np
import oracles
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from model import GPT, GPTConfig
from positions import POSITIONS
from rope import SCALINGS

TINY = {"block_size": 8, "vocab_size": 17, "n_layer": 2, "n_head": 4, "n_embd": 32, "bias": True}


def tiny(dtype=torch.float32, **changes):
    """A small model whose every parameter is large enough to show in the logits."""
    model = GPT(GPTConfig(**{**TINY, **changes}))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() <= 1:
            # Norms and the two numbers of fire about one, biases about zero.
            noise = 0.3 * noise + (name.endswith("weight") or parameter.dim() == 0)
        else:
            noise *= 0.05 if name.endswith(("wte.weight", "wpe")) else 1.4 / noise.size(1) ** 0.5
        parameter.data.copy_(noise)
    model.clamp_encodings()
    return model.to(dtype).eval()


def rebuilt(model, **changes):
    """The same weights under a changed config."""
    other = GPT(dataclasses.replace(model.config, **changes)).to(model.wte.weight.dtype).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    return other


def tokens(length, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TINY["vocab_size"], (batch, length), generator=generator)


def encodings():
    """Every position encoding with every value of beyond and every scaling, as settings."""
    names = [name for name in SCALINGS if name not in ("none", "clip")]
    scalings = [{"rope_scaling": name, "rope_factor": 4.0} for name in names]
    scalings += [{"rope_scaling": f"dynamic_{name}"} for name in names]
    scalings += [{"rope_scaling": "clip"}]
    return [
        {"pos": pos, "beyond": beyond, **scaling}
        for pos, encoding in POSITIONS.items()
        for beyond in (("extend", "interpolate") if "beyond" in encoding.settings else ("extend",))
        for scaling in [{}, *scalings][: None if pos == "rope" else 1]
    ]


LAYERED = [  # encodings that differ by layer
    {"pos": "rope", "layers": "LG", "window": 5},
    {"pos": "rope", "layers": "LG", "window": 5, "global_pos": "none"},
    {"pos": "rope", "layers": "LG", "window": 5, "rope_scaling": "yarn", "rope_factor": 4.0},
    {"pos": "rope", "layers": "LG", "window": 5, "rope_scaling": "dynamic_ntk"},
    {"pos": "none", "layers": "LG", "global_pos": "rope", "rope_scaling": "llama3"}
    | {"rope_factor": 4.0},
    {"pos": "alibi", "layers": "GL", "window": 3},
    {"pos": "alibi", "layers": "GL", "window": 11, "global_pos": "rope"},
    {"pos": "sinusoidal", "layers": "L", "window": 4},
    {"pos": "learned", "layers": "GL", "window": 4, "beyond": "interpolate"},
    {"pos": "rope", "layers": "LG", "window": 5, "global_rope_theta": 100.0},
    {"pos": "rope", "layers": "LG", "window": 5, "global_pos": "none", "logit_scaling": "logn"},
    {"pos": "fox", "layers": "LG", "window": 5, "global_pos": "pope", "logit_scaling": "ssmax"},
    {"pos": "rope", "layers": "LG", "global_pos": "none", "logit_scaling": "llama4"},
    {"pos": "kerple", "layers": "LG", "window": 6, "global_pos": "fire"},
]


def name(settings):
    """A test id from settings: rope-extend-dynamic_yarn."""
    values = [value for key, value in settings.items() if key != "rope_factor"]
    return "-".join(value if isinstance(value, str) else f"{value:g}" for value in values)


def longest(settings):
    """4 x the trained length, or what a learned table can place."""
    ends = settings["pos"] == "learned" and settings.get("beyond", "extend") == "extend"
    return (1 if ends else 4) * TINY["block_size"]


# ---- twins in transformers


def copy(theirs, weight, bias):
    """Write a linear or norm layer; where they have a bias and we none, theirs is zero."""
    theirs.weight.copy_(weight.T if isinstance(theirs, Conv1D) else weight)
    if theirs.bias is None:
        assert bias is None
    else:
        theirs.bias.copy_(torch.zeros_like(theirs.bias) if bias is None else bias)


def copy_layer(theirs, ours):
    copy(theirs, ours.weight, ours.bias)


def qkv(packed, config):
    """Rows of q, k and v, (H, D, ...) each; a shared key or value head is written out repeatedly.

    Interleaved planes become halves: only the order of the rotated channels differs.
    """
    H, G, D = config.n_head, config.n_kv_head or config.n_head, config.n_embd // config.n_head
    rows = packed.view(H + 2 * G, D, *packed.shape[1:])
    shared = [head // (H // G) for head in range(H)]
    q, k, v = rows[:H], rows[H : H + G][shared], rows[H + G :][shared]
    if config.pos == "rope" and config.rope_layout == "interleaved":
        turning = int(D * config.rope_fraction)
        order = [*range(0, turning, 2), *range(1, turning, 2), *range(turning, D)]
        q, k = q[:, order], k[:, order]
    return q, k, v


def qkv_by_kind(packed, config):
    """GPT-2's order: all of q, all of k, all of v."""
    return None if packed is None else torch.cat(qkv(packed, config)).flatten(0, 1)


def qkv_by_head(packed, config):
    """GPT-NeoX's and Bloom's order: head, then q, k, v, then channel."""
    return None if packed is None else torch.stack(qkv(packed, config), 1).flatten(0, 2)


@torch.no_grad()
def gpt2(model, wpe):
    """GPT-2 with model's weights and this table of positions (numpy, (T, C))."""
    c = model.config
    sizes = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd}
    sizes |= {"vocab_size": c.vocab_size, "n_positions": len(wpe)}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    twin = GPT2LMHeadModel(GPT2Config(activation_function="gelu", **sizes, **special)).eval()
    twin.transformer.wte.weight.copy_(model.wte.weight)
    twin.transformer.wpe.weight.copy_(torch.tensor(wpe))
    copy_layer(twin.transformer.ln_f, model.ln_f)
    for theirs, ours in zip(twin.transformer.h, model.h, strict=True):
        packed = ours.attn.c_attn
        weight, bias = qkv_by_kind(packed.weight, c), qkv_by_kind(packed.bias, c)
        copy(theirs.attn.c_attn, weight, bias)
        copy_layer(theirs.attn.c_proj, ours.attn.c_proj)
        copy_layer(theirs.ln_1, ours.ln_1)
        copy_layer(theirs.ln_2, ours.ln_2)
        copy_layer(theirs.mlp.c_fc, ours.mlp.c_fc)
        copy_layer(theirs.mlp.c_proj, ours.mlp.c_proj)
    return twin


@torch.no_grad()
def gpt_neox(model, **rope_parameters):
    """GPT-NeoX with model's weights, theta and share of turning channels, and this scaling."""
    c = model.config
    rope_parameters = {"rope_type": "default", "rope_theta": c.rope_theta} | rope_parameters
    rope_parameters["partial_rotary_factor"] = c.rope_fraction  # left out, it would be 0.25
    config = GPTNeoXConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.n_embd,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        intermediate_size=4 * c.n_embd,
        max_position_embeddings=int(c.block_size * rope_parameters.get("factor", 1)),
        hidden_act="gelu",
        use_parallel_residual=False,
        attention_bias=c.bias,
        tie_word_embeddings=True,
        rope_parameters=rope_parameters,
        rope_scaling=dict(rope_parameters),  # its name before transformers 5
    )
    twin = GPTNeoXForCausalLM(config).eval()
    twin.gpt_neox.embed_in.weight.copy_(model.wte.weight)
    copy_layer(twin.gpt_neox.final_layer_norm, model.ln_f)
    for theirs, ours in zip(twin.gpt_neox.layers, model.h, strict=True):
        packed = ours.attn.c_attn
        weight, bias = qkv_by_head(packed.weight, c), qkv_by_head(packed.bias, c)
        copy(theirs.attention.query_key_value, weight, bias)
        copy_layer(theirs.attention.dense, ours.attn.c_proj)
        copy_layer(theirs.input_layernorm, ours.ln_1)
        copy_layer(theirs.post_attention_layernorm, ours.ln_2)
        copy_layer(theirs.mlp.dense_h_to_4h, ours.mlp.c_fc)
        copy_layer(theirs.mlp.dense_4h_to_h, ours.mlp.c_proj)
    return twin


@torch.no_grad()
def bloom(model):
    """Bloom (ALiBi) with model's weights, less its norm after the embeddings; with exact GELU."""
    c = model.config
    sizes = {"n_layer": c.n_layer, "n_head": c.n_head, "hidden_size": c.n_embd}
    twin = BloomForCausalLM(BloomConfig(vocab_size=c.vocab_size, **sizes)).eval()
    twin.transformer.word_embeddings.weight.copy_(model.wte.weight)
    twin.transformer.word_embeddings_layernorm = nn.Identity()
    copy_layer(twin.transformer.ln_f, model.ln_f)
    for theirs, ours in zip(twin.transformer.h, model.h, strict=True):
        packed, theirs.mlp.gelu_impl = ours.attn.c_attn, nn.GELU()
        weight, bias = qkv_by_head(packed.weight, c), qkv_by_head(packed.bias, c)
        copy(theirs.self_attention.query_key_value, weight, bias)
        copy_layer(theirs.self_attention.dense, ours.attn.c_proj)
        copy_layer(theirs.input_layernorm, ours.ln_1)
        copy_layer(theirs.post_attention_layernorm, ours.ln_2)
        copy_layer(theirs.mlp.dense_h_to_4h, ours.mlp.c_fc)
        copy_layer(theirs.mlp.dense_4h_to_h, ours.mlp.c_proj)
    return twin


# ---- the slow twin; tables are rounded to float32, as rope.py documents

SINE_AMPLITUDE = np.float32(0.02 / math.sqrt(0.5))  # a sine of the rms of fresh token embeddings


def sinusoids(length, channels, stretch=1.0):
    """sin in even channels, cos in odd ones, of unit amplitude."""
    table = np.zeros((length, channels))
    for m in range(length):
        for i in range(channels // 2):
            angle = m / stretch * 10000 ** (-2 * i / channels)
            table[m, 2 * i], table[m, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


def stretched_rows(table, length):
    """Row m of the stretched table lies at m / s between the rows of the old one."""
    places = np.arange(length) / max(1, length / len(table))
    columns = [np.interp(places, np.arange(len(table)), column) for column in table.T]
    return np.stack(columns, 1)


def frequencies(config, length, theta, is_scaled, alpha):
    """inv_freq a plane and what multiplies the logits, at this length."""
    scaling, L = config.rope_scaling, config.rope_train_len or config.block_size
    scaling = scaling if is_scaled else "none"
    s = config.rope_factor or max(1, config.block_size / L)
    if scaling.startswith("dynamic_"):
        scaling, s = scaling[len("dynamic_") :], max(1, length / L)
    channels = int(config.rope_fraction * config.n_embd // config.n_head)
    oracle = getattr(oracles, scaling)
    knobs = {knob: getattr(config, knob) for knob in [*signature(oracle).parameters][4:]}
    inv_freq = oracle(channels, theta, s, L, **knobs)
    rotating = math.floor(config.rope_p * channels / 2)  # p-RoPE
    inv_freq = [f if i < rotating else 0.0 for i, f in enumerate(inv_freq)]
    if alpha is not None:  # LeRoPE
        inv_freq = [f * math.exp(a) for f, a in zip(inv_freq, alpha, strict=True)]
    return inv_freq, (0.1 * math.log(s) + 1) ** 2 if scaling == "yarn" else 1.0


def rotated(x, inv_freq, layout, positions):
    """Each plane of each row of x (T, D) by its 2 x 2 rotation."""
    x = x.copy()
    pairs = oracles.channel_pairs(2 * len(inv_freq), layout)
    for m, row in zip(positions, x, strict=True):
        for (a, b), frequency in zip(pairs, inv_freq, strict=True):
            cos, sin = (float(np.float32(f(m * frequency))) for f in (math.cos, math.sin))
            row[a], row[b] = row[a] * cos - row[b] * sin, row[a] * sin + row[b] * cos
    return x


def polar(x, deltas, theta, positions):
    """Rows of x (T, D) as PoPE's (T, 2 D): softplus magnitudes at angles of the position."""
    D, out = x.shape[1], []
    for m, row in zip(positions, np.log1p(np.exp(x)), strict=True):
        angles = [float(m * theta ** (-c / D)) for c in range(D)]
        turn = [(np.float32(math.cos(a)), np.float32(math.sin(a))) for a in angles]
        z = [
            complex(*t) * complex(math.cos(d), math.sin(d))
            for t, d in zip(turn, deltas, strict=True)
        ]
        z = row * np.array(z)
        out.append([*z.real, *z.imag])
    return np.array(out)


def slow_attention(x, W, config, layer, positions):
    """The layer's input x (T, C), after its norm -> (T, C): a loop over heads and queries."""
    c, T, own = config, len(x), f"h.{layer}.attn"
    packed = x @ W[f"{own}.c_attn.weight"].T + W.get(f"{own}.c_attn.bias", 0)
    D, G = c.n_embd // c.n_head, c.n_kv_head or c.n_head
    kind = c.layers[layer % len(c.layers)]
    pos = c.global_pos if kind == "G" and c.global_pos else c.pos
    theta = c.global_rope_theta if kind == "G" and c.global_rope_theta else c.rope_theta
    window = c.window if kind == "L" and c.window else T
    heads = [packed[:, i * D : (i + 1) * D] for i in range(c.n_head + 2 * G)]
    sharpness, out = 1.0, np.zeros((T, c.n_embd))
    if pos == "rope":  # a scaling does not apply to layers with a window
        is_scaled = window == T and (kind == "G" or not c.window)
        inv_freq, sharpness = frequencies(c, T, theta, is_scaled, W.get("position.alpha"))
        both = c.n_head + G
        heads[:both] = [rotated(x, inv_freq, c.rope_layout, positions) for x in heads[:both]]
        if c.rope_fraction < 1:  # transformers sharpens the channels that are rotated, and no other
            for q in heads[: c.n_head]:
                q[:, : 2 * len(inv_freq)] *= sharpness
            sharpness = 1.0
    if pos == "pope":
        deltas = W[f"{own}.position.delta"][:, 0]  # (H_kv, D)
        for h in range(c.n_head + G):
            delta = np.zeros(D) if h < c.n_head else deltas[h - c.n_head]
            heads[h] = polar(heads[h], delta, theta, positions)
    bias = oracles.BIASES[pos](c, W, own, x) if pos in oracles.BIASES else lambda *_: 0.0
    scale = oracles.LOGIT_SCALES[c.logit_scaling if kind == "G" else "none"]
    for h in range(c.n_head):
        shared = c.n_head + h // (c.n_head // G)
        q, k, v = heads[h], heads[shared], heads[shared + G]
        for m in range(T):
            first, i = max(0, m - window + 1), positions[m]
            factor = sharpness * scale(c, W, own, h, i, T) / math.sqrt(D)
            scores = [
                factor * (q[m] @ k[n]) + bias(h, i, i - positions[n], m, n)
                for n in range(first, m + 1)
            ]
            weights = np.exp(np.array(scores) - max(scores))
            out[m, h * D : (h + 1) * D] = weights / weights.sum() @ v[first : m + 1]
    return out


def slow_logits(model, idx, positions=None):
    """The whole forward pass over token ids (T,) in float64: (T, V)."""
    c, T = model.config, len(idx)
    positions = range(T) if positions is None else positions
    W = {key: value.detach().double().numpy() for key, value in model.named_parameters()}

    def linear(layer, x):
        return x @ W[f"{layer}.weight"].T + W.get(f"{layer}.bias", 0)

    def norm(layer, x):
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
        return x * W[f"{layer}.weight"] + W.get(f"{layer}.bias", 0)

    x = W["wte.weight"][idx]
    if c.pos == "learned":
        x = x + stretched_rows(W["position.wpe"], T)[:T]
    if c.pos == "sinusoidal":
        stretch = max(1, T / c.block_size) if c.beyond == "interpolate" else 1
        waves = sinusoids(max(positions) + 1, c.n_embd, stretch).astype(np.float32)
        x = x + SINE_AMPLITUDE * waves[list(positions)]
    for i in range(c.n_layer):
        y = slow_attention(norm(f"h.{i}.ln_1", x), W, c, i, positions)
        x = x + linear(f"h.{i}.attn.c_proj", y)
        wide = linear(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x))
        gelu = wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
        x = x + linear(f"h.{i}.mlp.c_proj", gelu)
    return norm("ln_f", x) @ W["wte.weight"].T
