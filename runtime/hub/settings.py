"""The settings of pretrained models in our terms: from a config.json to fields of GPTConfig.

Nothing is skipped in silence: a setting that this code does not have is refused by its name.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from runtime.checkpoint import CheckpointError

MAX_LAYERS = 10_000  # more is a mistake, or a trap
# Keys of config.json that say how a model was trained, stored or is sampled from. None of them
# changes a logit.
NEUTRAL = set(
    "architectures attention_dropout attn_pdrop bos_token_id chunk_size_feed_forward "
    "classifier_dropout dtype embd_pdrop eos_token_id hidden_dropout id2label initializer_range "
    "label2id model_type pad_token_id resid_pdrop "
    "summary_activation summary_first_dropout summary_proj_to_labels summary_type "
    "summary_use_proj task_specific_params torch_dtype transformers_version use_cache "
    "_name_or_path is_llama_config gradient_checkpointing _attn_implementation_autoset return_dict "
    "transformers.js_config".split()
)
Settings = dict[str, Any]


@dataclass
class Source:
    """A pretrained model as it lies on the disk: nothing of its weights has been read yet."""

    path: str  # for messages
    config: Settings  # as config.json of transformers has it
    shapes: dict[str, tuple[int, ...]]  # of each weight, by transformers' name
    read: Callable[[str], Tensor]
    tokenizer: Settings = field(default_factory=dict)  # as Tokenizer.to_meta has it

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} cannot be imported: {reason}")


class Keys:
    """The keys of a config, each to be taken once."""

    def __init__(self, source: Source, values: Settings, where: str = "its config"):
        self.source, self.left, self.where = source, dict(values), where

    def take(self, *names: str, default: object = None) -> Any:
        """The value of the first of these keys that is not null; all of them are taken."""
        values = [self.left.pop(name, None) for name in names]
        return next((value for value in values if value is not None), default)

    def need(self, *names: str) -> Any:
        value = self.take(*names)
        if value is None:
            raise self.source.refuse(f"{self.where} has no {names[0]}")
        return value

    def count(self, name: str) -> int:
        """A number of layers: lists of that length are made before GPTConfig has seen it."""
        value = self.need(name)
        if type(value) is not int or not 1 <= value <= MAX_LAYERS:
            rule = f"it must be a number of layers up to {MAX_LAYERS:,}"
            raise self.source.refuse(f"{self.where} has {name} {repr(value)[:60]}; {rule}")
        return value

    def expect(self, name: str, *allowed: object) -> None:
        """Refuse a value other than null and the ones that this code computes."""
        value = self.take(name)
        if value is not None and value not in allowed:
            raise self.source.refuse(
                f"{self.where} has {name} {repr(value)[:60]}, which this code lacks"
            )

    def finish(self) -> None:
        """Refuse what nobody took."""
        unknown = {k: v for k, v in self.left.items() if k not in NEUTRAL and v is not None}
        for name, value in sorted(unknown.items()):
            text = repr(value)[:60]
            raise self.source.refuse(f"{self.where} has {name} {text}, which this code lacks")


# ---- settings


def rope_settings(keys: Keys) -> Settings:
    """Base, rotated share and scaling of RoPE: rope_parameters, or what it was before."""
    theta = keys.take("rope_theta", "rotary_emb_base", default=10000.0)
    fraction = keys.take("partial_rotary_factor", "rotary_pct", default=1.0)
    original = keys.take("original_max_position_embeddings")
    values = [keys.take("rope_parameters"), keys.take("rope_scaling")]
    given = next((value for value in values if value), {})
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise keys.source.refuse("rope_parameters are not one set for all layers")
    scaling = Keys(keys.source, given, "rope_parameters")
    kind = scaling.take("rope_type", "type", default="default")
    settings = {"rope_theta": scaling.take("rope_theta", default=theta)}
    settings["rope_fraction"] = scaling.take("partial_rotary_factor", default=fraction)
    original = scaling.take("original_max_position_embeddings", default=original)
    if not isinstance(kind, str) or kind not in SCALINGS:
        known = ", ".join(SCALINGS)
        raise keys.source.refuse(f"rope_type is {kind!r}; this code reads {known}")
    longest = keys.left.get("max_position_embeddings")
    settings |= SCALINGS[kind](scaling, original or longest, longest)
    scaling.finish()
    return settings


def _no_scaling(keys: Keys, original: int, longest: int) -> Settings:
    keys.expect("factor", 1, 1.0)
    return {}


def _linear(keys: Keys, original: int, longest: int) -> Settings:
    length = {"rope_train_len": original} if original != longest else {}
    return {"rope_scaling": "linear", "rope_factor": keys.need("factor")} | length


def _dynamic(keys: Keys, original: int, longest: int) -> Settings:
    # transformers' factor stretches the base at the trained length already; ours has none.
    keys.expect("factor", 1, 1.0)
    return {"rope_scaling": "dynamic_ntk", "rope_train_len": original}


def _llama3(keys: Keys, original: int, longest: int) -> Settings:
    settings = {"rope_scaling": "llama3", "rope_factor": keys.need("factor")}
    settings |= {name: keys.need(name) for name in ("low_freq_factor", "high_freq_factor")}
    return settings | {"rope_train_len": original}


def _yarn(keys: Keys, original: int, longest: int) -> Settings:
    factor = keys.take("factor")
    if factor is None and isinstance(longest, int) and isinstance(original, int):
        factor = longest / max(1, original)
    settings = {"rope_scaling": "yarn", "rope_factor": factor, "rope_train_len": original}
    settings["truncate"] = keys.take("truncate", default=True)
    settings["beta_fast"] = keys.take("beta_fast", default=32.0)
    settings["beta_slow"] = keys.take("beta_slow", default=1.0)
    settings["attention_factor"] = keys.take("attention_factor")
    scales = keys.take("mscale"), keys.take("mscale_all_dim")
    numbers = all(isinstance(value, int | float) for value in (factor, *scales))
    # transformers reads the two together or not at all.
    if settings["attention_factor"] is None and all(scales) and numbers and factor > 1:
        above, below = (0.1 * scale * math.log(factor) + 1 for scale in scales)
        settings["attention_factor"] = above / below
    return settings


SCALINGS = {
    "default": _no_scaling,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
}


def activation(keys: Keys, name: str, default: str, **known: str) -> str:
    value = keys.take(name, default=default)
    if not isinstance(value, str) or value not in known:
        raise keys.source.refuse(f"{name} is {value!r}; this code has {', '.join(known)}")
    return known[value]


def sizes(keys: Keys) -> Settings:
    """What the families of LLaMA and GPT-NeoX call alike."""
    settings = {
        "pos": "rope",
        "n_layer": keys.count("num_hidden_layers"),
        "n_embd": keys.need("hidden_size"),
        "n_head": keys.need("num_attention_heads"),
        "n_inner": keys.need("intermediate_size"),
    }
    settings |= rope_settings(keys)
    return settings | {"block_size": keys.need("max_position_embeddings")}


def llama_settings(keys: Keys) -> Settings:
    """LLaMA, SmolLM2, TinyLlama, Mistral."""
    settings = sizes(keys) | {"norm": "rmsnorm", "mlp": "swiglu"}
    activation(keys, "hidden_act", "silu", silu="swiglu")
    settings["norm_eps"] = keys.take("rms_norm_eps", default=1e-6)
    settings["n_kv_head"] = keys.take("num_key_value_heads")
    settings["head_dim"] = keys.take("head_dim")
    settings["tie_embeddings"] = keys.take("tie_word_embeddings", default=False)
    settings["bias"] = keys.take("attention_bias", default=False)
    keys.expect("mlp_bias", settings["bias"])
    keys.expect("pretraining_tp", 1)
    keys.expect("rope_interleaved", False)
    if settings["rope_fraction"] != 1:
        raise keys.source.refuse("a Llama with partly rotated heads is read as a whole by others")
    return settings | windows(keys, settings["n_layer"], settings["block_size"])


def windows(keys: Keys, n_layer: int, longest: int) -> Settings:
    """Sliding windows, of all layers (Mistral) or of those that layer_types names (Qwen3)."""
    window = keys.take("sliding_window")
    window = window if keys.take("use_sliding_window", default=True) else None
    first = keys.take("max_window_layers", default=0)
    by_default = [
        "full_attention" if not window or i < first else "sliding_attention" for i in range(n_layer)
    ]
    types = keys.take("layer_types", default=by_default)
    if (
        not isinstance(types, list)
        or len(types) != n_layer
        or not {*map(str, types)} <= LETTERS.keys()
    ):
        known = " or ".join(LETTERS)
        raise keys.source.refuse(f"layer_types must have {n_layer} layers, each {known}")
    layers = "".join(LETTERS[kind] for kind in types)
    if "L" not in layers or (isinstance(window, int) and window >= longest):
        return {}
    return {"window": window, "layers": layers if "G" in layers else "L"}


LETTERS = {"full_attention": "G", "sliding_attention": "L"}


def qwen3_settings(keys: Keys) -> Settings:
    keys.left.setdefault("use_sliding_window", False)  # transformers' defaults
    keys.left.setdefault("max_window_layers", 28)
    settings = llama_settings(keys)
    return settings | {"qk_norm": True, "head_dim": settings["head_dim"] or 128}


GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def gpt2_settings(keys: Keys) -> Settings:
    settings = {"pos": "learned", "bias": True}
    settings["block_size"] = keys.need("n_positions", "n_ctx")
    settings |= {"n_layer": keys.count("n_layer")}
    settings |= {name: keys.need(name) for name in ("n_embd", "n_head")}
    settings["n_inner"] = keys.take("n_inner")
    settings["mlp"] = activation(keys, "activation_function", "gelu_new", **GELUS)
    settings["norm_eps"] = keys.take("layer_norm_epsilon", default=1e-5)
    settings["tie_embeddings"] = keys.take("tie_word_embeddings", default=True)
    keys.expect("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
        keys.expect(name, False)
    keys.expect("add_cross_attention", False)
    return settings


def gpt_neox_settings(keys: Keys) -> Settings:
    """GPT-NeoX and Pythia."""
    if "rotary_pct" not in keys.left:  # transformers' default
        keys.left.setdefault("partial_rotary_factor", 0.25)
    settings = sizes(keys) | {"bias": True}
    settings["mlp"] = activation(keys, "hidden_act", "gelu", gelu_fast="gelu_tanh", **GELUS)
    settings["norm_eps"] = keys.take("layer_norm_eps", default=1e-5)
    settings["parallel"] = keys.take("use_parallel_residual", default=True)
    settings["tie_embeddings"] = keys.take("tie_word_embeddings", default=False)
    keys.expect("attention_bias", True)
    keys.expect("is_decoder", False, True)
    return settings
