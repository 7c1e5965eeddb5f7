"""What is scored of a model: its variants past the trained length, and context lengths."""

import math
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import rope
from model import GPT, GPTConfig
from positions import POSITIONS

LENGTHS = "1/4x,1/2x,1x,2x,4x,8x,16x"  # context lengths, if none are given


@dataclass
class Variant:
    """One way to use a model past its trained length."""

    label: str
    overrides: dict[str, object]  # fields of GPTConfig
    build: Callable[[dict, GPTConfig], GPT] | None = None  # from a state (None: checkpoint.build)
    window: int | None = None  # tokens that the model is shown, the last ones (None: all)


def variants(config: GPTConfig, args: Namespace) -> list[Variant]:
    """The variants of a model to score, of evaluate.py's --rope_scaling and --logit_scaling."""
    offered = scaled_variants(config, args.rope_scaling, args.rope_factor)
    if args.logit_scaling is None:
        return offered
    names = args.logit_scaling.split(",")
    return [with_logit_scale(variant, name, args.logit_c) for variant in offered for name in names]


def with_logit_scale(variant: Variant, name: str, c: float | None) -> Variant:
    """The variant under a logit scale; c: of log_length, 0 to 1."""
    overrides = {"logit_scaling": name, "logit_c": c if name == "log_length" else None}
    label = variant.label if name == "none" else f"{variant.label} {name}"
    return replace(variant, label=label, overrides=variant.overrides | overrides)


def scaled_variants(config: GPTConfig, scalings: str | None, factor: float) -> list[Variant]:
    """The variants of a model to score: scalings if it rotates, else what its class offers."""
    if scalings is None and (config.rope_scaling != "none" or config.rope_train_len):
        return [Variant(config.rope_scaling, {})]  # as it was tuned
    if can_scale(config):
        return scaling_variants(scalings, factor)
    offered = [Variant("none", {"beyond": "extend"})]
    if "beyond" in POSITIONS[config.pos].settings:
        offered.append(Variant("interpolate", {"beyond": "interpolate"}))
    position = POSITIONS[config.pos](replace(config, beyond="extend"))
    if position.max_length < math.inf:
        offered.append(Variant("slide", {"beyond": "extend"}, window=config.block_size))
    return offered


def can_scale(config: GPTConfig) -> bool:
    """Whether a RoPE scaling would apply to a layer."""
    return any(config.can_scale(kind) for kind in config.encodings)


def scaling_variants(scalings: str | None, factor: float) -> list[Variant]:
    """RoPE scalings by name; all of them, fixed and dynamic, if none is named."""
    fixed = [name for name in rope.SCALINGS if rope.reads_factor(name)]
    names = [*rope.SCALINGS, *(f"dynamic_{name}" for name in fixed)]
    if scalings:
        names = scalings.split(",")
    offered = []
    for name in names:
        factors = {"rope_factor": factor} if name in fixed else {}
        offered.append(Variant(name, {"rope_scaling": name} | factors))
    return offered


def lengths_of(text: str | None, trained: int) -> list[int]:
    """Tokens of --lengths: `1024`, or `4x` or `1/4x` the trained length, in rising order.

    None: those of LENGTHS that are whole numbers of tokens.
    """
    words = [word.strip() for word in (LENGTHS if text is None else text).split(",")]
    lengths = {word: length_of(word, trained) for word in words}
    fractions = [word for word, length in lengths.items() if length is None]
    if text is not None and fractions:
        rule = "tokens (1024) or trained lengths (4x, 1/4x), whole and at least 1"
        raise ValueError(f"--lengths has {fractions[0]!r}; it must be {rule} (1x is {trained})")
    return sorted({length for length in lengths.values() if length})


def length_of(word: str, trained: int) -> int | None:
    """Tokens of one length of --lengths; None if it is not a whole number of them."""
    parts = re.fullmatch(r"([0-9]{1,9}(?:/[1-9][0-9]{0,5})?|[0-9]{0,6}\.[0-9]{1,6})(x?)", word)
    length = Fraction(parts[1]) * {"x": trained, "": 1}[parts[2]] if parts else Fraction(0)
    return int(length) if length >= 1 and length.denominator == 1 else None
