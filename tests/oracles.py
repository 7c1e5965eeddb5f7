"""Slow twins: the published formulas once more, in float64 scalars, one plane at a time.

They are written from the papers and share no code with the repository, so that agreement means
something. Nothing here is imported outside of tests/.

Arguments everywhere: head_dim, base (theta), s (factor), L (trained length).
"""

import math

import numpy as np


def none(head_dim, base, s, L):
    return [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]


def linear(head_dim, base, s, L):
    return [theta_i / s for theta_i in none(head_dim, base, s, L)]


def ntk(head_dim, base, s, L):
    return none(head_dim, base * s ** (head_dim / (head_dim - 2)), s, L)


def ntk_by_parts(head_dim, base, s, L, beta_fast=32, beta_slow=1):
    """arXiv:2309.00071, definition 2, where beta_slow is alpha and beta_fast is beta."""
    inv_freq = []
    for theta_i in none(head_dim, base, s, L):
        turns = L / (2 * math.pi / theta_i)
        if turns < beta_slow:
            gamma = 0.0
        elif turns > beta_fast:
            gamma = 1.0
        else:
            gamma = (turns - beta_slow) / (beta_fast - beta_slow)
        inv_freq.append((1 - gamma) * theta_i / s + gamma * theta_i)
    return inv_freq


def yarn(head_dim, base, s, L, beta_fast=32, beta_slow=1, ramp="index", truncate=True):
    """The authors' ramp ("index") or the paper's ("rotations")."""
    if ramp == "rotations":
        return ntk_by_parts(head_dim, base, s, L, beta_fast, beta_slow)

    def plane_of(turns):  # the (fractional) plane that turns so often within L
        return head_dim * math.log(L / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = plane_of(beta_fast), plane_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    inv_freq = []
    for i, theta_i in enumerate(none(head_dim, base, s, L)):
        slowed = min(max((i - low) / (high - low), 0), 1)
        inv_freq.append(theta_i / s * slowed + theta_i * (1 - slowed))
    return inv_freq


def llama3(head_dim, base, s, L, low_freq_factor=1, high_freq_factor=4):
    """Decided by wavelength, as in Meta's llama-models."""
    inv_freq = []
    for theta_i in none(head_dim, base, s, L):
        wavelength = 2 * math.pi / theta_i
        if wavelength > L / low_freq_factor:
            inv_freq.append(theta_i / s)
        elif wavelength < L / high_freq_factor:
            inv_freq.append(theta_i)
        else:
            u = (L / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
            inv_freq.append((1 - u) * theta_i / s + u * theta_i)
    return inv_freq


def channel_pairs(head_dim, layout):
    """The two channels of each plane."""
    planes = range(head_dim // 2)
    if layout == "half":
        return [(i, i + head_dim // 2) for i in planes]
    return [(2 * i, 2 * i + 1) for i in planes]


def rotation_matrices(positions, inv_freq, layout):
    """One D x D matrix a position, with a 2 x 2 counter-clockwise rotation a plane: (T, D, D)."""
    head_dim = 2 * len(inv_freq)
    matrices = np.zeros((len(positions), head_dim, head_dim))
    for t, position in enumerate(positions):
        for (a, b), frequency in zip(channel_pairs(head_dim, layout), inv_freq, strict=True):
            angle = float(position) * float(frequency)
            matrices[t, a, a] = matrices[t, b, b] = math.cos(angle)
            matrices[t, b, a] = math.sin(angle)
            matrices[t, a, b] = -math.sin(angle)
    return matrices


def rotate_by_matrices(x, positions, inv_freq, layout):
    """x (..., T, D) float64."""
    matrices = rotation_matrices(positions, inv_freq, layout)
    return np.einsum("tij,...tj->...ti", matrices, np.asarray(x, dtype=np.float64))


def rotate_as_complex_numbers(x, positions, inv_freq):
    """LLaMA's way, for "interleaved": neighbours are x + iy, times e^(i position frequency)."""
    x = np.asarray(x, dtype=np.float64)
    z = x[..., 0::2] + 1j * x[..., 1::2]
    z = z * np.exp(1j * np.outer(positions, inv_freq))
    return np.stack((z.real, z.imag), -1).reshape(x.shape)


def clip(head_dim, base, s, L, clip="hard"):
    """arXiv:2602.05258, with all planes that do not turn once within L instead of the last 20."""
    inv_freq = none(head_dim, base, s, L)
    slow = [i for i, theta_i in enumerate(inv_freq) if 2 * math.pi / theta_i > L]
    for k, i in enumerate(slow):
        n = len(slow)
        taper = (1 + math.cos(math.pi * k / (n - 1))) / 2 if n > 1 and clip == "soft" else 0.0
        inv_freq[i] *= taper
    return inv_freq


# ---- biases on scores: made from (config, weights, name of the layer's attention, its input
# (T, C)), they return bias(head, position of the query, distance, its order, the key's order)


def alibi_slopes(heads):
    """A geometric series from 2^(-8/H); other H take every second slope of a longer one."""
    if math.log2(heads).is_integer():
        return [(2 ** (-8 / heads)) ** h for h in range(1, heads + 1)]
    below = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(below) + alibi_slopes(2 * below)[0::2][: heads - below]


def alibi(c, W, own, x):
    slopes = alibi_slopes(c.n_head)
    return lambda h, i, d, m, n: -slopes[h] * d


def hard_alibi(c, W, own, x):
    """arXiv:2402.01032: head h sees h + 1 tokens; heads without a position see all."""
    restricted = c.alibi_heads or c.n_head // 2
    return lambda h, i, d, m, n: -math.inf if h < restricted and d > h else 0.0


def t5_bucket(d, end):
    """arXiv:1910.10683 has it in its code alone: 16 exact buckets, 16 that grow up to `end`."""
    if d < 16:
        return d
    return min(31, 16 + math.floor(math.log(d / 16) / math.log(end / 16) * 16 + 1e-6))


def t5(c, W, own, x):
    end = c.t5_max_distance or max(32, c.block_size)
    return lambda h, i, d, m, n: W["position.by_bucket"][t5_bucket(d, end), h]


def kerple(c, W, own, x):
    """arXiv:2205.09921, the logarithmic kernel."""
    p, a = W["position.p"], W["position.a"]
    return lambda h, i, d, m, n: -p[h] * math.log(1 + a[h] * d)


def fire(c, W, own, x):
    """arXiv:2310.04418, equation 4, with psi(x) = ln(c x + 1)."""
    at = next(key for key in W if key.endswith("osition.mlp.0.weight"))[: -len("mlp.0.weight")]
    first, b1, second = (W[f"{at}mlp.{part}"] for part in ("0.weight", "0.bias", "2.weight"))

    def bias(h, i, d, m, n):
        psi = [
            math.log(abs(W[f"{at}c"]) * y + 1) for y in (d, max(i, abs(W[f"{at}m"] * c.block_size)))
        ]
        share = psi[0] / (psi[1] + 1e-6)
        hidden = [max(0.0, w * share + b) for w, b in zip(first[:, 0], b1, strict=True)]
        return sum(w * y for w, y in zip(second[h], hidden, strict=True))

    return bias


def fox(c, W, own, x):
    """arXiv:2503.02130, equation 5: the logarithm of the product of the gates in between."""
    gates = 1 / (
        1 + np.exp(-(x @ W[f"{own}.position.gate.weight"].T + W[f"{own}.position.gate.bias"]))
    )
    return lambda h, i, d, m, n: math.log(math.prod(gates[n + 1 : m + 1, h]))


BIASES = {f.__name__: f for f in (alibi, hard_alibi, t5, kerple, fire, fox)}


# ---- logit scales, from (config, weights, name of the layer's attention, head, position of the
# query, length)

LOGIT_SCALES = {
    "none": lambda c, W, own, h, i, T: 1.0,
    "logn": lambda c, W, own, h, i, T: max(1, math.log(i + 1) / math.log(c.train_len)),
    "ssmax": lambda c, W, own, h, i, T: (
        W[f"{own}.logit_scale.s"][h] * math.log(i + 1) + W[f"{own}.logit_scale.b"][h]
    ),
    "llama4": lambda c, W, own, h, i, T: 1 + 0.1 * math.log(math.floor((i + 1) / c.train_len) + 1),
    "log_length": lambda c, W, own, h, i, T: 1 + c.logit_c * math.log(max(1, T / c.train_len)),
}
