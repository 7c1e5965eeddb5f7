"""Rotary position embedding (RoPE, arXiv:2104.09864) and the ways to stretch it.

Plane i of a query or key at position m turns by m * inv_freq[i] radians, so that the product of a
query at m and a key at n depends on m - n alone. A *scaling* decides how fast each plane turns
when the context becomes `factor` times the trained length: one function per scaling, by name in
SCALINGS, from numbers to (inv_freq, attention_factor). Nothing here knows a module or a cache.

Letters: T time, D head_dim, F = D/2 planes. L = train_len, s = factor.
"""

import inspect
import math

import torch
from torch import Tensor

Scaled = tuple[Tensor, float]  # inv_freq float64 (F,) in radians a position; attention_factor


def _theta(head_dim: int, theta: float) -> Tensor:
    """The unscaled frequencies theta^(-2i/D), float64 (F,)."""
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def _turns(inv_freq: Tensor, train_len: int) -> Tensor:
    """Full turns that each plane makes within the trained length: L / wavelength, (F,)."""
    return train_len * inv_freq / (2 * math.pi)


def _check_ends(**ends: float) -> None:
    (slow_name, slow), (fast_name, fast) = ends.items()
    if not 0 < slow < fast < math.inf:
        raise ValueError(
            f"{slow_name} is {slow} and {fast_name} {fast}; need 0 < {slow_name} < {fast_name}"
        )


def none(head_dim: int, theta: float, factor: float, train_len: int | None) -> Scaled:
    """No scaling: positions beyond the trained length simply turn further (arXiv:2104.09864)."""
    return _theta(head_dim, theta), 1.0


def linear(head_dim: int, theta: float, factor: float, train_len: int | None) -> Scaled:
    """Position interpolation: every plane turns s times slower (PI, arXiv:2306.15595)."""
    return _theta(head_dim, theta) / factor, 1.0


def ntk(head_dim: int, theta: float, factor: float, train_len: int | None) -> Scaled:
    """A larger base: the first plane unchanged, the last exactly / s (arXiv:2309.00071, eq. 16)."""
    if head_dim < 4:
        raise ValueError(f"head_dim is {head_dim}; scaling ntk needs 4 or more (two planes)")
    return _theta(head_dim, theta * factor ** (head_dim / (head_dim - 2))), 1.0


def ntk_by_parts(
    head_dim: int,
    theta: float,
    factor: float,
    train_len: int,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Scaled:
    """Slow only planes of few turns within L (arXiv:2309.00071, def. 2; its beta and alpha)."""
    _check_ends(beta_slow=beta_slow, beta_fast=beta_fast)
    inv_freq = _theta(head_dim, theta)
    keep = (_turns(inv_freq, train_len) - beta_slow) / (beta_fast - beta_slow)
    return torch.lerp(inv_freq / factor, inv_freq, keep.clamp(0, 1)), 1.0


def yarn(
    head_dim: int,
    theta: float,
    factor: float,
    train_len: int,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    ramp: str = "index",
    truncate: bool = True,
    attention_factor: float | None = None,
) -> Scaled:
    """NTK by parts and a sharper softmax (YaRN, arXiv:2309.00071).

    ramp "index" blends linearly in the plane's index (the authors' code and every released
    model; `truncate` rounds its ends outward), "rotations" in turns within L (the paper's eq. 18).
    attention_factor None: 0.1 ln s + 1 (eq. 22).
    """
    _check_ends(beta_slow=beta_slow, beta_fast=beta_fast)
    if attention_factor is None:
        attention_factor = 0.1 * math.log(factor) + 1
    if not 0 < attention_factor < math.inf:
        raise ValueError(f"attention_factor is {attention_factor}; it must be finite and above 0")
    if ramp == "rotations":
        if not truncate:
            raise ValueError("truncate is False; leave it out with ramp 'rotations'")
        by_parts = ntk_by_parts(
            head_dim, theta, factor, train_len, beta_fast=beta_fast, beta_slow=beta_slow
        )
        return by_parts[0], attention_factor
    if ramp != "index":
        raise ValueError(f"ramp is {ramp!r}; it must be 'index' or 'rotations'")
    inv_freq = _theta(head_dim, theta)
    slow = _index_ramp(head_dim, theta, train_len, (beta_fast, beta_slow), truncate)
    return torch.lerp(inv_freq, inv_freq / factor, slow), attention_factor


def _index_ramp(head_dim: int, theta: float, train_len: int, turns, truncate: bool) -> Tensor:
    """0 up to the plane of turns[0] turns within L, 1 from that of turns[1], float64 (F,)."""
    low, high = (
        head_dim * math.log(train_len / (2 * math.pi * n)) / (2 * math.log(theta)) for n in turns
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low = max(low, 0)
    high = max(min(high, head_dim - 1), low)
    if low == high:
        high += 0.001  # a step instead of a ramp, as the authors have it
    planes = torch.arange(head_dim // 2, dtype=torch.float64)
    return ((planes - low) / (high - low)).clamp(0, 1)


def llama3(
    head_dim: int,
    theta: float,
    factor: float,
    train_len: int,
    *,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> Scaled:
    """Llama 3.1's: by parts with a ramp linear in turns within L (arXiv:2407.21783, its code)."""
    _check_ends(low_freq_factor=low_freq_factor, high_freq_factor=high_freq_factor)
    return ntk_by_parts(
        head_dim, theta, factor, train_len, beta_fast=high_freq_factor, beta_slow=low_freq_factor
    )


SCALINGS = {f.__name__: f for f in (none, linear, ntk, ntk_by_parts, yarn, llama3)}


def settings(scaling: str) -> dict[str, object]:
    """The keyword settings that a scaling understands, with their defaults; ValueError if unknown.

    >>> settings("llama3")
    {'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
    """
    if scaling not in SCALINGS:
        raise ValueError(f"unknown scaling {scaling!r}; known are {', '.join(SCALINGS)}")
    parameters = inspect.signature(SCALINGS[scaling]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def frequencies(
    head_dim: int,
    theta: float = 10000.0,
    scaling: str = "none",
    factor: float = 1.0,
    train_len: int | None = 2048,
    **knobs,
) -> Scaled:
    """How fast each plane turns, and by how much attention is sharpened.

    head_dim: channels that rotate (even). theta: the base. factor: how many times train_len
    (positions) the context is to become, >= 1. knobs: `settings(scaling)`.
    Returns inv_freq, float64 (F,), radians a position, and attention_factor, whose *square*
    multiplies the logits. Raises ValueError that names the setting at fault.
    """
    known = settings(scaling)
    for name in sorted(knobs.keys() - known.keys()):
        raise ValueError(f"scaling {scaling!r} has no {name}; it has {', '.join(known) or 'none'}")
    if head_dim < 2 or head_dim % 2:
        of = "n_embd / n_head, times rope_fraction"
        raise ValueError(f"head_dim is {head_dim}; rotation needs an even number of channels: {of}")
    if not 1 < theta < math.inf:
        raise ValueError(f"theta is {theta}; the base must be a finite number above 1")
    if not 1 <= factor < math.inf:
        raise ValueError(f"factor is {factor}; it must be finite and at least 1")
    if train_len is None and scaling not in ("none", "linear", "ntk"):
        raise ValueError(f"train_len is missing; scaling {scaling!r} needs the trained length")
    if train_len is not None and not 1 <= train_len < math.inf:
        raise ValueError(f"train_len is {train_len}; it must be finite and at least 1")
    return SCALINGS[scaling](head_dim, theta, factor, train_len, **knobs)


def rotation_table(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position * inv_freq: float32 (T, F) from positions (T,) and inv_freq (F,).

    Angles are formed in float64: in float32 they are off by 0.03 rad at a million positions.
    """
    home = positions.device
    device = "cpu" if home.type == "mps" else home  # which has no float64
    angles = torch.outer(positions.to(device, torch.float64), inv_freq.to(device))  # (T, F)
    return angles.cos().float().to(home), angles.sin().float().to(home)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: str = "half") -> Tensor:
    """Turn the planes of x (..., T, D) by the table's angles (T, F), in float32 or finer.

    layout "half" pairs channels (i, i + F) (GPT-NeoX, transformers), "interleaved" (2i, 2i + 1)
    (RoFormer, Meta's LLaMA). Where 2 F < D only the first 2 F channels turn. Returns x's dtype.
    """
    if layout not in ("half", "interleaved"):
        raise ValueError(f"layout is {layout!r}; it must be 'half' or 'interleaved'")
    assert 2 * cos.size(-1) <= x.size(-1), "the table has more planes than the head"
    turning, rest = x.tensor_split((2 * cos.size(-1),), -1)
    turning = turning.to(torch.promote_types(x.dtype, torch.float32))
    if layout == "half":
        a, b = turning.chunk(2, -1)  # (..., T, F) each
        turned = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
    elif torch.compiler.is_compiling() or not _viewable(turning):
        a, b = turning.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    else:  # a third of the time of the real form on CPU, but the compiler knows no complex numbers
        z = torch.view_as_complex(turning.unflatten(-1, (-1, 2)))  # (..., T, F) complex
        turned = torch.view_as_real(z * torch.complex(cos, sin)).flatten(-2)
    turned = turned.type_as(x)
    return torch.cat((turned, rest), -1) if rest.size(-1) else turned


def _viewable(x: Tensor) -> bool:
    """Whether neighbouring channels lie in memory as complex numbers do."""
    *strides, last = x.stride()
    return last == 1 and not any(n % 2 for n in (x.storage_offset(), *strides))
