"""The position encodings of a GPT, one class each.

Position can enter a Transformer at three doors: at the input, on queries and keys, on the scores.
The class `Position` leaves all three shut; an encoding opens one and has a name in POSITIONS.
`config` is a model.GPTConfig throughout.

Letters: B batch, T time (tokens read now), S tokens read so far, C channels, H heads, D head_dim.
"""

import math
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor, nn

import rope

KNOBS = {name for scaling in rope.SCALINGS for name in rope.settings(scaling)}
INIT_STD = 0.02  # of token embeddings and weights at initialisation (GPT-2)


def require(holds: bool, config, name: str, rule: str) -> None:
    """ValueError naming the setting, its value and the rule, unless the rule holds."""
    if not holds:
        raise ValueError(f"{name} is {getattr(config, name)!r}; it must be {rule}")


class Position(nn.Module):
    """No position encoding: three shut doors and the causal mask (NoPE, arXiv:2305.19466).

    The base of every encoding. `positions` (T,) are those of the tokens read now, `length` is the
    number S of tokens read so far. When `stretch(length)` changes, whatever was computed from
    earlier positions is stale, and a cache is filled anew.
    """

    BEYOND: ClassVar[tuple[str, ...]] = ("extend", "slide")

    def __init__(self, config):
        super().__init__()
        self.config = config

    @staticmethod
    def settings(config) -> set[str]:
        """The rotary settings that have an effect; any other must keep its default."""
        return set()

    @classmethod
    def check(cls, config) -> None:
        """Refuse settings that are wrong or would do nothing: ValueError."""
        rule = f"{' or '.join(cls.BEYOND)} with pos {config.pos!r}"
        require(config.beyond in cls.BEYOND, config, "beyond", rule)
        rule = f"left out: pos {config.pos!r} with rope_scaling {config.rope_scaling!r} ignores it"
        for field in fields(config):
            if field.name.startswith("rope_") or field.name in KNOBS:
                left_out = getattr(config, field.name) == field.default
                require(left_out or field.name in cls.settings(config), config, field.name, rule)

    @property
    def reach(self) -> float:
        """The number of positions it can give a token."""
        return math.inf

    def stretch(self, length: int) -> float:
        """How many times closer together positions are put at this length."""
        return 1.0

    def sharpness(self, length: int) -> float:
        """What multiplies the attention logits, beside 1 / sqrt(D)."""
        return 1.0

    def embed(self, x: Tensor, positions: Tensor, length: int) -> Tensor:
        """Door 1, at the input: token embeddings (B, T, C)."""
        return x

    def table(self, positions: Tensor, length: int) -> tuple[Tensor, ...]:
        """What `rotate` needs: made once a forward pass, shared by all layers."""
        return ()

    def rotate(self, x: Tensor, *table: Tensor) -> Tensor:
        """Door 2, on queries and on keys (B, H, T, D)."""
        return x

    def bias(self, positions: Tensor, length: int) -> Tensor | None:
        """Door 3, on the scores: what is added to them, float32 (H, T, S)."""
        return None


class Learned(Position):
    """A trained vector for each of block_size positions (GPT-2). Past them it has nothing."""

    BEYOND = ("extend", "interpolate", "slide")

    def __init__(self, config):
        super().__init__(config)
        self.wpe = nn.Parameter(torch.empty(config.block_size, config.n_embd))

    @property
    def reach(self) -> float:
        return math.inf if self.config.beyond == "interpolate" else self.config.block_size

    def stretch(self, length: int) -> float:
        return max(1.0, length / self.config.block_size) if self.reach == math.inf else 1.0

    def embed(self, x: Tensor, positions: Tensor, length: int) -> Tensor:
        if (stretch := self.stretch(length)) == 1:
            return x + self.wpe[positions]
        between = positions / stretch  # fractional rows of the table
        row = between.long()
        next_row = (row + 1).clamp(max=self.config.block_size - 1)
        weight = (between - row).to(x.dtype)[:, None]  # (T, 1)
        return x + torch.lerp(self.wpe[row], self.wpe[next_row], weight)


class Sinusoidal(Position):
    """Sines and cosines of the position, added to the tokens (arXiv:1706.03762).

    Scaled to the tokens' rms at initialisation: at unit amplitude the table would be 35 times
    louder than what it is added to, and the comparison rigged.
    """

    BEYOND = ("extend", "interpolate", "slide")

    @classmethod
    def check(cls, config) -> None:
        super().check(config)
        require(config.n_embd % 2 == 0, config, "n_embd", "even, for a sine and a cosine each")

    def stretch(self, length: int) -> float:
        interpolates = self.config.beyond == "interpolate"
        return max(1.0, length / self.config.block_size) if interpolates else 1.0

    def embed(self, x: Tensor, positions: Tensor, length: int) -> Tensor:
        inv_freq, _ = rope.frequencies(self.config.n_embd)
        cos, sin = rope.rotation_table(positions, inv_freq / self.stretch(length))
        waves = torch.stack((sin, cos), -1).flatten(-2)  # (T, C): sin, cos, sin, cos, ...
        return x + (INIT_STD * math.sqrt(2) * waves).to(x.dtype)


class Rope(Position):
    """Rotary embedding and its scalings: see rope.py (arXiv:2104.09864).

    Scaling `dynamic_X` is X with factor = max(1, length / trained length), whatever the length.
    """

    def __init__(self, config):
        super().__init__(config)
        self.scaling = config.rope_scaling.removeprefix("dynamic_")
        self.dynamic = self.scaling != config.rope_scaling
        # No buffer: model.to(bfloat16) would round it, and it has no place in a state dict.
        self.fixed = None if self.dynamic else self.frequencies_at(config.factor)

    @classmethod
    def check(cls, config) -> None:
        dynamic = [f"dynamic_{name}" for name in rope.SCALINGS if name != "none"]
        known = [*rope.SCALINGS, *dynamic]
        require(config.rope_scaling in known, config, "rope_scaling", f"one of {', '.join(known)}")
        layouts = ("half", "interleaved")
        require(config.rope_layout in layouts, config, "rope_layout", " or ".join(layouts))
        super().check(config)
        for name in ("rope_factor", "rope_train_len"):
            value = getattr(config, name)
            require(value is None or value >= 1, config, name, "at least 1")
        require(0 < config.rope_fraction <= 1, config, "rope_fraction", "above 0, at most 1")
        require(config.rope_theta > 1, config, "rope_theta", "above 1")
        for name in sorted(cls.settings(config)):
            value = getattr(config, name)  # past these sizes the formulas leave what floats hold
            sane = type(value) is not float or not value or 1e-15 < abs(value) < 1e15
            require(sane, config, name, "of a size from 1e-15 to 1e15")
        cls(config).frequencies(config.block_size)  # rope.frequencies refuses the rest

    @staticmethod
    def settings(config) -> set[str]:
        scaling = config.rope_scaling.removeprefix("dynamic_")
        always = {
            f"rope_{name}" for name in ("theta", "scaling", "train_len", "fraction", "layout")
        }
        fixed = {"rope_factor"} if scaling == config.rope_scaling != "none" else set()
        return always | fixed | rope.settings(scaling).keys()

    def frequencies_at(self, factor: float) -> tuple[Tensor, float]:
        c = self.config
        knobs = {name: getattr(c, name) for name in rope.settings(self.scaling)}
        channels = int(c.rope_fraction * c.head_dim)
        return rope.frequencies(channels, c.rope_theta, self.scaling, factor, c.train_len, **knobs)

    def frequencies(self, length: int) -> tuple[Tensor, float]:
        """inv_freq and attention_factor in force at this length."""
        return self.fixed or self.frequencies_at(self.stretch(length))

    def stretch(self, length: int) -> float:
        return max(1.0, length / self.config.train_len) if self.dynamic else 1.0

    def sharpness(self, length: int) -> float:
        return self.frequencies(length)[1] ** 2

    def table(self, positions: Tensor, length: int) -> tuple[Tensor, ...]:
        return rope.rotation_table(positions, self.frequencies(length)[0])

    def rotate(self, x: Tensor, *table: Tensor) -> Tensor:
        return rope.rotate(x, *table, layout=self.config.rope_layout)


class Alibi(Position):
    """Scores fall with distance, in each head at a slope of its own (arXiv:2108.12409)."""

    def slopes(self) -> list[float]:
        """2^(-8h/H) for h = 1..H; between powers of two, every other slope of twice as many."""
        heads = self.config.n_head
        power = 2 ** int(math.log2(heads))
        whole = [2 ** (-8 * h / power) for h in range(1, power + 1)]
        halves = [2 ** (-4 * h / power) for h in range(1, 2 * power + 1, 2)]
        return (whole + halves)[:heads]

    def bias(self, positions: Tensor, length: int) -> Tensor | None:
        distance = positions[:, None] - torch.arange(length, device=positions.device)  # (T, S)
        return -torch.tensor(self.slopes(), device=positions.device)[:, None, None] * distance


POSITIONS = {
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rope": Rope,
    "alibi": Alibi,
    "none": Position,
}
