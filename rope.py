"""Rotary position embedding (RoPE, arXiv:2104.09864) and its scalings, as pure functions.

Plane i of a query or key at position m is rotated by m * inv_freq[i] radians, so that the product
of a query at m and a key at n depends on m - n alone. A *scaling* chooses the frequencies for a
context `factor` times as long as the trained length: one function each, by name in SCALINGS, from
numbers to (inv_freq, attention_factor). To add one, write its function and put it into SCALINGS;
its keyword arguments become settings of the model. Nothing here knows a module or a cache.

Letters: T time, D head_dim, F = D/2 planes. L = train_len, s = factor.
"""

import inspect
import math

import torch
from torch import Tensor

Scaled = tuple[Tensor, float]  # inv_freq float64 (F,) in radians a position; attention_factor


def unscaled(head_dim: int, theta: float) -> Tensor:
    """The frequencies theta^(-2i/D), float64 (F,)."""
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def rotations(inv_freq: Tensor, train_len: int) -> Tensor:
    """Full rotations of each plane within the trained length, L / wavelength: (F,)."""
    return train_len * inv_freq / (2 * math.pi)


def yarn_attention_factor(factor: float, coefficient: float = 0.1) -> float:
    """YaRN's attention factor c ln s + 1 (arXiv:2309.00071, eq. 22, where c = 0.1)."""
    return coefficient * math.log(factor) + 1


def none(head_dim: int, theta: float, factor: float = 1.0, train_len: int | None = None) -> Scaled:
    """No scaling: past the trained length the planes keep their frequencies (arXiv:2104.09864)."""
    return unscaled(head_dim, theta), 1.0


def linear(head_dim: int, theta: float, factor: float, train_len: int | None) -> Scaled:
    """Position interpolation: every frequency / s (PI, arXiv:2306.15595)."""
    return unscaled(head_dim, theta) / factor, 1.0


def ntk(head_dim: int, theta: float, factor: float, train_len: int | None) -> Scaled:
    """A larger base: the first plane unchanged, the last exactly / s (arXiv:2309.00071, eq. 16)."""
    if head_dim < 4:
        raise ValueError(f"head_dim is {head_dim}; scaling ntk needs 4 or more (two planes)")
    return unscaled(head_dim, theta * factor ** (head_dim / (head_dim - 2))), 1.0


def ntk_by_parts(
    head_dim: int,
    theta: float,
    factor: float,
    train_len: int,
    *,
    beta_fast: float = 32.0,  # planes of more rotations within L keep their frequency
    beta_slow: float = 1.0,  # planes of fewer rotations within L are interpolated
) -> Scaled:
    """Interpolate only the planes of few rotations in L (arXiv:2309.00071, def. 2: beta, alpha)."""
    _check_ends(beta_slow=beta_slow, beta_fast=beta_fast)
    inv_freq = unscaled(head_dim, theta)
    # 0: interpolate the plane, 1: keep its frequency; linear in the rotations between the two.
    keep = (rotations(inv_freq, train_len) - beta_slow) / (beta_fast - beta_slow)
    return torch.lerp(inv_freq / factor, inv_freq, keep.clamp(0, 1)), 1.0


def yarn(
    head_dim: int,
    theta: float,
    factor: float,
    train_len: int,
    *,
    beta_fast: float = 32.0,  # planes of more rotations within L keep their frequency
    beta_slow: float = 1.0,  # planes of fewer rotations within L are interpolated
    ramp: str = "index",  # blend between the two by plane index, or by rotations
    truncate: bool = True,  # round the ends of the index ramp outward
    attention_factor: float | None = None,  # its square multiplies the scores (None: by factor)
) -> Scaled:
    """NTK by parts and a sharper softmax (YaRN, arXiv:2309.00071).

    ramp "index" blends linearly in the plane's index (the authors' code and every released
    model; `truncate` rounds its ends outward), "rotations" in rotations within L (the paper's
    eq. 18). attention_factor None: 0.1 ln s + 1 (eq. 22).
    """
    _check_ends(beta_slow=beta_slow, beta_fast=beta_fast)
    if attention_factor is None:
        attention_factor = yarn_attention_factor(factor)
    if not 0 < attention_factor < math.inf:
        raise ValueError(f"attention_factor is {attention_factor}; it must be finite and above 0")
    if ramp not in ("index", "rotations"):
        raise ValueError(f"ramp is {ramp!r}; it must be 'index' or 'rotations'")
    if ramp == "rotations" and not truncate:
        raise ValueError("truncate is False; leave it out with ramp 'rotations'")
    if ramp == "rotations":
        ends = {"beta_fast": beta_fast, "beta_slow": beta_slow}
        return ntk_by_parts(head_dim, theta, factor, train_len, **ends)[0], attention_factor
    inv_freq = unscaled(head_dim, theta)
    slow = _index_ramp(head_dim, theta, train_len, beta_fast, beta_slow, truncate)
    return torch.lerp(inv_freq, inv_freq / factor, slow), attention_factor


def _index_ramp(
    head_dim: int, theta: float, train_len: int, fast: float, slow: float, truncate: bool
) -> Tensor:
    """0 up to the plane of `fast` rotations within L, 1 from that of `slow`: float64 (F,)."""

    def plane(count: float) -> float:
        """The (fractional) index of the plane that makes so many rotations within L."""
        return head_dim * math.log(train_len / (2 * math.pi * count)) / (2 * math.log(theta))

    low, high = plane(fast), plane(slow)
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
    low_freq_factor: float = 1.0,  # planes of fewer rotations within L are interpolated
    high_freq_factor: float = 4.0,  # planes of more rotations within L keep their frequency
) -> Scaled:
    """Llama 3.1's: by parts, linear in the rotations within L (arXiv:2407.21783 and its code)."""
    _check_ends(low_freq_factor=low_freq_factor, high_freq_factor=high_freq_factor)
    ends = {"beta_fast": high_freq_factor, "beta_slow": low_freq_factor}
    return ntk_by_parts(head_dim, theta, factor, train_len, **ends)


def clip(
    head_dim: int,
    theta: float,
    factor: float = 1.0,
    train_len: int | None = None,
    *,
    clip: str = "hard",  # planes of less than one rotation within L: hard stops them, soft fades
) -> Scaled:
    """Stop the planes that have not rotated once within L (CoPE, arXiv:2602.05258).

    Their angles past L were never seen in training. It reads no factor. clip "hard" sets their
    frequency to 0; "soft" multiplies it by a cosine taper, from 1 at the fastest of them to 0 at
    the slowest. Trained in from the start, "hard" is HoPE (arXiv:2410.21216).
    """
    if clip not in ("hard", "soft"):
        raise ValueError(f"clip is {clip!r}; it must be 'hard' or 'soft'")
    inv_freq = unscaled(head_dim, theta)
    slow = rotations(inv_freq, train_len) < 1  # their wavelength is longer than L
    count = int(slow.sum())
    if clip == "soft" and count > 1:
        steps = torch.arange(count, dtype=torch.float64) / (count - 1)
        inv_freq[slow] *= 0.5 * (1 + torch.cos(math.pi * steps))
    else:
        inv_freq[slow] = 0
    return inv_freq, 1.0


SCALINGS = {f.__name__: f for f in (none, linear, ntk, ntk_by_parts, yarn, llama3, clip)}


def _check_ends(**ends: float) -> None:
    (slow_name, slow), (fast_name, fast) = ends.items()
    if not 0 < slow < fast < math.inf:
        raise ValueError(
            f"{slow_name} is {slow} and {fast_name} {fast}; need 0 < {slow_name} < {fast_name}"
        )


def settings(scaling: str) -> dict[str, inspect.Parameter]:
    """The settings of a scaling: its keyword-only arguments, by name. ValueError if unknown."""
    if scaling not in SCALINGS:
        raise ValueError(f"unknown scaling {scaling!r}; known are {', '.join(SCALINGS)}")
    parameters = inspect.signature(SCALINGS[scaling]).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def reads_factor(scaling: str) -> bool:
    """Whether a scaling depends on the factor: one that does not gives it a default."""
    factor = inspect.signature(SCALINGS[scaling]).parameters["factor"]
    return factor.default is factor.empty


def frequencies(
    head_dim: int,
    theta: float = 10000.0,
    scaling: str = "none",
    factor: float = 1.0,
    train_len: int | None = 2048,
    p: float = 1.0,
    **options,
) -> Scaled:
    """The frequency of each plane, and the factor by which attention is sharpened.

    head_dim: channels that are rotated (even). theta: the base. factor: how many times train_len
    (positions) the context is to become, >= 1. p: share of the planes that rotate, the fastest
    ones; the others carry content alone (p-RoPE, arXiv:2410.06205). options: the settings of the
    scaling.
    Returns inv_freq, float64 (F,), radians a position, and attention_factor, whose *square*
    multiplies the scores. Raises ValueError that names the setting at fault.
    """
    known = settings(scaling)
    for name in sorted(options.keys() - known.keys()):
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
    rotating = int(p * head_dim // 2)
    if not 1 <= rotating <= head_dim // 2:
        raise ValueError(f"p is {p}; it must leave 1 to {head_dim // 2} planes that rotate")
    inv_freq, attention_factor = SCALINGS[scaling](head_dim, theta, factor, train_len, **options)
    inv_freq[rotating:] = 0  # the slowest planes
    return inv_freq, attention_factor


def rotation_table(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position * inv_freq: float32 (..., T, F) from positions (..., T).

    Angles are formed in float64: in float32 they are off by 0.03 rad at a million positions.
    """
    if positions.device.type == "mps":  # which has no float64
        cos, sin = rotation_table(positions.cpu(), inv_freq)
        return cos.to(positions.device), sin.to(positions.device)
    angles = positions[..., None] * inv_freq.to(positions.device)  # (..., T, F) float64
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: str = "half") -> Tensor:
    """Rotate the planes of x (..., T, D) by the angles of a table (T, F), in float32 or finer.

    layout "half" pairs channels (i, i + F) (GPT-NeoX, transformers), "interleaved" (2i, 2i + 1)
    (RoFormer, Meta's LLaMA). Where 2 F < D only the first 2 F channels are rotated. Returns x's
    dtype.
    """
    if layout not in ("half", "interleaved"):
        raise ValueError(f"layout is {layout!r}; it must be 'half' or 'interleaved'")
    assert 2 * cos.size(-1) <= x.size(-1), "the table has more planes than the head"
    channels = 2 * cos.size(-1)
    if channels < x.size(-1):
        rotated = rotate(x[..., :channels], cos, sin, layout)
        return torch.cat((rotated, x[..., channels:]), -1)
    planes = x.float() if x.element_size() < 4 else x
    if layout == "half":
        a, b = planes.chunk(2, -1)  # (..., T, F) each
        rotated = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
    else:
        a, b = planes.unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    return rotated.type_as(x)
