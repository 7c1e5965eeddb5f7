"""Tiny random models that transformers saves, with a tokenizer, for the tests of imports."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
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

V, T = 320, 16
TEXT = "to be or not to be that is the question whether it is nobler in the mind " * 20
LLAMA = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": T,
    "initializer_range": 0.2,
}
GPT2 = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 4 * T}
GPT2 |= {"initializer_range": 0.2}
NEOX = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
NEOX |= {"intermediate_size": 128, "hidden_act": "gelu"}


def scaled(kind, **settings):
    theta = {"rope_type": kind, "rope_theta": 500.0} | settings
    return {"rope_parameters": theta, "max_position_embeddings": 4 * T}


BY_PARTS = {"factor": 4.0, "original_max_position_embeddings": T}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **BY_PARTS}
YARN = {"beta_fast": 8.0, "beta_slow": 0.5, "truncate": False, **BY_PARTS}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, LLAMA),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, LLAMA | {"tie_word_embeddings": True}),
    "llama-head_dim": (LlamaForCausalLM, LlamaConfig, LLAMA | {"head_dim": 12}),
    "llama-bias": (
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA | {"attention_bias": True, "mlp_bias": True},
    ),
    "llama-linear": (LlamaForCausalLM, LlamaConfig, LLAMA | scaled("linear", factor=4.0)),
    "llama-dynamic": (LlamaForCausalLM, LlamaConfig, LLAMA | scaled("dynamic", factor=1.0)),
    "llama-llama3": (LlamaForCausalLM, LlamaConfig, LLAMA | scaled("llama3", **LLAMA3)),
    "llama-yarn": (LlamaForCausalLM, LlamaConfig, LLAMA | scaled("yarn", **YARN)),
    "llama-yarn-mscale": (
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA | scaled("yarn", mscale=1.0, mscale_all_dim=0.5, **BY_PARTS),
    ),
    "mistral": (MistralForCausalLM, MistralConfig, LLAMA | {"sliding_window": None}),
    "mistral-window": (MistralForCausalLM, MistralConfig, LLAMA | {"sliding_window": 5}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, LLAMA | {"head_dim": 8}),
    "qwen3-windows": (
        Qwen3ForCausalLM,
        Qwen3Config,
        LLAMA | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2),
    "gpt2-gelu": (
        GPT2LMHeadModel,
        GPT2Config,
        GPT2 | {"activation_function": "gelu", "n_inner": 40},
    ),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, NEOX),
    "gpt_neox-sequential": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig,
        NEOX | {"use_parallel_residual": False, "tie_word_embeddings": True},
    ),
    "gpt_neox-yarn": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig,
        NEOX | scaled("yarn", partial_rotary_factor=0.5, **BY_PARTS),
    ),
}


def model_of(name, **changes):
    """A model of large weights, biases and norms included, so that each shows in the logits."""
    kind, config, settings = MODELS[name]
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    model = kind(config(**(settings | special | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokenizer(vocab_size=V):
    """Byte-level byte pairs, with <|endoftext|> as token 0."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    return made


def save(folder, model, **options):
    """As transformers saves it, with a tokenizer.json beside. Returns the folder."""
    model.save_pretrained(folder, **options)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def change(folder, **changes):
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "REMOVED"}))
