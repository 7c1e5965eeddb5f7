"""Models of transformers, tiny and random, against ours with their weights."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model import GPT, GPTConfig, KVCache
from runtime import families
from runtime.checkpoint import CheckpointError

TINY = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
GROUPED = TINY | {"num_key_value_heads": 2}
NEOX = TINY | {"hidden_size": 64}  # a quarter of a head must hold whole planes
GPT2_TINY = {"vocab_size": 61, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**GROUPED | changes))


def scaled(rope_parameters):
    longer = {} if rope_parameters["rope_type"] == "linear" else {"max_position_embeddings": 128}
    return llama(rope_parameters=rope_parameters | {"rope_theta": 1000.0}, **longer)


MODELS = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, wide heads": lambda: llama(head_dim=20),
    "llama, theta": lambda: llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "llama, linear": lambda: scaled(LINEAR),
    "llama, yarn": lambda: scaled(YARN | {"beta_fast": 4.0, "beta_slow": 1.0}),
    "llama, llama3": lambda: scaled(LLAMA3),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(**GROUPED, head_dim=12, sliding_window=None)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=16)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_TINY)),
    "gpt2, exact": lambda: GPT2LMHeadModel(
        GPT2Config(**GPT2_TINY, activation_function="gelu", n_inner=64)
    ),
    "pythia": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**NEOX)),
    "neox, serial, tied": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**NEOX, use_parallel_residual=False, tie_word_embeddings=True)
    ),
}


@torch.no_grad()
def pair(name):
    """Their model with weights that show in the logits, and ours with the same, in float64."""
    torch.manual_seed(0)
    theirs = MODELS[name]().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in theirs.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.3 * noise + 1 if parameter.dim() == 1 else 0.15 * noise)
    config = theirs.config.to_dict()
    ours = GPT(GPTConfig(**families.settings_of(config)))
    ours.load_state_dict(families.weights_of(config, theirs.state_dict()), strict=True)
    return theirs.double(), ours.double().eval()


def ids(length, batch=2):
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(2))


every_model = pytest.mark.parametrize("name", MODELS)


@every_model
@torch.no_grad()
def test_logits_are_those_of_transformers(name):
    """Their angles are float32, and so are their norms' and softmax's insides."""
    theirs, ours = pair(name)
    for length in (1, 32) if ours.max_length == 32 else (1, 32, 64, 128):
        expected = theirs(ids(length)).logits
        assert expected.std() > 0.1
        assert (ours(ids(length)) - expected).abs().max() < 2e-5


@every_model
@torch.no_grad()
def test_greedy_text_is_that_of_transformers(name):
    theirs, ours = pair(name)
    prompt, count = ids(4, batch=1), 28
    theirs.generation_config.eos_token_id = None  # it would be passed over
    limits = {"max_new_tokens": count, "do_sample": False}
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **limits)
    made = list(ours.generate(prompt, count, temperature=0))
    assert torch.cat(made).tolist() == expected[0, 4:].tolist()


@every_model
@torch.no_grad()
def test_cached_logits_are_full_ones(name):
    _, ours = pair(name)
    text = ids(32)
    cache = KVCache(32)
    parts = [ours.hidden(text[:, t : t + 1], cache) for t in range(32)]
    assert (torch.cat(parts, 1) - ours.hidden(text)).abs().max() < 1e-12


@every_model
def test_every_parameter_learns(name):
    _, ours = pair(name)
    text = ids(32)
    ours(text[:, :-1], text[:, 1:]).backward()
    for parameter_name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 0, parameter_name


REFUSED = [
    ({"model_type": "mixtral"}, "model_type 'mixtral'; known are llama, mistral"),
    ({"sliding_window": 4096}, "sliding_window 4096; here it can be None alone"),
    ({"attention_bias": True}, "attention_bias True; here it can be False alone"),
    ({"hidden_act": "relu"}, "hidden_act 'relu'; here it can be 'silu' alone"),
    ({"num_local_experts": 8}, "num_local_experts 8, which nanorope does not have"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0, which"),
    ({"kv_lora_rank": 512}, "kv_lora_rank 512, which"),
    ({"quantization_config": {"bits": 4}}, r"quantization_config \{'bits': 4\}, which"),
    ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope'; known are default"),
    ({"rope_parameters": {"rope_type": "default", "mrope": 1}}, "rope_parameters .* has mrope 1"),
    ({"rope_parameters": 3}, "rope_parameters 3; it must be a dict"),
    ({"layer_types": ["sliding_attention"]}, "layer_types other than full_attention"),
    ({"hidden_size": -4}, "hidden_size -4; it must be a number above 0"),
    ({"vocab_size": None}, "vocab_size None; it must be a number above 0"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_we_cannot_express_is_refused_by_name(changes, words):
    config = LlamaConfig(**GROUPED).to_dict() | changes
    with pytest.raises(CheckpointError, match=words):
        families.settings_of(config)


def test_weights_that_are_missing_or_left_over_are_named():
    theirs = llama()
    config, tensors = theirs.config.to_dict(), theirs.state_dict()
    less = {n: t for n, t in tensors.items() if "layers.1.mlp.up" not in n}
    with pytest.raises(CheckpointError, match=r"lack model.layers.1.mlp.up_proj.weight"):
        families.weights_of(config, less)
    more = tensors | {"model.layers.0.self_attn.sinks": torch.zeros(4)}
    with pytest.raises(CheckpointError, match=r"hold model.layers.0.self_attn.sinks, which llama"):
        families.weights_of(config, more)
    with pytest.raises(CheckpointError, match=r"lacks hidden_size"):
        families.settings_of({"model_type": "llama"})
