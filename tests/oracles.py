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
