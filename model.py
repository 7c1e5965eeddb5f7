"""A GPT in one file: a pre-norm Transformer with a tied head, in the manner of GPT-2 and nanoGPT.

How it knows positions is one class of positions.py; this file never asks which.

Letters: B batch, T time (tokens read now), S tokens read so far, C channels, H heads (H_kv of keys
and values), D head_dim, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rope
from attention import Attention, KVCache, Linear, Scene
from positions import INIT_STD, POSITIONS, require
from sampling import check_sampling, sample_token

MAX_SIZE = 10_000_000  # of anything that is counted in a model; more is a slip of the hand


@dataclass(frozen=True)
class GPTConfig:
    """Every number that shapes a GPT. Raises ValueError that names the field and the rule."""

    block_size: int = 256  # tokens in a training window: the trained length
    vocab_size: int | None = None  # tokens the model knows (None: as many as the tokenizer)
    n_layer: int = 4  # Transformer blocks
    n_head: int = 4  # query heads
    n_kv_head: int | None = None  # key and value heads, shared by the query heads (None: n_head)
    n_embd: int = 128  # channels of the residual stream
    dropout: float = 0.0  # share of activations dropped in training
    bias: bool = False  # biases in linear and norm layers, as GPT-2 has them
    pos: str = "rope"  # position encoding: learned, sinusoidal, rope, alibi or none
    beyond: str = "extend"  # past block_size: extend, interpolate (the table), slide (the window)
    rope_theta: float = 10000.0  # base of the rotary frequencies
    rope_scaling: str = "none"  # none, linear, ntk, ntk_by_parts, yarn, llama3; or dynamic_...
    rope_factor: float | None = None  # target / trained length (None: block_size / rope_train_len)
    rope_train_len: int | None = None  # length the frequencies were trained at (None: block_size)
    rope_fraction: float = 1.0  # share of each head's channels that rotates
    rope_layout: str = "half"  # channels that share a plane: half (i, i + D/2), interleaved
    beta_fast: float = 32.0  # yarn, ntk_by_parts: planes of more turns within L are left alone
    beta_slow: float = 1.0  # yarn, ntk_by_parts: planes of fewer turns within L are interpolated
    ramp: str = "index"  # yarn: blend between the two by plane index, or by rotations
    truncate: bool = True  # yarn: round the ends of the index ramp outward
    attention_factor: float | None = None  # yarn: root of the softmax sharpening (None: by factor)
    low_freq_factor: float = 1.0  # llama3: planes of fewer turns within L are interpolated
    high_freq_factor: float = 4.0  # llama3: planes of more turns within L are left alone

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            value = getattr(self, name)
            require(value is None or value > 0, self, name, "at least 1")
            require(value is None or value <= MAX_SIZE, self, name, f"at most {MAX_SIZE:,}")
        require(0 <= self.dropout < 1, self, "dropout", "from 0 to below 1")
        heads = f"of n_head ({self.n_head})"
        require(self.n_embd % self.n_head == 0, self, "n_embd", f"a multiple {heads}")
        require(self.n_head % self.kv_heads == 0, self, "n_kv_head", f"a divisor {heads}")
        require(self.pos in POSITIONS, self, "pos", f"one of {', '.join(POSITIONS)}")
        POSITIONS[self.pos].check(self)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def train_len(self) -> int:
        """The length that scaled frequencies count from."""
        return self.rope_train_len or self.block_size

    @property
    def factor(self) -> float:
        """The factor of a scaling that is not dynamic."""
        return self.rope_factor or max(1.0, self.block_size / self.train_len)


def check_factor(config: GPTConfig) -> None:
    """ValueError where a fixed scaling would do nothing, because nobody said how far."""
    fixed = config.rope_scaling in rope.SCALINGS and config.rope_scaling != "none"
    idle = fixed and config.rope_factor is None and config.factor == 1
    rule = f"given: without it rope_scaling {config.rope_scaling!r} changes nothing here"
    require(not idle, config, "rope_factor", rule)


def check_types(config) -> None:
    """ValueError unless every field of a dataclass instance is of its annotated type."""
    hints = get_type_hints(type(config))
    for field in fields(config):
        kinds = getattr(hints[field.name], "__args__", (hints[field.name],))
        value = getattr(config, field.name)
        if type(value) is int and float in kinds and abs(value) < 2**1023:
            value = float(value)
            object.__setattr__(config, field.name, value)
        require(type(value) in kinds, config, field.name, f"of type {kinds[0].__name__}")
        if type(value) is int:
            require(abs(value) < 2**63, config, field.name, "below 2**63")
        finite = type(value) is not float or math.isfinite(value)
        require(finite, config, field.name, "a finite number")


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, scene: Scene) -> Tensor:
        y = self.attn(self.ln_1(x), scene)
        if scene.last is not None:
            # (an attention that answers for all positions, as in experiments/, is cut here)
            x, y = x[:, -scene.last :], y[:, -scene.last :]
        x = x + y
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Logits or loss from token ids; text from a prompt. config.vocab_size must be known."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        require(config.vocab_size is not None, config, "vocab_size", "known to build a model")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # also the head: tied weights
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.position = POSITIONS[config.pos](config)  # last: all encodings draw equal weights
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """GPT-2's: normal weights, quieter where they add to the residual stream; norms at one."""
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                depth = 2 * self.config.n_layer if name.endswith("c_proj.weight") else 1
                parameter.normal_(0.0, INIT_STD / math.sqrt(depth))
            elif name.endswith("bias"):
                parameter.zero_()

    @property
    def reach(self) -> float:
        """The longest text it can read."""
        return math.inf if self.config.beyond == "slide" else self.position.reach

    @property
    def max_length(self) -> float:  # until the merge with the new model.py
        return self.position.reach

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Token ids (B, T) int64 -> logits (B, T, V) float32; with targets (B, T) the loss.

        The loss is the mean cross-entropy in nats over targets that are not -1. Raises ValueError
        where T is past what the encoding can place.
        """
        logits = self.logits(self.hidden(idx))
        if targets is not None:
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits

    def logits(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., V), float32 or finer."""
        logits = F.linear(x, self.wte.weight)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def hidden(self, idx: Tensor, cache: KVCache | None = None, last: int | None = None) -> Tensor:
        """Token ids (B, T) that follow those in the cache -> what the head reads, (B, T, C).

        last: of how many positions at the end (None: of all T). The final block works for them
        alone, which saves up to a layer's time.
        """
        last = last if last is not None and last < idx.size(1) else None
        if cache is None and self._view(idx.size(1))[0]:
            return self._slide(idx)[:, -(last or 0) :]
        start = cache.length if cache is not None else 0
        length = start + idx.size(1)
        self.check_length(length)
        if cache is not None and self._view(length) != (0, self.position.stretch(start or length)):
            raise ValueError(f"a cache of {start} tokens is stale at {length}; generate refills it")
        positions = torch.arange(start, length, device=idx.device)
        x = self.position.embed(self.wte(idx), positions, length)
        x = F.dropout(x, self.config.dropout, self.training)
        scene = self._scene(positions, length, cache, x.dtype)
        if cache is not None and idx.numel() == 1:
            x = x.flatten()  # products of a matrix and a vector take half the time
        *earlier, final = self.h
        for block in earlier:
            x = block(x, scene)
        if last is not None:
            mask = self._mask(positions[-last:], length, x.dtype)
            scene = replace(scene, mask=mask, last=last)
        x = final(x, scene)
        if cache is not None:
            cache.length = length
        return self.ln_f(x).view(idx.size(0), -1, self.config.n_embd)

    def check_length(self, length: int) -> None:
        """ValueError that names the alternatives, where the encoding cannot place `length`."""
        if length > self.reach:
            raise ValueError(
                f"{self.config.pos} positions end at {self.reach}, the trained length; asked for "
                f"{length}. Ask for {self.reach} at most, set beyond to 'interpolate' or 'slide', "
                "or take a model with pos 'rope'"
            )

    def _mask(self, positions: Tensor, length: int, dtype) -> Tensor | None:
        """What the tokens at `positions` may see of `length`, and how well; None: what is past."""
        mask = self.position.bias(positions, length)
        if mask is not None or 1 < positions.size(0) < length:
            future = torch.arange(length, device=positions.device) > positions[:, None]  # (T, S)
            mask = ~future if mask is None else mask.masked_fill(future, -math.inf)[None]
        # torch 2.13 misreads a float32 mask beside float64 queries, and CUDA beside half precision.
        exact = dtype == torch.float64 or positions.is_cuda
        if exact and mask is not None and mask.is_floating_point():
            mask = mask.to(dtype)
        return mask

    def _scene(self, positions: Tensor, length: int, cache: KVCache | None, dtype) -> Scene:
        p, mask = self.position, self._mask(positions, length, dtype)
        if cache is None:
            table = p.table(positions, length)
        else:
            if cache.length == 0:  # at once for all that will be read, until it is filled anew
                cache.table = p.table(torch.arange(cache.size, device=positions.device), length)
            table = [part[cache.length : length] for part in cache.table]
        scale = p.sharpness(length) / math.sqrt(self.config.head_dim)
        return Scene(lambda x: p.rotate(x, *table), mask, scale, cache)

    def _slide(self, idx: Tensor) -> Tensor:
        """Every position read with only the last block_size tokens, each window from zero."""
        L = self.config.block_size
        windows = idx.unfold(1, L, 1)[:, 1:].flatten(0, 1)  # (B (T - L), L)
        last = torch.cat([self.hidden(part, last=1) for part in windows.split(64)])  # (.., 1, C)
        return torch.cat((self.hidden(idx[:, :L]), last.view(idx.size(0), -1, last.size(-1))), 1)

    @torch.no_grad()  # not inference_mode, whose tensors would poison a later training step
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[int]:
        """Yield one token id at a time after the prompt idx (1, T), at the cost of one new token.

        temperature 0 takes the likeliest; top_k, top_p (arXiv:1904.09751) narrow the choice;
        generator is a CPU generator. At each length the logits are those of a full forward pass:
        where the window has slid or positions have been stretched since, the cache is filled anew.
        """
        if idx.dim() != 2 or idx.size(0) != 1 or idx.size(1) < 1:
            raise ValueError(f"the prompt has shape {tuple(idx.shape)}; it must be (1, T), T >= 1")
        if self.training and self.config.dropout:
            raise ValueError("the model is in training mode, with dropout; call model.eval() first")
        check_sampling(temperature, top_k, top_p)
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be 0 or more")
        start, end = idx.size(1), idx.size(1) + max_new_tokens
        self.check_length(end - 1)
        idx = torch.cat((idx, idx.new_zeros(1, max_new_tokens)), 1)
        slides = self.config.beyond == "slide"
        cache = KVCache(min(end, self.config.block_size) if slides else end)
        for length in range(start, end):
            logits = self._next_logits(idx[:, :length], cache)
            token = sample_token(logits.cpu(), temperature, top_k, top_p, generator)
            idx[0, length] = token
            yield token

    def _view(self, length: int) -> tuple[int, float]:
        """What all that is computed at a length rests on: its first token, and the stretch."""
        slides = self.config.beyond == "slide"
        first = max(0, length - self.config.block_size) if slides else 0
        return first, self.position.stretch(length - first)

    def _next_logits(self, idx: Tensor, cache: KVCache) -> Tensor:
        view = self._view(idx.size(1))
        if view != cache.view:  # what it holds was computed for other positions
            cache.length, cache.view = 0, view
        return self.logits(self.hidden(idx[:, view[0] + cache.length :], cache, last=1)[0, -1])
