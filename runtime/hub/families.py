"""Families of pretrained models: the names and the layout of their weights.

A family is one entry of FAMILIES. A weight that is missing, left over or of the wrong shape is
refused by its name, before any weight is read.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.corpora import listed
from model import GPTConfig
from runtime.finetuning import shapes_of_weights
from runtime.hub.settings import (
    Keys,
    Settings,
    Source,
    gpt2_settings,
    gpt_neox_settings,
    llama_settings,
    qwen3_settings,
)


def as_it_is(name: str, weight: Tensor, config: GPTConfig) -> Tensor:
    return weight


def transposed(name: str, weight: Tensor, config: GPTConfig) -> Tensor:
    """GPT-2 keeps the matrices of its blocks as (in, out)."""
    return weight.T if name.startswith("h.") and weight.dim() == 2 else weight


def by_kind(name: str, weight: Tensor, config: GPTConfig) -> Tensor:
    """GPT-NeoX packs head, then q, k, v, then channel; here it is q, k, v first."""
    if ".c_attn." not in name:
        return weight
    packed = weight.unflatten(0, (config.n_head, 3, config.head_size))
    return packed.transpose(0, 1).flatten(0, 2)


@dataclass(frozen=True)
class Family:
    """Where the weights of a model lie, and what its settings are called."""

    settings: Callable[[Keys], Settings]
    base: str  # before the names, unless the base model was saved alone
    layer: str  # before the number of a layer
    names: dict[str, tuple[str, ...]]  # of each of our modules: theirs, whose rows it holds
    ours: Callable[[str, Tensor, GPTConfig], Tensor] = as_it_is  # from their layout
    buffers: tuple[str, ...] = ()  # ends of names that are tables, not weights

    def parts(self, name: str, prefix: str) -> list[str]:
        """The names of the weights that our weight `name` is made of."""
        name = name.replace("position.wpe", "wpe.weight")
        module, _, kind = name.rpartition(".")
        before = prefix if module != "lm_head" else ""
        if module.startswith("h."):
            _, layer, module = module.split(".", 2)
            before += f"{self.layer}.{layer}."
        return [f"{before}{part}.{kind}" for part in self.names[module]]


LLAMA_NAMES = {
    "wte": ("embed_tokens",),
    "ln_f": ("norm",),
    "lm_head": ("lm_head",),
    "ln_1": ("input_layernorm",),
    "ln_2": ("post_attention_layernorm",),
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "attn.q_norm": ("self_attn.q_norm",),
    "attn.k_norm": ("self_attn.k_norm",),
    "mlp.c_fc": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.c_proj": ("mlp.down_proj",),
}
GPT2_LAYER = "ln_1 ln_2 attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"
GPT2_NAMES = {name: (name,) for name in f"wte wpe ln_f lm_head {GPT2_LAYER}".split()}
NEOX_NAMES = {
    "wte": ("embed_in",),
    "ln_f": ("final_layer_norm",),
    "lm_head": ("embed_out",),
    "ln_1": ("input_layernorm",),
    "ln_2": ("post_attention_layernorm",),
    "attn.c_attn": ("attention.query_key_value",),
    "attn.c_proj": ("attention.dense",),
    "mlp.c_fc": ("mlp.dense_h_to_4h",),
    "mlp.c_proj": ("mlp.dense_4h_to_h",),
}
FAMILIES = {
    "llama": Family(llama_settings, "model.", "layers", LLAMA_NAMES),
    "mistral": Family(llama_settings, "model.", "layers", LLAMA_NAMES),
    "qwen3": Family(qwen3_settings, "model.", "layers", LLAMA_NAMES),
    "gpt2": Family(gpt2_settings, "transformer.", "h", GPT2_NAMES, transposed),
    "gpt_neox": Family(gpt_neox_settings, "gpt_neox.", "layers", NEOX_NAMES, by_kind),
}
# Tables that old files hold beside the weights.
BUFFER = re.compile(
    r".*\.(rotary_emb\.inv_freq|attn\.(bias|masked_bias)|attention\.(bias|masked_bias))"
)


def family_of(source: Source) -> Family:
    kind = source.config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise source.refuse(f"its model_type is {kind!r}; this code has {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def config_of(source: Source) -> GPTConfig:
    """The model's settings. CheckpointError names what cannot be expressed."""
    keys = Keys(source, source.config)
    vocab_size = keys.need("vocab_size")
    settings = family_of(source).settings(keys)
    keys.finish()
    try:
        return GPTConfig(vocab_size=vocab_size, **settings)
    except ValueError as error:
        raise source.refuse(str(error)) from None


def weights(source: Source, config: GPTConfig) -> dict[str, Tensor]:
    """The state dict of a GPT, float32. CheckpointError names weights that are missing, left over
    or of the wrong shape, before any is read."""
    family = family_of(source)
    prefix = family.base if any(name.startswith(family.base) for name in source.shapes) else ""
    if config.n_layer > len(source.shapes):
        raise source.refuse(f"it has {len(source.shapes)} weights for {config.n_layer} layers")
    shapes = shapes_of_weights(config)
    parts = {name: family.parts(name, prefix) for name in shapes}
    _check_names(source, family, config, parts)
    for name, shape in shapes.items():
        _check_shape(source, family, name, parts[name], shape)
    return {name: _read(source, family, config, name, parts[name]) for name in shapes}


def _check_names(
    source: Source, family: Family, config: GPTConfig, parts: dict[str, list[str]]
) -> None:
    used = {part for of_weight in parts.values() for part in of_weight}
    if missing := sorted(used - source.shapes.keys()):
        raise source.refuse(f"it has no {listed(missing)}")
    spare = {name for name in source.shapes.keys() - used if not BUFFER.fullmatch(name)}
    if config.tie_embeddings:  # some files hold the head twice
        spare -= {f"{part}.weight" for part in family.names["lm_head"]}
    if spare:
        raise source.refuse(f"this code has no place for {listed(sorted(spare))}")


def _check_shape(
    source: Source, family: Family, name: str, parts: list[str], shape: torch.Size
) -> None:
    """The parts lie side by side along the output of a layer."""
    shapes = [source.shapes[part] for part in parts]
    if family.ours is transposed and name.startswith("h."):
        shapes = [part[::-1] for part in shapes]
    flat = {(len(part), *part[1:]) for part in shapes} == {(len(shape), *shape[1:])}
    if flat and sum(part[0] for part in shapes) == shape[0]:
        return
    found = " and ".join(f"{part} {source.shapes[part]}" for part in parts)
    raise source.refuse(f"{found} cannot be {name} {tuple(shape)}")


def _read(source: Source, family: Family, config: GPTConfig, name: str, parts: list[str]) -> Tensor:
    weight = torch.cat([family.ours(name, source.read(part), config) for part in parts])
    if not weight.isfinite().all():
        raise source.refuse(f"{' or '.join(parts)} is not finite")
    return weight.float().contiguous()
