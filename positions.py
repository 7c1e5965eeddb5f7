"""The position encodings of a GPT, one class each.

Position can enter a Transformer at four doors, here in the order of the forward pass: `embed` at
the input, `rotate` on queries and keys, `bias` on the attention scores, `logit_scale` on all of
them. The class `Position` leaves all four shut; an encoding opens one or more and has a name in
POSITIONS. To add one, write its class, put it into POSITIONS, and declare settings of its own in
EncodingConfig. A logit scale that grows with the query's position goes with any encoding: see
LOGIT_SCALES. `config` is a model.GPTConfig throughout.

Letters: B batch, T time (tokens read now), S keys (tokens read so far), C channels, H heads,
D head_dim, F = D/2 planes.
"""

import math
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
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
    rope_scaling: str = "none"  # none, linear, ntk, ntk_by_parts, yarn, llama3, clip; dynamic_...
    rope_factor: float | None = None  # target / trained length (None: block_size / rope_train_len)
    rope_train_len: int | None = None  # length the frequencies were trained at (None: block_size)
    rope_fraction: float = 1.0  # share of each head's channels that is rotated (GPT-NeoX)
    rope_p: float = 1.0  # share of the planes that rotate, the fastest of them (p-RoPE)
    rope_learned: bool = False  # whether a learned factor multiplies each frequency (LeRoPE)
    rope_layout: str = "half"  # channels that share a plane: half (i, i + D/2), interleaved
    t5_max_distance: int | None = None  # of t5's last range (None: block_size, at least 32)
    fox_bias: float = 0.0  # forget gates start at sigmoid(fox_bias)
    alibi_heads: int | None = None  # heads that hard_alibi restricts (None: half of them)


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
        """How far each key lies behind each of some queries: (1, rows, S), or (B, 1, rows, S).

        Below 0 for a key that the causal mask hides.
        """
        keys, queries = self.positions, self.query_positions[..., rows]
        return (queries[..., :, None] - keys[..., None, :]).unsqueeze(-3)


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

    def __init__(self, config, layer: int | None = None, kind: str = "G"):
        """layer: the layer whose own it is. kind: of the layers that it serves, L or G."""
        super().__init__()
        self.config, self.layer, self.kind = config, layer, kind

    @classmethod
    def check(cls, config) -> None:
        """ValueError that names a setting this encoding cannot have."""

    def initialise(self) -> None:
        """Set its parameters; those of layers come after all other weights of the model."""

    def clamp(self) -> None:
        """Put parameters that must lie in a range back into it, after an optimizer step."""

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

    def __init__(self, config, layer: int | None = None, kind: str = "G"):
        super().__init__(config, layer, kind)
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
        *("rope_fraction", "rope_p", "rope_learned", "rope_layout", *KNOBS),
    )
    rotary = True

    def __init__(self, config, layer: int | None = None, kind: str = "G"):
        super().__init__(config, layer, kind)
        scaled = config.scales(kind)
        self.scaling = config.rope_scaling.removeprefix("dynamic_") if scaled else "none"
        self.dynamic = scaled and self.scaling != config.rope_scaling
        # No buffer: model.to(bfloat16) would round it, and it has no place in a state dict.
        self.fixed = None if self.dynamic else self.frequencies_at(config.factor)
        if config.rope_learned:  # the logarithms of what multiplies the frequencies
            self.alpha = nn.Parameter(torch.zeros(self.channels // 2))

    @classmethod
    def check(cls, config) -> None:
        layouts = ("half", "interleaved")
        require(config.rope_layout in layouts, config, "rope_layout", " or ".join(layouts))
        for name in ("rope_factor", "rope_train_len"):
            value = getattr(config, name)
            require(value is None or value >= 1, config, name, "at least 1")
        require(0 < config.rope_fraction <= 1, config, "rope_fraction", "above 0, at most 1")
        require(0 < config.rope_p <= 1, config, "rope_p", "above 0, at most 1")
        for name in cls.settings:
            value = getattr(config, name)  # past these sizes the formulas leave what floats hold
            sane = type(value) is not float or not value or 1e-15 < abs(value) < 1e15
            require(sane, config, name, "of a size from 1e-15 to 1e15")
        # rope.frequencies refuses the rest. Not cls(config): parameters would be drawn for it.
        for kind in config.encodings:
            Rope(config, kind=kind).frequencies(config.block_size)

    @property
    def channels(self) -> int:
        """How many of a head are rotated."""
        return int(self.config.rope_fraction * self.config.head_size)

    def frequencies_at(self, factor: float) -> rope.Scaled:
        c = self.config
        options = {name: getattr(c, name) for name in rope.settings(self.scaling)}
        theta = c.theta(self.kind)
        return rope.frequencies(
            self.channels, theta, self.scaling, factor, c.train_len, c.rope_p, **options
        )

    def frequencies(self, length: int) -> rope.Scaled:
        """inv_freq and attention_factor in force at this length."""
        return self.fixed or self.frequencies_at(self.interpolation_factor(length))

    def interpolation_factor(self, length: int) -> float:
        return max(1.0, length / self.config.train_len) if self.dynamic else 1.0

    def table(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor, float]:
        """cos and sin (T, F), the same for all heads, and what multiplies the scores."""
        inv_freq, attention_factor = self.frequencies(length)
        if self.config.rope_learned:  # arXiv:2607.10134; one for all heads and layers
            inv_freq = inv_freq.to(self.alpha.device) * self.alpha.double().exp()
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
        return (per_head(torch.tensor(self.slopes(), device=positions.device)),)

    def bias(self, at: Place, rows: slice) -> Tensor | None:
        (slopes,) = at.table
        return -slopes * at.distance(rows)


class HardAlibi(Position):
    """Head h of the first alibi_heads sees its last h + 1 tokens; the others have no position.

    The control that generalizes in length on copying (arXiv:2402.01032).
    """

    settings = ("alibi_heads",)

    @classmethod
    def check(cls, config) -> None:
        heads = config.alibi_heads
        fits = heads is None or 1 <= heads <= config.n_head
        require(fits, config, "alibi_heads", f"from 1 to n_head ({config.n_head})")

    def bias(self, at: Place, rows: slice) -> Tensor | None:
        heads, distance = self.config.n_head, at.distance(rows)
        restricted = self.config.alibi_heads or max(1, heads // 2)
        head = per_head(torch.arange(heads, device=distance.device))
        hidden = (head < restricted) & (distance > head)  # (H, rows, S)
        return torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, -math.inf)


class T5(Position):
    """A learned bias for each of 32 ranges of distance, shared by all layers (arXiv:1910.10683).

    Distances below 16 have one each; the ranges then grow in proportion up to t5_max_distance,
    and the last one holds all that is farther. T5 itself has 128 there; the trained length is ours.
    """

    settings = ("t5_max_distance",)
    BUCKETS = 32

    def __init__(self, config, layer: int | None = None, kind: str = "G"):
        super().__init__(config, layer, kind)
        self.by_bucket = nn.Parameter(torch.empty(self.BUCKETS, config.n_head))

    @classmethod
    def check(cls, config) -> None:
        end = config.t5_max_distance
        require(end is None or end > cls.BUCKETS // 2, config, "t5_max_distance", "above 16")

    def bucket(self, distance: Tensor) -> Tensor:
        """The range that each distance falls into: int64, of the same shape."""
        exact = self.BUCKETS // 2
        end = self.config.t5_max_distance or max(self.config.block_size, self.BUCKETS)
        distance = distance.clamp(min=0)
        octaves = torch.log(distance.clamp(min=1).float() / exact) / math.log(end / exact)
        far = (exact + octaves * exact).long().clamp(max=self.BUCKETS - 1)
        return torch.where(distance < exact, distance, far)

    def bias(self, at: Place, rows: slice) -> Tensor | None:
        bias = F.embedding(self.bucket(at.distance(rows)), self.by_bucket)  # (.., 1, rows, S, H)
        return bias.transpose(-4, -1).squeeze(-1)  # (.., H, rows, S)


class Kerple(Position):
    """Scores fall with the logarithm of distance, by -p ln(1 + a d) (arXiv:2205.09921).

    p and a are learned for each head, and shared by all layers. They stay at 0.01 or above.
    """

    LEAST = 0.01

    def __init__(self, config, layer: int | None = None, kind: str = "G"):
        super().__init__(config, layer, kind)
        self.p = nn.Parameter(torch.empty(config.n_head))
        self.a = nn.Parameter(torch.empty(config.n_head))

    @torch.no_grad()
    def initialise(self) -> None:
        self.p.uniform_(0, 2)
        self.a.uniform_(0, 1)
        self.clamp()

    @torch.no_grad()
    def clamp(self) -> None:  # in the forward pass, it would leave no gradient to return with
        self.p.clamp_(min=self.LEAST)
        self.a.clamp_(min=self.LEAST)

    def bias(self, at: Place, rows: slice) -> Tensor | None:
        distance = at.distance(rows).clamp(min=0)
        return -per_head(self.p) * torch.log1p(per_head(self.a) * distance)


class Fire(Position):
    """An MLP of the distance, as a share of the query's position (arXiv:2310.04418).

    The bias is MLP(ln(1 + |c| d) / ln(1 + |c| max(i, |m| L))) at distance d from query i: within
    the trained length L and past it, the MLP is asked for inputs from 0 to 1. All layers share it.
    """

    WIDTH, EPS = 32, 1e-6

    def __init__(self, config, layer: int | None = None, kind: str = "G"):
        super().__init__(config, layer, kind)
        self.mlp = nn.Sequential(
            nn.Linear(1, self.WIDTH),
            nn.ReLU(),
            nn.Linear(self.WIDTH, config.n_head, bias=False),  # softmax would cancel a bias
        )
        self.c = nn.Parameter(torch.empty(()))
        self.m = nn.Parameter(torch.empty(()))

    @torch.no_grad()
    def initialise(self) -> None:
        for linear in (self.mlp[0], self.mlp[2]):
            linear.reset_parameters()
        self.c.fill_(0.1)
        self.m.fill_(1.0)

    def bias(self, at: Place, rows: slice) -> Tensor | None:
        distance = at.distance(rows).clamp(min=0)
        queries = column(at.query_positions[..., rows])  # (rows, 1), or (B, 1, rows, 1)
        least = (self.m * self.config.block_size).abs()
        longest = torch.maximum(queries.to(least.dtype), least)
        share = self.squash(distance) / (self.squash(longest) + self.EPS)
        bias = self.mlp(share[..., None])  # (.., 1, rows, S, H)
        return bias.transpose(-4, -1).squeeze(-1)  # (.., H, rows, S)

    def squash(self, distance: Tensor) -> Tensor:
        return torch.log1p(self.c.abs() * distance)


class Fox(Position):
    """A gate a head and token lowers all scores across it: the Forgetting Transformer.

    A query at i sees the key at j through the product of the gates f of the tokens in (j, i],
    f = sigmoid(w x + b) from the layer's input (arXiv:2503.02130). It has no other position. Gates
    start near sigmoid(fox_bias), which sets how far back the untrained model sees.
    """

    settings = ("fox_bias",)
    per_layer = True

    def __init__(self, config, layer: int | None = None, kind: str = "G"):
        super().__init__(config, layer, kind)
        self.gate = nn.Linear(config.n_embd, config.n_head)

    def initialise(self) -> None:
        nn.init.normal_(self.gate.weight, 0.0, INIT_STD)
        nn.init.constant_(self.gate.bias, self.config.fox_bias)

    def observe(self, x: Tensor, at: Place, cache) -> Place:
        log_f = F.logsigmoid(at_least_float32(self.gate(x))).mT  # (B, H, T)
        if cache is not None:
            (log_f,) = cache.append((self.layer, "log_f"), log_f)  # (B, H, S)
        return replace(at, table=(log_f.cumsum(-1),))

    def bias(self, at: Place, rows: slice) -> Tensor | None:
        (total,) = at.table
        queries = total[..., -at.T :][..., rows]
        return queries[..., :, None] - total[..., None, :]  # (B, H, rows, S)


class Pope(Position):
    """Content sets magnitudes, position alone sets angles: polar coordinates (arXiv:2509.10534).

    Each of the D channels has a frequency and, in keys, a learned angle delta in [-2 pi, 0] for
    each head. Queries and keys become 2 D channels wide.
    """

    settings = ("rope_theta",)
    per_layer = True

    def __init__(self, config, layer: int | None = None, kind: str = "G"):
        super().__init__(config, layer, kind)
        self.delta = nn.Parameter(torch.zeros(config.kv_heads, 1, config.head_size))

    def initialise(self) -> None:
        nn.init.zeros_(self.delta)

    @torch.no_grad()
    def clamp(self) -> None:  # 0 is the edge: a clamp in the forward pass would hold it there
        self.delta.clamp_(-2 * math.pi, 0)

    def table(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin (T, D), the same for all heads."""
        inv_freq = rope.unscaled(2 * self.config.head_size, self.config.theta(self.kind))
        cos, sin = rope.rotation_table(positions, inv_freq)
        return (cos, sin) if positions.dim() == 1 else (cos[:, None], sin[:, None])

    def cut(self, table: tuple, start: int, end: int) -> tuple[Tensor, Tensor]:
        return tuple(part[start:end] for part in table)

    def rotate(self, q: Tensor, k: Tensor, at: Place) -> tuple[Tensor, Tensor]:
        cos, sin = at.table
        mu_q, mu_k = (F.softplus(at_least_float32(x)) for x in (q, k))
        # cos and sin of an angle plus delta
        across, along = self.delta.cos(), self.delta.sin()  # (H_kv, 1, D)
        cos_k, sin_k = cos * across - sin * along, sin * across + cos * along
        polar_q = torch.cat((mu_q * cos, mu_q * sin), -1)  # (B, H, T, 2 D)
        polar_k = torch.cat((mu_k * cos_k, mu_k * sin_k), -1)
        return polar_q.type_as(q), polar_k.type_as(k)


POSITIONS = {
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rope": Rope,
    "alibi": Alibi,
    "none": Position,
    "hard_alibi": HardAlibi,
    "t5": T5,
    "kerple": Kerple,
    "fire": Fire,
    "fox": Fox,
    "pope": Pope,
}


class LogitScale(nn.Module):
    """No scale that grows with the position: the base of those that do, one instance a layer.

    They multiply the scores of a query at position i (0, 1, ..) beside 1 / sqrt(D) and whatever
    the encoding has at door 4. Where there are L and G layers, G layers alone have them.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config

    def interpolation_factor(self, length: int) -> float:
        """As of Position: what a cache holds rests on it."""
        return 1.0

    def forward(self, at: Place) -> float | Tensor:
        """A number, (T, 1), (H, T, 1), or (B, H or 1, T, 1)."""
        return 1.0


class LogN(LogitScale):
    """max(1, ln(i + 1) / ln L): the entropy of attention stays as it was at L (J. Su; Qwen)."""

    def forward(self, at: Place) -> float | Tensor:
        log_count = logarithm(column(at.query_positions + 1))
        return (log_count / math.log(self.config.train_len)).clamp(min=1)


class SSMax(LogitScale):
    """s ln(i + 1) + b, with s and b learned for each head and layer (arXiv:2501.19399)."""

    def __init__(self, config):
        super().__init__(config)
        self.s = nn.Parameter(torch.zeros(config.n_head))
        self.b = nn.Parameter(torch.ones(config.n_head))

    def forward(self, at: Place) -> float | Tensor:
        log_count = logarithm(column(at.query_positions + 1))
        return per_head(self.s) * log_count + per_head(self.b)


class Llama4(LogitScale):
    """1 + 0.1 ln(1 + floor((i + 1) / L)), in Llama 4's layers without positions."""

    def forward(self, at: Place) -> float | Tensor:
        trained_lengths = (at.query_positions + 1) // self.config.train_len
        return 1 + 0.1 * logarithm(1 + column(trained_lengths))


class LogLength(LogitScale):
    """1 + c ln(length / L), the same for all queries (DroPE, arXiv:2512.12167).

    logit_c is fitted at read time, on text that is not evaluated on.
    """

    def interpolation_factor(self, length: int) -> float:
        return max(1.0, length / self.config.train_len)

    def forward(self, at: Place) -> float | Tensor:
        return 1 + self.config.logit_c * math.log(self.interpolation_factor(at.length))


LOGIT_SCALES = {
    "none": LogitScale,
    "logn": LogN,
    "ssmax": SSMax,
    "llama4": Llama4,
    "log_length": LogLength,
}


def per_head(values: Tensor) -> Tensor:
    """A number a head (H,) in the shape of scores: (H, 1, 1)."""
    return values[:, None, None]


def column(positions: Tensor) -> Tensor:
    """Something of each query in the shape of scores: (T, 1), or (B, 1, T, 1)."""
    return positions[:, None] if positions.dim() == 1 else positions[:, None, :, None]


def logarithm(counts: Tensor) -> Tensor:
    """In float64, where the device has it: mps does not."""
    return counts.to(torch.float32 if counts.device.type == "mps" else torch.float64).log()


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x


@dataclass(frozen=True, kw_only=True)
class PositionConfig(EncodingConfig):
    """Which encoding stands in which layer: the part of model.GPTConfig that this file reads."""

    pos: str = "rope"  # position encoding, by its name in POSITIONS
    layers: str = "G"  # repeats over the depth: L sees the last `window` tokens, G all (LLLG)
    window: int | None = None  # tokens that L layers see, the present one included (None: all)
    global_pos: str | None = None  # position encoding of the G layers (None: pos)
    global_rope_theta: float | None = None  # base of G layers that rotate (None: rope_theta)
    logit_scaling: str = "none"  # what multiplies the scores of later queries, in G layers alone
    logit_c: float | None = None  # of logit_scaling log_length

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

    def theta(self, kind: str) -> float:
        """The base of the frequencies in layers of a kind."""
        of_kind = self.global_rope_theta if kind == "G" else None
        return of_kind or self.rope_theta

    def logit_scale(self, kind: str) -> type[LogitScale]:
        return LOGIT_SCALES[self.logit_scaling if kind == "G" else "none"]


def check_positions(config: PositionConfig) -> None:
    """ValueError that names the first setting of the encodings that cannot be, and the rule."""
    rule = "extend or interpolate (slide is a way to sample: sample.py --beyond slide)"
    require(config.beyond in ("extend", "interpolate"), config, "beyond", rule)
    check_logit_scale(config)
    check_scaling(config)
    check_idle(config)
    for encoding in dict.fromkeys(config.encodings.values()):
        encoding.check(config)


def check_logit_scale(config: PositionConfig) -> None:
    """ValueError where logit_scaling is unknown, has no layer to apply to, or lacks its c."""
    rule = f"one of {', '.join(LOGIT_SCALES)}"
    require(config.logit_scaling in LOGIT_SCALES, config, "logit_scaling", rule)
    applies = config.logit_scaling == "none" or "G" in config.layer_kinds
    require(applies, config, "logit_scaling", "none: no layer sees all tokens")
    reads_c = config.logit_scaling == "log_length"
    rule = "given with" if reads_c else "left out without"
    given = config.logit_c is not None
    require(given == reads_c, config, "logit_c", f"{rule} logit_scaling 'log_length'")


def check_scaling(config: PositionConfig) -> None:
    """ValueError where rope_scaling or a base is out of range, or has no layer to apply to."""
    dynamic = [f"dynamic_{name}" for name in rope.SCALINGS if rope.reads_factor(name)]
    scalings = [*rope.SCALINGS, *dynamic]
    rule = f"one of {', '.join(scalings)}"
    require(config.rope_scaling in scalings, config, "rope_scaling", rule)
    for name in ("rope_theta", "global_rope_theta"):
        value = getattr(config, name)
        require(value is None or value > 1, config, name, "above 1")
        require(value is None or value < 1e15, config, name, "of a size from 1e-15 to 1e15")
    two_bases = "rope_theta" in POSITIONS[config.global_pos or config.pos].settings
    two_bases = two_bases and {*config.encodings} == {"L", "G"}
    rule = "left out unless layers has both L and G, and G rotates"
    require(config.global_rope_theta is None or two_bases, config, "global_rope_theta", rule)
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
