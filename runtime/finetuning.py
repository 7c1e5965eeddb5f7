"""What a run may change that starts from the weights of another (init_from)."""

import sys
from dataclasses import fields, replace

import torch

from model import GPT, GPTConfig
from positions import KNOBS, EncodingConfig, PositionConfig
from runtime import checkpoint
from runtime.config import Config

# Settings that a run with init_from may change; all others belong to the weights.
FREE = {"block_size", "vocab_size", "dropout", "beyond", "rope_theta", "rope_scaling", *KNOBS}
FREE |= {"rope_factor", "rope_train_len"}
# What a size that may be left out comes to: that is compared, not the setting.
SIZES = {"n_kv_head": "kv_heads", "head_dim": "head_size", "n_inner": "inner"}
OF_ENCODINGS = {field.name for field in fields(EncodingConfig)}  # only some encodings read them
# Which encoding stands in which layer, and what the layer sees: free where the weights fit.
BY_LAYER = {field.name for field in fields(PositionConfig)} - OF_ENCODINGS


def config_for_finetuning(config: Config, state: dict) -> Config:
    """The config of a run that starts from the weights of another (init_from).

    Scaled frequencies count from the length that the weights were first trained at.
    """
    source = checkpoint.config_of(state)
    check_same_architecture(config, source, state["path"])
    print_what_changes(config, source, state["path"])
    scales = {source.rope_scaling, config.rope_scaling} != {"none"} or source.rope_train_len
    rotates = any(encoding.rotary for encoding in config.encodings.values())
    if rotates and config.rope_train_len is None and scales:
        config = replace(config, rope_train_len=source.train_len)
    return config


def check_same_architecture(config: Config, source: GPTConfig, path: str) -> None:
    """Refuse a model that is not the one the weights belong to.

    Encodings may change where the weights fit: from rope to none, as DroPE does (arXiv:2512.12167).
    """
    fixed = {field.name for field in fields(GPTConfig)} - FREE - SIZES.keys() | {*SIZES.values()}
    # A setting of encodings belongs to the weights where the encodings of both models read it.
    fixed -= OF_ENCODINGS - (settings_read(config) & settings_read(source))
    same_vocabulary = replace(source, vocab_size=config.vocab_size)  # checkpoint.build compares it
    if shapes_of_weights(config.gpt) == shapes_of_weights(same_vocabulary):
        fixed -= BY_LAYER
    for name in sorted(fixed, key=lambda name: (name in SIZES.values(), name)):  # set ones first
        saved, value = getattr(source, name), getattr(config, name)
        if saved != value:
            raise ValueError(f"{name} is {value}; it must be {saved}, as {path} was trained with")


def settings_read(config: GPTConfig) -> set[str]:
    """The settings that the encodings in use read."""
    return {name for encoding in config.encodings.values() for name in encoding.settings}


def shapes_of_weights(config: GPTConfig) -> dict[str, torch.Size]:
    """The shape of every entry of a model's state dict."""
    with torch.device("meta"):  # nothing is allocated, and no random number drawn
        return {name: weight.shape for name, weight in GPT(config).state_dict().items()}


def print_what_changes(config: Config, source: GPTConfig, path: str) -> None:
    """A line for each setting of the encodings that differs from the one of the weights."""
    rotation = {"rope_scaling", "rope_theta"} & settings_read(config) & settings_read(source)
    for name in sorted(BY_LAYER | rotation):
        saved, value = getattr(source, name), getattr(config, name)
        if saved != value:
            print(f"{name} {saved} of {path} becomes {value}", file=sys.stderr)
