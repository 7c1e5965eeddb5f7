"""A GPT in one file: a pre-norm Transformer, after GPT-2 and nanoGPT; by settings Llama or NeoX.

Read it from top to bottom: the settings, attention with its cache, the block, the model, and how a
text is generated. How the model knows positions is one class of positions.py, which opens up to
four doors in the forward pass below; this file never asks which. Fast attention is at the foot.

Letters: B batch, T time (tokens read now), S keys (tokens read so far), C channels, H heads (H_kv
of keys and values), D head_dim, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from positions import (
    INIT_STD,
    POSITIONS,
    Place,
    Position,
    PositionConfig,
    check_positions,
    require,
)

MAX_SIZE = 10_000_000  # of anything that is counted in a model; more is a mistake
BLOCK = 256  # queries at once where scores are made whole


@dataclass(frozen=True, kw_only=True)
class GPTConfig(PositionConfig):
    """Every number that shapes a GPT. Raises ValueError that names the field and the rule."""

    block_size: int = 256  # tokens in a training window: the trained length
    vocab_size: int | None = None  # tokens the model knows (None: as many as the tokenizer)
    n_layer: int = 4  # Transformer blocks
    n_head: int = 4  # query heads
    n_kv_head: int | None = None  # key and value heads, shared by the query heads (None: n_head)
    n_embd: int = 128  # channels of the residual stream
    head_dim: int | None = None  # channels of a head (None: n_embd / n_head)
    n_inner: int | None = None  # channels within the MLP (None: 4 n_embd, or 8/3 with swiglu)
    dropout: float = 0.0  # share of activations dropped in training
    bias: bool = False  # biases in linear and norm layers, as GPT-2 has them
    norm: str = "layernorm"  # layernorm or rmsnorm
    norm_eps: float = 1e-5  # added to the variance
    mlp: str = "gelu"  # gelu, gelu_tanh (GPT-2's own) or swiglu (arXiv:2002.05202)
    qk_norm: bool = False  # norms of queries and keys, before they are rotated (Qwen3)
    parallel: bool = False  # the MLP reads the input of attention, not its output (GPT-NeoX)
    tie_embeddings: bool = True  # the head is the embedding of the tokens

    def __post_init__(self) -> None:
        check_types(self)
        counts = [name for name in GPTConfig.__annotations__ if type(getattr(self, name)) is int]
        for name in counts:
            require(getattr(self, name) > 0, self, name, "at least 1")
            require(getattr(self, name) <= MAX_SIZE, self, name, f"at most {MAX_SIZE:,}")
        require(0 <= self.dropout < 1, self, "dropout", "from 0 to below 1")
        require(0 < self.norm_eps < 1, self, "norm_eps", "above 0, below 1")
        heads = f"of n_head ({self.n_head})"
        whole = self.head_dim or self.n_embd % self.n_head == 0
        require(whole, self, "n_embd", f"a multiple {heads}")
        require(self.n_head % self.kv_heads == 0, self, "n_kv_head", f"a divisor {heads}")
        check_names(self)
        check_layers(self)
        check_positions(self)

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def inner(self) -> int:
        """Channels within the MLP; swiglu has three matrices, and two thirds of the channels."""
        by_default = 8 * math.ceil(self.n_embd / 3) if self.mlp == "swiglu" else 4 * self.n_embd
        return self.n_inner or by_default


def check_types(config) -> None:
    """ValueError unless every field of a dataclass instance is of its annotated type."""
    hints = get_type_hints(type(config))
    for setting in fields(config):
        kinds = getattr(hints[setting.name], "__args__", (hints[setting.name],))
        value = getattr(config, setting.name)
        # 1 is as good as 1.0, where a float can hold it
        if type(value) is int and float in kinds and abs(value) < 2**1023:
            value = float(value)
            object.__setattr__(config, setting.name, value)
        require(type(value) in kinds, config, setting.name, f"of type {kinds[0].__name__}")
        small = type(value) is not int or abs(value) < 2**63  # what an int64 tensor holds
        require(small, config, setting.name, "below 2**63")
        finite = type(value) is not float or math.isfinite(value)
        require(finite, config, setting.name, "a finite number")


def check_names(config: GPTConfig) -> None:
    """ValueError where a part of the model is unknown: all that follows looks them up."""
    parts = {"pos": POSITIONS, "global_pos": POSITIONS, "norm": NORMS, "mlp": ACTIVATIONS}
    for name, known in parts.items():
        value, rule = getattr(config, name), f"one of {', '.join(known)}"
        require(value is None or value in known, config, name, rule)


def check_layers(config: GPTConfig) -> None:
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


class RMSNorm(nn.RMSNorm):
    """No mean is subtracted, and there is no bias (arXiv:1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:  # queries may be bfloat16 where weights are not
        return super().forward(x.type_as(self.weight))


def norm(config: GPTConfig, channels: int) -> nn.Module:
    """(.., channels) -> the same."""
    options = {} if config.norm == "rmsnorm" else {"bias": config.bias}
    return NORMS[config.norm](channels, config.norm_eps, **options)


def swiglu(x: Tensor) -> Tensor:
    """(.., 2 n_inner) -> (.., n_inner): the first half, through SiLU, gates the second."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": RMSNorm}
ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "swiglu": swiglu}


class KVCache:
    """Keys (as rotated) and values of the tokens read so far: (B, H_kv, size, D) a layer."""

    def __init__(self, size: int):
        self.size = size
        self.length = 0
        self.factors: tuple[float, ...] | None = None  # interpolation factors it was filled under
        self.tables: dict[str, tuple] = {}  # Position.table of all its places, by kind of layer
        self.layers: dict[object, list[Tensor]] = {}

    def append(self, key: object, *parts: Tensor) -> list[Tensor]:
        """Keep parts (B, H, T, ...) of the tokens read now; returns all so far, (B, H, S, ...)."""
        end = self.length + parts[0].size(2)
        if end > self.size:
            raise ValueError(f"the cache holds {self.size} positions; asked for {end}")
        if key not in self.layers:
            shapes = [(*part.shape[:2], self.size, *part.shape[3:]) for part in parts]
            self.layers[key] = [p.new_empty(s) for p, s in zip(parts, shapes, strict=True)]
        for store, part in zip(self.layers[key], parts, strict=True):
            store.narrow(2, self.length, part.size(2)).copy_(part)
        return [store.narrow(2, 0, end) for store in self.layers[key]]

    def check(self, factors: tuple[float, ...]) -> None:
        """ValueError where it was filled under interpolation factors that no longer hold."""
        if self.length and factors != self.factors:
            raise ValueError(
                f"a cache of {self.length} tokens was filled under interpolation factors "
                f"{self.factors}, now {factors}; clear it and read the text again"
            )
        if factors != self.factors:
            self.tables = {}
        self.factors = factors

    def clear(self) -> None:
        self.length, self.tables = 0, {}


class Attention(nn.Module):
    """Causal attention of one layer."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.kind = config.layer_kinds[layer]
        self.window = config.window if self.kind == "L" else None
        out, kv = config.n_head * config.head_size, config.kv_heads * config.head_size
        self.c_attn = nn.Linear(config.n_embd, out + 2 * kv, bias=config.bias)
        self.c_proj = nn.Linear(out, config.n_embd, bias=config.bias)
        self.q_norm = norm(config, config.head_size) if config.qk_norm else nn.Identity()
        self.k_norm = norm(config, config.head_size) if config.qk_norm else nn.Identity()
        self.logit_scale = config.logit_scale(self.kind)(config)

    def use(self, position: Position) -> None:
        """The layer's encoding. One that layers share is registered in GPT alone."""
        if position.per_layer:
            self.position = position
        else:
            object.__setattr__(self, "position", position)

    def forward(
        self, x: Tensor, at: Place, cache: KVCache | None, last: int | None = None
    ) -> Tensor:
        """(B, T, C) -> the same; with `last` of that many positions at the end alone."""
        q, k, v = self.qkv(x)  # (B, H, T, D), (B, H_kv, T, D) twice
        q, k = self.position.rotate(q, k, at)  # door 2: on queries and keys
        at = self.position.observe(x, at, cache)  # what door 3 needs of this layer's input
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H_kv, S, D)
        if last is not None:
            mask = None if at.mask is None else at.mask[..., -last:, :]
            q, at = q[:, :, -last:], replace(at, T=last, mask=mask)
        y = attend(self, q, k, v, at)  # door 3 `bias`, door 4 `logit_scale`
        y = self.c_proj(y.transpose(1, 2).flatten(2))  # (B, T, C), heads side by side
        return torch.dropout(y, self.config.dropout, self.training)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> queries (B, H, T, D), keys and values (B, H_kv, T, D)."""
        c = self.config
        heads = self.c_attn(x).view(*x.shape[:2], -1, c.head_size).transpose(1, 2)
        q, k, v = heads.split_with_sizes((c.n_head, c.kv_heads, c.kv_heads), 1)
        return self.q_norm(q).type_as(v), self.k_norm(k).type_as(v), v

    def scores(self, q: Tensor, k: Tensor, at: Place, rows: slice) -> Tensor:
        """Scores of the queries `rows` before scale, bias and mask: (B, H, rows, S).

        An experiment may override this; as it stands here, `attend` never asks for it.
        """
        return q[:, :, rows] @ k.repeat_interleave(q.size(1) // k.size(1), 1).mT


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.dropout, self.activation = config.dropout, ACTIVATIONS[config.mlp]
        into = (2 if config.mlp == "swiglu" else 1) * config.inner
        self.c_fc = nn.Linear(config.n_embd, into, bias=config.bias)
        self.c_proj = nn.Linear(config.inner, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c_proj(self.activation(self.c_fc(x)))
        return torch.dropout(y, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.parallel = config.parallel
        self.ln_1 = norm(config, config.n_embd)
        self.attn = Attention(config, layer)
        self.ln_2 = norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, at: Place, cache: KVCache | None, last: int | None = None
    ) -> Tensor:
        y = self.attn(self.ln_1(x), at, cache, last)
        x = x if last is None else x[:, -last:]
        y = x + y
        return y + self.mlp(self.ln_2(x if self.parallel else y))


class GPT(nn.Module):
    """Logits or loss from token ids; text from a prompt. config.vocab_size must be known."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        require(config.vocab_size is not None, config, "vocab_size", "known to build a model")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # also the head, where tied
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = norm(config, config.n_embd)
        tied = config.tie_embeddings
        self.lm_head = None if tied else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        with torch.random.fork_rng(devices=[]):  # models of all encodings draw equal weights
            self._add_encodings()
        self._initialise()

    def _add_encodings(self) -> None:
        """Layers of a kind share an encoding, unless its class gives each layer its own."""
        c, shared = self.config, {}
        for kind, encoding in c.encodings.items():
            key = encoding, c.scales(kind), c.theta(kind)
            if not encoding.per_layer and key not in shared:
                shared[key] = encoding(c, kind=kind)
        self.position, *others = [*shared.values()] or [Position(c)]
        if others:  # G layers with a different encoding than L, or the same one scaled differently
            (self.global_position,) = others
        self.kinds: dict[str, Position] = {}  # one encoding of each kind, which makes the tables
        for layer, block in enumerate(self.h):
            kind = block.attn.kind
            encoding, scaled, theta = c.encodings[kind], c.scales(kind), c.theta(kind)
            own = encoding(c, layer, kind) if encoding.per_layer else None
            block.attn.use(own or shared[encoding, scaled, theta])
            self.kinds.setdefault(kind, block.attn.position)

    @torch.no_grad()
    def _initialise(self) -> None:
        """GPT-2's: normal weights, smaller where they add to the residual stream; norms at one."""
        for name, parameter in self.named_parameters():
            if ".attn.position." in name:  # comes last, so that it changes no other weight
                continue
            depth = 2 * self.config.n_layer if name.endswith("c_proj.weight") else 1
            if parameter.dim() >= 2:
                parameter.normal_(0.0, INIT_STD / math.sqrt(depth))
            elif name.endswith("bias"):
                parameter.zero_()
        for position in dict.fromkeys(block.attn.position for block in self.h):
            position.initialise()

    def clamp_encodings(self) -> None:
        """Put parameters of encodings back into their ranges: after every optimizer step."""
        for module in self.modules():
            if isinstance(module, Position):
                module.clamp()

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Token ids (B, T) int64 -> logits (B, T, V) float32; with targets (B, T) the loss.

        The loss is the mean cross-entropy in nats over targets that are not -1. positions (T,) or
        (B, T) int64, None: 0 to T - 1. Raises ValueError where the encoding has no position for a
        token.
        """
        logits = self.logits(self.hidden(idx, positions=positions))
        if targets is not None:
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits

    def hidden(
        self,
        idx: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Token ids (B, T) that follow those in the cache -> (B, T, C), before the head.

        last: of how many positions at the end (None: of all T). The final block works for them
        alone, which saves up to a layer's time.
        """
        at = self.place(idx, cache, positions)
        first, *_ = at.values()
        x = self.position.embed(self.wte(idx), first)  # door 1: at the input
        x = torch.dropout(x, self.config.dropout, self.training)
        *earlier, final = self.h
        for block in earlier:
            x = block(x, at[block.attn.kind], cache)  # doors 2 to 4: inside attention
        x = final(x, at[final.attn.kind], cache, last)
        if cache is not None:
            cache.length = first.length
        return self.ln_f(x)

    def place(
        self, idx: Tensor, cache: KVCache | None, positions: Tensor | None
    ) -> dict[str, Place]:
        """Order and positions of the tokens, and the encoding's tables, for each kind of layer."""
        T = idx.size(1)
        S = T if cache is None else cache.length + T
        order = torch.arange(S, device=idx.device)
        if positions is None:
            positions = order
            self.check_length(S)
        else:
            assert cache is None, "positions are drawn for training windows, which need no cache"
            if self.max_length < math.inf:
                self.check_length(int(positions.max()) + 1)
        if cache is not None:
            cache.check(self.interpolation_factors(S))
            tables = self.tables_from(cache, S - T, S)
        else:
            tables = {kind: p.table(positions, S) for kind, p in self.kinds.items()}
        at = {kind: Place(order, positions, T, tables[kind]) for kind in self.kinds}
        for kind, place in at.items():  # masks last, since a bias may read the tables
            place.mask = self.shared_mask(kind, place)
        return at

    def shared_mask(self, kind: str, at: Place) -> Tensor | None:
        """The mask of a few queries, once for all layers; None where each makes its own or none."""
        position, window = self.kinds[kind], self.config.window if kind == "L" else None
        cut = window is not None and window < at.length
        needed = position.biased or cut or 1 < at.T < at.length
        if not needed or not position.is_shared or at.T > BLOCK:
            return None
        return mask_of(position, at, slice(0, at.T), slice(0, at.length), window)

    def tables_from(self, cache: KVCache, start: int, end: int) -> dict[str, tuple]:
        """The tables of the tokens read now, cut from those that the cache holds of all."""
        if not cache.tables:  # new, or the interpolation factors have changed
            whole = torch.arange(cache.size, device=self.wte.weight.device)
            cache.tables = {kind: p.table(whole, end) for kind, p in self.kinds.items()}
        return {kind: p.cut(cache.tables[kind], start, end) for kind, p in self.kinds.items()}

    def logits(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., V), float32 or finer."""
        logits = F.linear(x, (self.lm_head or self.wte).weight)
        return logits.float() if logits.element_size() < 4 else logits

    @property
    def max_length(self) -> float:
        """The longest text that every layer has positions for."""
        return min(position.max_length for position in self.kinds.values())

    def check_length(self, length: int) -> None:
        """ValueError that names the alternatives, where the encoding has no positions left."""
        if length > self.max_length:
            raise ValueError(
                f"{self.config.pos} positions end at {self.max_length}, the trained length; asked "
                f"for {length}. Ask for {self.max_length} at most, set beyond to 'interpolate', "
                "show a window (sample.py --beyond slide), or take a model with pos 'rope'"
            )

    def interpolation_factors(self, length: int) -> tuple[float, ...]:
        """Those of all kinds of layers at this length: what the content of a cache rests on."""
        scales = {block.attn.kind: block.attn.logit_scale for block in self.h}
        parts = (*self.kinds.values(), *scales.values())
        return tuple(part.interpolation_factor(length) for part in parts)

    @torch.no_grad()  # not inference_mode, whose tensors cannot be used in a later training step
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generators: Sequence[torch.Generator] | None = None,
        window: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the next token id of each row, (B,) int64, after the prompts idx (B, T).

        temperature 0 takes the likeliest; top_k, top_p (arXiv:1904.09751) narrow the choice;
        generators are CPU generators, one a row. window: how many tokens at the end the model is
        shown (None: all). At each length the logits are those of a full forward pass: where the
        window has slid, or the interpolation factor has changed, the cache is filled again.
        """
        if idx.dim() != 2 or idx.size(0) < 1 or idx.size(1) < 1:
            raise ValueError(f"the prompt has shape {tuple(idx.shape)}; it must be (B, T), T >= 1")
        if self.training and self.config.dropout:
            raise ValueError("the model is in training mode, with dropout; call model.eval() first")
        check_sampling(temperature, top_k, top_p)
        if generators is not None and len(generators) != len(idx):
            raise ValueError(f"there are {len(generators)} generators for {len(idx)} rows")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be 0 or more")
        start, end = idx.size(1), idx.size(1) + max_new_tokens
        shown = min(end, window or end)  # tokens that the model is shown at most
        self.check_length(min(shown, end - 1))
        idx = torch.cat((idx, idx.new_zeros(idx.size(0), max_new_tokens)), 1)
        cache = KVCache(shown)
        for length in range(start, end):
            first = max(0, length - shown)
            if first > 0 or cache.factors != self.interpolation_factors(length):
                cache.clear()
            x = self.hidden(idx[:, first + cache.length : length], cache, last=1)[:, -1]
            idx[:, length] = sample_tokens(
                self.logits(x).cpu(), temperature, top_k, top_p, generators
            )
            yield idx[:, length]


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """ValueError that names the setting a token cannot be drawn with."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be 0 (the likeliest) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 <= top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be from 0 (the likeliest) to 1 (all)")


def sample_tokens(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Draw a token id a row, (B,), from logits (B, V) on the CPU; arguments as in `generate`."""
    highest = logits.amax(-1, keepdim=True)  # NaN spreads to it
    if not math.isfinite(highest.sum()):
        instead = "sample from an earlier checkpoint, or train with a lower learning_rate"
        raise ValueError(f"the model's logits are not finite; {instead}")
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = distribution((logits.double() - highest) / temperature, top_k, top_p)
    # The first of V exponential clocks is that of token i with probability p_i. torch.multinomial
    # draws one token in this way too, but from one generator for all rows.
    clocks = torch.empty_like(probabilities)
    for row, generator in zip(clocks, generators or [None] * len(clocks), strict=True):
        row.exponential_(1.0, generator=generator)
    return (probabilities / clocks).argmax(-1)


def distribution(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities (B, V) of what top_k and top_p leave of logits (B, V)."""
    if top_k is not None and top_k < logits.size(-1):
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None:
        ranked, ids = probabilities.sort(dim=-1, descending=True, stable=True)
        excluded = ranked.cumsum(-1) - ranked >= top_p  # the mass before it is top_p already
        excluded[:, 0] = False
        probabilities = ranked.masked_fill(excluded, 0.0).gather(-1, ids.argsort(-1))
    return probabilities


# Attention itself: softmax(scale * scores + bias, masked) times the values, in the fastest way.


def attend(layer: Attention, q: Tensor, k: Tensor, v: Tensor, at: Place) -> Tensor:
    """Causal attention of queries (B, H, T, D), the last of S keys (B, H_kv, S, D): (B, H, T, D).

    Where a bias or a mask is needed, it is made for BLOCK queries at a time, so that nothing of
    size T x S exists.
    """
    (T, S), window = (q.size(2), k.size(2)), layer.window
    scale = layer.position.logit_scale(at) * layer.logit_scale(at)
    if isinstance(scale, Tensor):  # one a query
        q, scale = q * scale.to(q.dtype), 1.0
    scale = scale / math.sqrt(layer.config.head_size)
    dropout = layer.config.dropout * layer.training
    kernel = kernel_for(layer, q, k)
    all_seen = window is None or window >= S
    # Where a mask is causal and no more, the kernel's own is fastest.
    causal = T in (1, S) and not layer.position.biased
    if kernel is fused and all_seen and (causal or at.mask is not None):
        return fused(q, k, v, at.mask, scale, dropout)
    parts = []
    for start in range(0, T, BLOCK):
        rows = slice(start, min(start + BLOCK, T))
        first, end = S - T + rows.start, S - T + rows.stop  # the rows' place among the keys
        keys = slice(0 if window is None else max(0, first - window + 1), end)
        mask = mask_of(layer.position, at, rows, keys, window)
        if kernel is whole_scores:
            scores = layer.scores(q, k, at, rows)[..., keys]
            parts.append(whole_scores(scores, v[:, :, keys], mask, scale, dropout))
        else:
            block = q[:, :, rows], k[:, :, keys], v[:, :, keys]
            parts.append(kernel(*block, mask, scale, dropout))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def kernel_for(layer: Attention, q: Tensor, k: Tensor):
    """Which of the three functions below: two products win in bfloat16 training on a CPU.

    Measured 1.2 to 7 times faster there than torch's own, on windows up to 1,024.
    """
    if type(layer).scores is not Attention.scores:
        return whole_scores
    on_cpu = q.dtype == torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled()
    return products if on_cpu and q.shape == k.shape and q.size(2) <= 4 * BLOCK else fused


def mask_of(position: Position, at: Place, rows: slice, keys: slice, window: int | None) -> Tensor:
    """What the queries `rows` see of `keys`, slices of the T queries and the S keys.

    True where a key is seen (rows, keys); with a bias that, -inf where it is not (.., rows, keys).
    """
    if at.mask is not None:
        return at.mask[..., rows, keys]
    # The mask goes by order, whatever positions the encoding is told.
    distance = at.order[-at.T :][rows, None] - at.order[keys]
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    bias = position.bias(at, rows)
    return seen if bias is None else bias[..., keys].masked_fill(~seen, -math.inf)


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to the scores."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)
    return mask.to(dtype)


def fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """torch's own kernel; mask None: causal, or all keys for a single query."""
    causal, shared = mask is None and q.size(2) > 1, q.size(1) != k.size(1)
    # torch 2.13 misreads a float32 mask beside float64 queries, and beside half precision on CUDA.
    if mask is not None and mask.is_floating_point() and (q.is_cuda or q.dtype == torch.float64):
        mask = mask.to(q.dtype)
    if mask is not None and mask.dim() == 3:
        mask = mask[None]
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, causal, scale=scale, enable_gqa=shared
    )


def products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
    """Two matrix products and a softmax, of as many query heads as key heads."""
    B, H = q.shape[:2]
    mask = added(mask, q.dtype).expand(B, H, -1, -1).flatten(0, 1)  # (BH, rows, keys)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(mask, q, k.mT, alpha=scale)
    weights = F.dropout(scores.softmax(-1), dropout)
    return (weights.to(v.dtype) @ v).unflatten(0, (B, H))


def whole_scores(scores: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
    """The same, read straight down, from scores (B, H, rows, keys) and values."""
    weights = (scale * scores + added(mask, scores.dtype)).softmax(-1)
    v = v.repeat_interleave(scores.size(1) // v.size(1), 1)
    return F.dropout(weights, dropout) @ v
