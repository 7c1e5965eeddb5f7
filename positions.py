"""The position encodings of a GPT, one class each.

Position can enter a Transformer at four doors, here in the order of the forward pass: `embed` at
the input, `rotate` on queries and keys, `bias` on the attention scores, `logit_scale` on all of
them. The class `Position` leaves all four shut; an encoding opens one or more and has a name in
POSITIONS. To add one, write its class, put it into POSITIONS, and declare settings of its own in
EncodingConfig. `config` is a model.GPTConfig throughout.

Letters: B batch, T time (tokens read now), S keys (tokens read so far), C channels, H heads,
D head_dim, F = D/2 planes.
"""

import math
from dataclasses import dataclass, field, fields, make_dataclass
from typing import ClassVar, get_type_hints

import torch
from torch import Tensor, nn

import rope

INIT_STD = 0.02  # of token embeddings and weights at initialisation (GPT-2)
# The settings of all scalings: the keyword arguments of the functions in rope.py.
KNOBS = {name: p for scaling in rope.SCALINGS for name, p in rope.settings(scaling).items()}
ScalingConfig = make_dataclass(
    "ScalingConfig",
    [(p.name, p.annotation, field(default=p.default)) for p in KNOBS.values()],
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class EncodingConfig(ScalingConfig):
    """Settings that only some encodings read; the `settings` of each class name its own."""

    beyond: str = "extend"  # past block_size: extend, or interpolate (the table of positions)
    rope_theta: float = 10000.0  # base of the rotary frequencies
    rope_scaling: str = "none"  # none, linear, ntk, ntk_by_parts, yarn, llama3; or dynamic_...
    rope_factor: float | None = None  # target / trained length (None: block_size / rope_train_len)
    rope_train_len: int | None = None  # length the frequencies were trained at (None: block_size)
    rope_fraction: float = 1.0  # share of each head's channels that is rotated
    rope_layout: str = "half"  # channels that share a plane: half (i, i + D/2), interleaved


def require(holds: bool, config, name: str, rule: str) -> None:
    """ValueError naming the setting, its value and the rule, unless the rule holds."""
    if not holds:
        raise ValueError(f"{name} is {getattr(config, name)!r}; it must be {rule}")


@dataclass
class Place:
    """Where the tokens of one forward pass stand.

    The causal mask goes by order, which counts tokens; an encoding goes by positions, which a
    training step may draw (data/training_positions.py). The queries are the last T of the S keys.
    """

    order: Tensor  # (S,) int64: 0 to S - 1
    positions: Tensor  # (S,) or (B, S)
    T: int
    table: tuple = ()  # what Position.table made of it
    mask: Tensor | None = None  # of all T queries and S keys, where layers share one

    @property
    def length(self) -> int:
        """S, the present length of the text."""
        return self.order.size(0)

    @property
    def query_positions(self) -> Tensor:
        return self.positions[..., -self.T :]  # (T,) or (B, T)

    def distance(self, rows: slice) -> Tensor:
        """How far each key lies behind each of some queries: (rows, S), or (B, 1, rows, S)."""
        keys, queries = self.positions, self.query_positions[..., rows]
        distance = queries[..., :, None] - keys[..., None, :]
        return distance if distance.dim() == 2 else distance[:, None]


class Position(nn.Module):
    """No position encoding: four shut doors and the causal mask (NoPE, arXiv:2305.19466).

    The base of every encoding. All layers share one instance under `GPT.position`, unless the
    class is `per_layer`: then each layer has its own, with parameters of its own. When
    `interpolation_factor(length)` changes, what a cache holds is out of date.
    """

    settings: ClassVar[tuple[str, ...]] = ()  # fields of EncodingConfig that it reads
    rotary: ClassVar[bool] = False  # RoPE scalings apply to it
    at_input: ClassVar[bool] = False  # it opens door 1, for all layers at once
    per_layer: ClassVar[bool] = False  # each layer has an instance of its own

    def __init__(self, config, layer: int | None = None, scaled: bool = True):
        """layer: the layer whose own it is. scaled: whether rope_scaling applies to it."""
        super().__init__()
        self.config, self.layer = config, layer

    @classmethod
    def check(cls, config) -> None:
        """ValueError that names a setting this encoding cannot have."""

    def initialise(self) -> None:
        """Set its parameters; those of layers come after all other weights of the model."""

    @property
    def biased(self) -> bool:
        """Whether it opens door 3."""
        return type(self).bias is not Position.bias

    @property
    def is_shared(self) -> bool:
        """Whether door 3 is the same in all layers: it depends on nothing of theirs."""
        return not self.per_layer and type(self).observe is Position.observe

    @property
    def max_length(self) -> float:
        """The number of positions that it can encode."""
        return math.inf

    def interpolation_factor(self, length: int) -> float:
        """How many times closer together positions stand in a text of this length."""
        return 1.0

    def table(self, positions: Tensor, length: int) -> tuple:
        """What the doors need of the positions (T,) or (B, T): made once a forward pass."""
        return ()

    def cut(self, table: tuple, start: int, end: int) -> tuple:
        """The part of a table that belongs to positions `start` to `end`.

        A cache holds the table of all its positions. An encoding whose table has a row a position
        must override this.
        """
        return table

    def embed(self, x: Tensor, at: Place) -> Tensor:
        """Door 1, at the input: token embeddings (B, T, C)."""
        return x

    def rotate(self, q: Tensor, k: Tensor, at: Place) -> tuple[Tensor, Tensor]:
        """Door 2: queries (B, H, T, D) and keys (B, H_kv, T, D) of the tokens read now."""
        return q, k

    def observe(self, x: Tensor, at: Place, cache) -> Place:
        """`at`, with what `bias` needs of the layer's input x (B, T, C); it may use the cache."""
        return at

    def bias(self, at: Place, rows: slice) -> Tensor | None:
        """Door 3, added to the scores of the queries `rows`: (H, rows, S) or (B, H, rows, S)."""
        return None

    def logit_scale(self, at: Place) -> float | Tensor:
        """Door 4: multiplies the scores, beside 1 / sqrt(D). A number, (T, 1) or (H, T, 1)."""
        return 1.0


class Absolute(Position):
    """An encoding added to the tokens at the input; `beyond=interpolate` compresses its table."""

    settings = ("beyond",)
    at_input = True

    def interpolation_factor(self, length: int) -> float:
        interpolates = self.config.beyond == "interpolate"
        return max(1.0, length / self.config.block_size) if interpolates else 1.0


class Learned(Absolute):
    """A trained vector for each of block_size positions (GPT-2); past them it has none."""

    def __init__(self, config, layer: int | None = None, scaled: bool = True):
        super().__init__(config, layer, scaled)
        self.wpe = nn.Parameter(torch.empty(config.block_size, config.n_embd))

    @property
    def max_length(self) -> float:
        return math.inf if self.config.beyond == "interpolate" else self.config.block_size

    def embed(self, x: Tensor, at: Place) -> Tensor:
        factor = self.interpolation_factor(at.length)
        if factor == 1:
            return x + self.wpe[at.query_positions]
        between = at.query_positions / factor  # fractional rows of the table
        row = between.long()
        next_row = (row + 1).clamp(max=self.config.block_size - 1)
        weight = (between - row).to(x.dtype)[..., None]  # (T, 1)
        return x + torch.lerp(self.wpe[row], self.wpe[next_row], weight)


class Sinusoidal(Absolute):
    """Sines and cosines of the position, added to the tokens (arXiv:1706.03762).

    Scaled to the root mean square of the tokens at initialisation: at unit amplitude the table
    would be 35 times as large as what it is added to, and the comparison unfair.
    """

    @classmethod
    def check(cls, config) -> None:
        require(config.n_embd % 2 == 0, config, "n_embd", "even, for a sine and a cosine each")

    def embed(self, x: Tensor, at: Place) -> Tensor:
        inv_freq, _ = rope.frequencies(self.config.n_embd)
        inv_freq = inv_freq / self.interpolation_factor(at.length)
        cos, sin = rope.rotation_table(at.query_positions, inv_freq)
        waves = torch.stack((sin, cos), -1).flatten(-2)  # (T, C): sin, cos, sin, cos, ...
        return x + (INIT_STD * math.sqrt(2) * waves).to(x.dtype)


class Rope(Position):
    """Rotary embedding and its scalings: see rope.py (arXiv:2104.09864).

    Scaling `dynamic_X` is X with factor = max(1, length / trained length), at whatever length.
    """

    settings = (
        *("rope_theta", "rope_scaling", "rope_factor", "rope_train_len"),
        *("rope_fraction", "rope_layout", *KNOBS),
    )
    rotary = True

    def __init__(self, config, layer: int | None = None, scaled: bool = True):
        super().__init__(config, layer, scaled)
        self.scaling = config.rope_scaling.removeprefix("dynamic_") if scaled else "none"
        self.dynamic = scaled and self.scaling != config.rope_scaling
        # No buffer: model.to(bfloat16) would round it, and it has no place in a state dict.
        self.fixed = None if self.dynamic else self.frequencies_at(config.factor)

    @classmethod
    def check(cls, config) -> None:
        layouts = ("half", "interleaved")
        require(config.rope_layout in layouts, config, "rope_layout", " or ".join(layouts))
        for name in ("rope_factor", "rope_train_len"):
            value = getattr(config, name)
            require(value is None or value >= 1, config, name, "at least 1")
        require(0 < config.rope_fraction <= 1, config, "rope_fraction", "above 0, at most 1")
        require(config.rope_theta > 1, config, "rope_theta", "above 1")
        for name in cls.settings:
            value = getattr(config, name)  # past these sizes the formulas leave what floats hold
            sane = type(value) is not float or not value or 1e-15 < abs(value) < 1e15
            require(sane, config, name, "of a size from 1e-15 to 1e15")
        # rope.frequencies refuses the rest. Not cls(config): parameters would be drawn for it.
        Rope(config).frequencies(config.block_size)

    def frequencies_at(self, factor: float) -> rope.Scaled:
        c = self.config
        options = {name: getattr(c, name) for name in rope.settings(self.scaling)}
        channels = int(c.rope_fraction * c.head_dim)
        return rope.frequencies(
            channels, c.rope_theta, self.scaling, factor, c.train_len, **options
        )

    def frequencies(self, length: int) -> rope.Scaled:
        """inv_freq and attention_factor in force at this length."""
        return self.fixed or self.frequencies_at(self.interpolation_factor(length))

    def interpolation_factor(self, length: int) -> float:
        return max(1.0, length / self.config.train_len) if self.dynamic else 1.0

    def table(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor, float]:
        """cos and sin (T, F), the same for all heads, and what multiplies the scores."""
        inv_freq, attention_factor = self.frequencies(length)
        cos, sin = rope.rotation_table(positions, inv_freq)  # (T, F), or (B, T, F)
        if positions.dim() == 2:
            cos, sin = cos[:, None], sin[:, None]
        return cos, sin, attention_factor**2

    def cut(self, table: tuple, start: int, end: int) -> tuple[Tensor, Tensor, float]:
        cos, sin, sharpening = table
        return cos[start:end], sin[start:end], sharpening

    def rotate(self, q: Tensor, k: Tensor, at: Place) -> tuple[Tensor, Tensor]:
        cos, sin, sharpening = at.table
        if self.config.rope_fraction < 1:  # YaRN sharpens what is rotated, as in transformers
            planes, rest = q.tensor_split((2 * cos.size(-1),), -1)
            q = torch.cat((sharpening * planes, rest), -1)
        both = torch.cat((q, k), 1)  # in one operation: half the time for a single token
        both = rope.rotate(both, cos, sin, self.config.rope_layout)
        return both.split_with_sizes((q.size(1), k.size(1)), 1)

    def logit_scale(self, at: Place) -> float | Tensor:
        return at.table[-1] if self.config.rope_fraction == 1 else 1.0


class Alibi(Position):
    """Scores fall with distance, in each head at a slope of its own (arXiv:2108.12409)."""

    def slopes(self) -> list[float]:
        """2^(-8h/H) for h = 1..H; between powers of two, every other slope of twice as many."""
        heads = self.config.n_head
        power = 2 ** int(math.log2(heads))
        whole = [2 ** (-8 * h / power) for h in range(1, power + 1)]
        halves = [2 ** (-4 * h / power) for h in range(1, 2 * power + 1, 2)]
        return (whole + halves)[:heads]

    def table(self, positions: Tensor, length: int) -> tuple[Tensor]:
        return (torch.tensor(self.slopes(), device=positions.device),)  # (H,)

    def bias(self, at: Place, rows: slice) -> Tensor | None:
        (slopes,) = at.table
        return -slopes[:, None, None] * at.distance(rows)


POSITIONS = {
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rope": Rope,
    "alibi": Alibi,
    "none": Position,
}


@dataclass(frozen=True, kw_only=True)
class PositionConfig(EncodingConfig):
    """Which encoding stands in which layer: the part of model.GPTConfig that this file reads."""

    pos: str = "rope"  # position encoding: learned, sinusoidal, rope, alibi or none
    layers: str = "G"  # repeats over the depth: L sees the last `window` tokens, G all (LLLG)
    window: int | None = None  # tokens that L layers see, the present one included (None: all)
    global_pos: str | None = None  # position encoding of the G layers (None: pos)

    @property
    def train_len(self) -> int:
        """The length that scaled frequencies count from."""
        return self.rope_train_len or self.block_size

    @property
    def factor(self) -> float:
        """The factor of a scaling that is not dynamic."""
        return self.rope_factor or max(1.0, self.block_size / self.train_len)

    @property
    def layer_kinds(self) -> str:
        """L or G of each layer."""
        return (self.layers * self.n_layer)[: self.n_layer]

    @property
    def encodings(self) -> dict[str, type[Position]]:
        """The class of position encoding of each kind of layer that there is, L before G."""
        of_kind = {"L": POSITIONS[self.pos], "G": POSITIONS[self.global_pos or self.pos]}
        return {kind: of_kind[kind] for kind in "LG" if kind in self.layer_kinds}

    def can_scale(self, kind: str) -> bool:
        """Whether a RoPE scaling would apply to layers of a kind: they rotate, and see all."""
        return self.encodings[kind].rotary and (kind == "G" or self.window is None)

    def scales(self, kind: str) -> bool:
        """Whether rope_scaling applies to layers of a kind."""
        return self.rope_scaling != "none" and self.can_scale(kind)


def check_positions(config: PositionConfig) -> None:
    """ValueError that names the first setting of the encodings that cannot be, and the rule."""
    for name in ("pos", "global_pos"):
        value = getattr(config, name)
        rule = f"one of {', '.join(POSITIONS)}"
        require(value is None or value in POSITIONS, config, name, rule)
    rule = "extend or interpolate (slide is a way to sample: sample.py --beyond slide)"
    require(config.beyond in ("extend", "interpolate"), config, "beyond", rule)
    check_layers(config)
    check_scaling(config)
    check_idle(config)
    for encoding in dict.fromkeys(config.encodings.values()):
        encoding.check(config)


def check_types(config) -> None:
    """ValueError unless every field of a dataclass instance is of its annotated type."""
    hints = get_type_hints(type(config))
    for setting in fields(config):
        kinds = getattr(hints[setting.name], "__args__", (hints[setting.name],))
        value = getattr(config, setting.name)
        if type(value) is int and float in kinds and abs(value) < 2**1023:
            value = float(value)
            object.__setattr__(config, setting.name, value)
        require(type(value) in kinds, config, setting.name, f"of type {kinds[0].__name__}")
        if type(value) is int:
            require(abs(value) < 2**63, config, setting.name, "below 2**63")
        finite = type(value) is not float or math.isfinite(value)
        require(finite, config, setting.name, "a finite number")


def check_layers(config: PositionConfig) -> None:
    """ValueError where layers, window and global_pos do not fit together."""
    pattern, kinds = config.layers, set(config.layer_kinds)
    require(pattern and set(pattern) <= {"L", "G"}, config, "layers", "of the letters L and G")
    require(config.window is None or config.window > 0, config, "window", "at least 1")
    require(config.window is None or "L" in kinds, config, "window", "left out without an L layer")
    one_kind = config.window is None and config.global_pos is None
    rule = "G without window or global_pos: L and G layers would be the same"
    require(not one_kind or pattern == "G", config, "layers", rule)
    if config.global_pos is not None:
        rule = "left out unless layers has both L and G"
        require(kinds == {"L", "G"}, config, "global_pos", rule)
        at_input = [p for p in (config.pos, config.global_pos) if POSITIONS[p].at_input]
        rule = f"left out: {', '.join(at_input)} positions are added at the input, for all layers"
        require(not at_input, config, "global_pos", rule)


def check_scaling(config: PositionConfig) -> None:
    """ValueError where rope_scaling is unknown, or has no layer to apply to."""
    scalings = [*rope.SCALINGS, *(f"dynamic_{name}" for name in rope.SCALINGS if name != "none")]
    rule = f"one of {', '.join(scalings)}"
    require(config.rope_scaling in scalings, config, "rope_scaling", rule)
    rotates = any(encoding.rotary for encoding in config.encodings.values())
    applies = any(config.scales(kind) for kind in config.encodings)
    rule = "none: no layer both rotates and sees all tokens"
    require(applies or not rotates or config.rope_scaling == "none", config, "rope_scaling", rule)


def check_idle(config: PositionConfig) -> None:
    """ValueError where a setting would do nothing: no encoding in use reads it, or no scaling."""
    read = {name for encoding in config.encodings.values() for name in encoding.settings}
    scaling = config.rope_scaling.removeprefix("dynamic_")
    read -= KNOBS.keys() - rope.settings(scaling).keys()
    if scaling != config.rope_scaling or not rope.reads_factor(scaling):
        read.discard("rope_factor")
    pos = " and ".join(dict.fromkeys((config.pos, config.global_pos or config.pos)))
    rule = f"left out: pos {pos!r} with rope_scaling {config.rope_scaling!r} ignores it"
    for setting in fields(EncodingConfig):
        is_default = getattr(config, setting.name) == setting.default
        require(is_default or setting.name in read, config, setting.name, rule)


def check_factor(config: PositionConfig) -> None:
    """ValueError where a fixed scaling would do nothing, because no factor is given."""
    fixed = config.rope_scaling in rope.SCALINGS and rope.reads_factor(config.rope_scaling)
    idle = fixed and config.rope_factor is None and config.factor == 1
    rule = f"given: without it rope_scaling {config.rope_scaling!r} changes nothing here"
    require(not idle, config, "rope_factor", rule)
