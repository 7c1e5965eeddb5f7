"""Models of transformers as ours: the settings and the weights of each family that we can express.

A family reads its config.json through `Keys`, which notes what was read. What is left over and is
not known to change nothing is refused by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.checkpoint import CheckpointError

# They change no logits of a model that is read: training, generation, and notes.
IDLE = set(
    "architectures transformers_version torch_dtype dtype use_cache initializer_range "
    "_name_or_path transformers_weights "
    "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id "
    "pretraining_tp chunk_size_feed_forward id2label label2id num_labels problem_type return_dict "
    "output_attentions output_hidden_states is_decoder is_encoder_decoder attention_dropout "
    "hidden_dropout classifier_dropout resid_pdrop embd_pdrop attn_pdrop summary_type "
    "summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout "
    "task_specific_params n_ctx max_window_layers is_llama_config rope_interleaved "
    "transformers.js_config auto_map".split()
)
Settings = dict[str, Any]
Tensors = dict[str, Tensor]


class Keys:
    """A config.json, key by key."""

    def __init__(self, config: dict, where: str = "config.json"):
        self.left, self.where = dict(config), where

    def take(self, name: str, default: Any = ...) -> Any:
        """The value, once; CheckpointError if it is missing and has no default."""
        if name not in self.left and default is ...:
            raise CheckpointError(f"{self.where} lacks {name}, which its model_type must have")
        return self.left.pop(name, default)

    def size(self, name: str, default: Any = ...) -> int:
        """A whole number above 0."""
        value = self.take(name, default)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{self.where} has {name} {value!r}; it must be a number above 0")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """CheckpointError unless the value is absent or one of those that we can express."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            can = " or ".join(map(repr, allowed))
            raise CheckpointError(f"{self.where} has {name} {value!r}; here it can be {can} alone")

    def finish(self) -> None:
        """CheckpointError for what nobody has read."""
        left = {k: v for k, v in self.left.items() if k not in IDLE and v not in (None, False)}
        if left:
            parts = ", ".join(f"{name} {value!r}"[:60] for name, value in sorted(left.items()))
            raise CheckpointError(f"{self.where} has {parts}, which nanorope does not have")


# ---- settings


def rotary(keys: Keys, block_size: int) -> Settings:
    """Frequencies: those of transformers 5 in `rope_parameters`, of 4 in two keys."""
    theta = keys.take("rope_theta", keys.take("rotary_emb_base", 10000.0))
    given = keys.take("rope_scaling", None)
    given = keys.take("rope_parameters", None) or given or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{keys.where} has rope_parameters {given!r}; it must be a dict")
    rope = Keys(given, f"rope_parameters of {keys.where}")
    old_name = rope.take("type", "default")
    kind = rope.take("rope_type", old_name)
    share = keys.take("partial_rotary_factor", keys.take("rotary_pct", 1.0))
    settings = {
        "pos": "rope",
        "rope_theta": float(rope.take("rope_theta", theta)),
        "rope_fraction": float(rope.take("partial_rotary_factor", share)),
    }
    if kind not in SCALED:
        known = ", ".join(["default", *SCALED])
        if kind != "default":
            raise CheckpointError(f"{rope.where} has rope_type {kind!r}; known are {known}")
        rope.finish()
        return settings
    settings |= {"rope_scaling": kind, "rope_factor": float(rope.take("factor"))}
    original = rope.take("original_max_position_embeddings", None)
    settings["rope_train_len"] = original or block_size
    for name, ours in SCALED[kind].items():
        if (value := rope.take(name, None)) is not None:
            settings[ours] = value
    rope.finish()
    return settings


SCALED = {  # rope_type: their names of its settings, and ours
    "linear": {},
    "llama3": {n: n for n in ("low_freq_factor", "high_freq_factor")},
    "yarn": {n: n for n in ("beta_fast", "beta_slow", "attention_factor", "truncate")},
}


def llama(keys: Keys) -> Settings:
    """Llama, SmolLM2, TinyLlama, Mistral; Qwen3 has one thing more."""
    C, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    block_size = keys.size("max_position_embeddings")
    keys.only("hidden_act", "silu")
    keys.only("attention_bias", False)
    keys.only("mlp_bias", False)
    if not keys.take("use_sliding_window", True):  # Qwen3 names a window that it does not use
        keys.take("sliding_window", None)
    keys.only("sliding_window", None)
    if set(keys.take("layer_types", None) or ()) - {"full_attention"}:
        raise CheckpointError(f"{keys.where} has layer_types other than full_attention")
    return rotary(keys, block_size) | {
        "block_size": block_size,
        "vocab_size": keys.size("vocab_size"),
        "n_layer": keys.size("num_hidden_layers"),
        "n_head": heads,
        "n_kv_head": keys.take("num_key_value_heads", None) or heads,
        "n_embd": C,
        "head_dim": keys.take("head_dim", None) or C // heads,
        "n_inner": keys.size("intermediate_size"),
        "mlp": "swiglu",
        "norm": "rmsnorm",
        "norm_eps": float(keys.take("rms_norm_eps")),
        "tie_embeddings": bool(keys.take("tie_word_embeddings", False)),
    }


def qwen3(keys: Keys) -> Settings:
    return llama(keys) | {"qk_norm": True}


def gpt2(keys: Keys) -> Settings:
    C = keys.size("n_embd")
    keys.only("scale_attn_weights", True)
    activations = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
    activation = keys.take("activation_function", "gelu_new")
    if activation not in activations:
        raise CheckpointError(f"{keys.where} has activation_function {activation!r}")
    return {
        "pos": "learned",
        "block_size": keys.size("n_positions"),
        "vocab_size": keys.size("vocab_size"),
        "n_layer": keys.size("n_layer"),
        "n_head": keys.size("n_head"),
        "n_embd": C,
        "n_inner": keys.take("n_inner", None) or 4 * C,
        "mlp": activations[activation],
        "norm_eps": float(keys.take("layer_norm_epsilon", 1e-5)),
        "tie_embeddings": bool(keys.take("tie_word_embeddings", True)),
        "bias": True,
    }


def gpt_neox(keys: Keys) -> Settings:
    block_size = keys.size("max_position_embeddings")
    keys.only("hidden_act", "gelu")
    keys.only("attention_bias", True)
    share = keys.take("rotary_pct", 0.25)
    keys.left.setdefault("partial_rotary_factor", share)
    return rotary(keys, block_size) | {
        "block_size": block_size,
        "vocab_size": keys.size("vocab_size"),
        "n_layer": keys.size("num_hidden_layers"),
        "n_head": keys.size("num_attention_heads"),
        "n_embd": keys.size("hidden_size"),
        "n_inner": keys.size("intermediate_size"),
        "norm_eps": float(keys.take("layer_norm_eps", 1e-5)),
        "parallel": bool(keys.take("use_parallel_residual", True)),
        "tie_embeddings": bool(keys.take("tie_word_embeddings", False)),
        "bias": True,
    }


# ---- weights


class Source:
    """Tensors by their names in transformers; a name is read once."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.left = dict(tensors)

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise CheckpointError(f"the weights lack {name}")
        return self.left.pop(name)

    def cat(self, *names: str) -> Tensor:
        """Several, row by row."""
        return torch.cat([self.take(name) for name in names])

    def pair(self, name: str, change: Callable[[Tensor], Tensor] = lambda t: t) -> Tensors:
        """Weight and bias of a layer, by these names."""
        return {part: change(self.take(f"{name}.{part}")) for part in ("weight", "bias")}


def named(prefix: str, parts: Tensors) -> Tensors:
    return {f"{prefix}.{name}": tensor for name, tensor in parts.items()}


def llama_weights(source: Source, settings: Settings) -> Tensors:
    take, made = source.take, {"wte.weight": source.take("model.embed_tokens.weight")}
    for i in range(settings["n_layer"]):
        theirs, ours = f"model.layers.{i}", f"h.{i}"
        qkv = [f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv"]
        inner = [f"{theirs}.mlp.{part}_proj.weight" for part in ("gate", "up")]
        made |= {
            f"{ours}.attn.c_attn.weight": source.cat(*qkv),
            f"{ours}.attn.c_proj.weight": take(f"{theirs}.self_attn.o_proj.weight"),
            f"{ours}.mlp.c_fc.weight": source.cat(*inner),
            f"{ours}.mlp.c_proj.weight": take(f"{theirs}.mlp.down_proj.weight"),
            f"{ours}.ln_1.weight": take(f"{theirs}.input_layernorm.weight"),
            f"{ours}.ln_2.weight": take(f"{theirs}.post_attention_layernorm.weight"),
        }
        if settings.get("qk_norm"):
            for part in "qk":
                name = f"{theirs}.self_attn.{part}_norm.weight"
                made[f"{ours}.attn.{part}_norm.weight"] = take(name)
    made["ln_f.weight"] = take("model.norm.weight")
    return made | head(source, settings, "lm_head.weight")


def head(source: Source, settings: Settings, name: str) -> Tensors:
    if settings["tie_embeddings"]:
        source.left.pop(name, None)  # a copy of the embedding
        return {}
    return {"lm_head.weight": source.take(name)}


def gpt2_weights(source: Source, settings: Settings) -> Tensors:
    """Their layers hold weights as (in, out)."""
    source.left = {n.removeprefix("transformer."): t for n, t in source.left.items()}
    made = {"wte.weight": source.take("wte.weight"), "position.wpe": source.take("wpe.weight")}
    for i in range(settings["n_layer"]):
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            made |= named(
                f"h.{i}.{name}", source.pair(f"h.{i}.{name}", lambda t: t.t().contiguous())
            )
        for name in ("ln_1", "ln_2"):
            made |= named(f"h.{i}.{name}", source.pair(f"h.{i}.{name}"))
        for name in ("attn.bias", "attn.masked_bias"):  # old files hold the causal mask
            source.left.pop(f"h.{i}.{name}", None)
    return made | named("ln_f", source.pair("ln_f")) | head(source, settings, "lm_head.weight")


def gpt_neox_weights(source: Source, settings: Settings) -> Tensors:
    """Their rows of q, k and v go by head; ours by q, k and v."""
    H = settings["n_head"]
    renamed = {
        "attention.dense": "attn.c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "mlp.dense_h_to_4h": "mlp.c_fc",
        "mlp.dense_4h_to_h": "mlp.c_proj",
    }

    def by_part(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (H, 3, -1)).transpose(0, 1).flatten(0, 2)

    made = {"wte.weight": source.take("gpt_neox.embed_in.weight")}
    for i in range(settings["n_layer"]):
        theirs = f"gpt_neox.layers.{i}"
        packed = source.pair(f"{theirs}.attention.query_key_value", by_part)
        made |= named(f"h.{i}.attn.c_attn", packed)
        for name, ours in renamed.items():
            made |= named(f"h.{i}.{ours}", source.pair(f"{theirs}.{name}"))
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):  # of old files: no weights
            source.left.pop(f"{theirs}.attention.{name}", None)
    made |= named("ln_f", source.pair("gpt_neox.final_layer_norm"))
    old = "embed_out.weight"  # the head's name in files of transformers 4
    return made | head(source, settings, old if old in source.left else "lm_head.weight")


FAMILIES: dict[str, tuple[Callable[[Keys], Settings], Callable[[Source, Settings], Tensors]]] = {
    "llama": (llama, llama_weights),
    "mistral": (llama, llama_weights),
    "qwen3": (qwen3, llama_weights),
    "gpt2": (gpt2, gpt2_weights),
    "gpt_neox": (gpt_neox, gpt_neox_weights),
}


def settings_of(config: dict, where: str = "config.json") -> Settings:
    """The fields of our GPTConfig. CheckpointError that names what we cannot express."""
    keys = Keys(config, where)
    kind = keys.take("model_type")
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"{where} has model_type {kind!r}; known are {known}")
    settings = FAMILIES[kind][0](keys)
    keys.finish()
    return settings


def weights_of(config: dict, tensors: Mapping[str, Tensor]) -> Tensors:
    """Our state dict, float32. CheckpointError for weights that are missing or left over."""
    source, settings = Source(tensors), settings_of(config)
    made = FAMILIES[config["model_type"]][1](source, settings)
    if source.left:
        names = ", ".join(sorted(source.left)[:3])
        raise CheckpointError(f"the weights hold {names}, which {config['model_type']} has not")
    return {name: tensor.float() for name, tensor in made.items()}
