"""Causal attention and its cache of keys and values. `config` is a model.GPTConfig.

Letters: B batch, T time (tokens read now), S tokens read so far, C channels, H heads (H_kv of keys
and values), D head_dim.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 256  # queries at once where scores are made whole


class Linear(nn.Linear):
    """nn.Linear that knows a single token (C,): matrix times vector, without the detour over mm."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 1:
            return F.linear(x, self.weight, self.bias)
        return self.weight.mv(x) if self.bias is None else self.bias.addmv(self.weight, x)


class KVCache:
    """Keys (as rotated) and values of the tokens read so far: (B, H_kv, size, D) a layer."""

    def __init__(self, size: int):
        self.size = size
        self.length = 0
        self.view: object = None  # what its content rests on: GPT._view
        self.table: tuple[Tensor, ...] = ()  # Position.table of all its places
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Hold k and v (B, H_kv, T, D) of the tokens read now; returns all (B, H_kv, S, D)."""
        end = self.length + k.size(2)
        if end > self.size:
            raise ValueError(f"the cache holds {self.size} positions; asked for {end}")
        if layer not in self.layers:
            shape = (*k.shape[:2], self.size, k.size(3))
            self.layers[layer] = k.new_empty(shape), v.new_empty(shape)
        keys, values = self.layers[layer]
        keys.narrow(2, self.length, k.size(2)).copy_(k)
        values.narrow(2, self.length, k.size(2)).copy_(v)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)


@dataclass
class Scene:
    """What all layers share in one forward pass."""

    rotate: Callable[[Tensor], Tensor]
    mask: Tensor | None  # added to the scores, or True where a key is seen; None: plain causal
    scale: float
    cache: KVCache | None
    last: int | None = None  # positions at the end that are answered (None: all)


class Attention(nn.Module):
    def __init__(self, config, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        kv = config.kv_heads * config.head_dim
        self.c_attn = Linear(config.n_embd, config.n_embd + 2 * kv, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, scene: Scene) -> Tensor:
        c = self.config
        shape = x.shape[:-1] or (1, 1)  # B, T; a single token comes as a vector
        heads = self.c_attn(x).view(*shape, -1, c.head_dim).transpose(1, 2)
        qk, v = heads.split((c.n_head + c.kv_heads, c.kv_heads), 1)  # (B, H, T, D)
        q, k = scene.rotate(qk).split((c.n_head, c.kv_heads), 1)
        if scene.cache is not None:
            k, v = scene.cache.append(self.layer, k, v)  # (B, H_kv, S, D)
        if scene.last is not None:
            q = q[:, :, -scene.last :]
        dropout = c.dropout * self.training
        if products_are_faster(q, k):
            y = products(q, k, v, scene.mask, scene.scale, dropout)
        else:
            causal, gqa = scene.mask is None and q.size(2) > 1, c.kv_heads != c.n_head
            y = F.scaled_dot_product_attention(
                q, k, v, scene.mask, dropout, causal, scale=scene.scale, enable_gqa=gqa
            )
        y = y.transpose(1, 2).flatten(2)  # (B, T or last, C)
        y = self.c_proj(y if x.dim() > 1 else y.view(-1))
        return F.dropout(y, c.dropout, self.training)


def products_are_faster(q: Tensor, k: Tensor) -> bool:
    """Training in bfloat16 on a CPU, on windows up to 1,024: measured 1.2 to 7 times faster."""
    if not torch.is_grad_enabled() or q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return False
    return q.shape == k.shape and q.size(2) <= 4 * BLOCK


def products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """Causal attention (B, H, T, D) as two matrix products and a softmax, BLOCK queries at a time.

    mask: float (1, H, T, T), added to the scores and -inf at keys to come; None: the latter alone.
    """
    B, H, T, _ = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (BH, T, D)
    found = []
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)  # no key from here on is seen
        if mask is None:
            bias = q.new_full((1, end - start, end), -math.inf).triu(start + 1)
        else:
            part = mask[..., start:end, :end].to(q.dtype)
            bias = part.expand(B, H, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(bias, q[:, start:end], k[:, :end].mT, alpha=scale)
        weights = F.dropout(scores.softmax(-1), dropout)  # (BH, BLOCK or less, end)
        found.append(weights.to(v.dtype) @ v[:, :end])
    return torch.cat(found, 1).unflatten(0, (B, -1))
