"""The exact properties of the rotation, and their errors: no training, half a minute.

Letters: N sequences, T time, D head_dim, F = D/2 planes.
"""

import math

import torch
from torch import Tensor

import rope
from experiments.claims import record
from runtime import errors

D, T = 64, 512
OFFSETS = (1_000, 100_000, 1_000_000)


def rotated(x: Tensor, offset: int = 0, layout: str = "half", table_factor: float = 1.0) -> Tensor:
    """x (N, T, D), rotated as if its first token stood at `offset`."""
    inv_freq, _ = rope.frequencies(D)
    cos, sin = rope.rotation_table(torch.arange(offset, offset + x.size(1)), inv_freq)
    return rope.rotate(x, table_factor * cos, table_factor * sin, layout)


def exact_angles() -> Tensor:
    """Position times frequency, float64 (T, F), without rope.py."""
    return torch.arange(T).double()[:, None] * 10000.0 ** (-torch.arange(0, D, 2).double() / D)


def complex_product(x: Tensor) -> Tensor:
    """RoFormer's form in float64: channels 2i and 2i + 1 as a complex number, times e^(i angle)."""
    angles = exact_angles()
    z = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def matrix_product(x: Tensor) -> Tensor:
    """The same in float64: [[cos, -sin], [sin, cos]] times the column (x, y) of each plane."""
    angles = exact_angles()
    rows = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1)
    matrices = rows.unflatten(-1, (2, 2))  # (T, F, 2, 2)
    columns = x.double().unflatten(-1, (-1, 2))  # (N, T, F, 2)
    return torch.einsum("tfij,ntfj->ntfi", matrices, columns).flatten(-2)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return (q.float() @ k.float().mT) / math.sqrt(D)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    return scores(q, k).masked_fill(future, -math.inf).softmax(-1) @ v


def largest_difference(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def measure() -> dict[str, float]:
    """Each property and its largest error, for standard normal q, k and v (4, T, D)."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, T, D)
    return rotation_errors(q) | score_errors(q, k) | layout_errors(q) | output_errors(q, k, v)


def rotation_errors(q: Tensor) -> dict[str, float]:
    """Against two other forms of the rotation, and of the norm, which a rotation keeps."""
    interleaved = rotated(q, layout="interleaved")
    yarn_at_4x = rope.yarn_attention_factor(4)  # some code multiplies the table by it
    norms = rotated(q, table_factor=yarn_at_4x).norm(dim=-1) / q.norm(dim=-1)
    return {
        "rotation less complex product": largest_difference(interleaved, complex_product(q)),
        "rotation less 2 x 2 matrices": largest_difference(interleaved, matrix_product(q)),
        "norm after less norm before": largest_difference(rotated(q).norm(dim=-1), q.norm(dim=-1)),
        "norm after / before, table times 1.139": norms.mean().item(),
    }


def score_errors(q: Tensor, k: Tensor) -> dict[str, float]:
    """When all positions move by the same offset no score should change; in bfloat16 they do."""
    results, expected = {}, scores(rotated(q), rotated(k))
    low_q, low_k = q.bfloat16(), k.bfloat16()
    for offset in OFFSETS:
        moved = scores(rotated(q, offset), rotated(k, offset))
        results[f"score moved by {offset:,}, float32"] = largest_difference(expected, moved)
        moved = scores(rotated(low_q, offset), rotated(low_k, offset))
        results[f"score moved by {offset:,}, bfloat16"] = largest_difference(expected, moved)
    unmoved = scores(rotated(low_q), rotated(low_k))
    return results | {"score unmoved, bfloat16": largest_difference(expected, unmoved)}


def layout_errors(q: Tensor) -> dict[str, float]:
    """The two layouts are one rotation of differently ordered channels."""
    order = torch.arange(D).unflatten(0, (2, -1)).T.flatten()  # 0, F, 1, F + 1, ...
    half, interleaved = rotated(q)[..., order], rotated(q[..., order], layout="interleaved")
    return {"layout half less interleaved, permuted": largest_difference(half, interleaved)}


def output_errors(q: Tensor, k: Tensor, v: Tensor) -> dict[str, float]:
    """The output does not change when all positions move, unless values are rotated too."""
    offset = OFFSETS[-1]
    moved_q, moved_k, moved_v = (rotated(x, offset) for x in (q, k, v))
    q, k = rotated(q), rotated(k)
    plain, moved = attend(q, k, v), attend(moved_q, moved_k, v)
    v_rotated, v_moved = attend(q, k, rotated(v)), attend(moved_q, moved_k, moved_v)
    return {
        "output moved, v as it is": largest_difference(plain, moved),
        "output moved, v rotated too": largest_difference(v_rotated, v_moved),
    }


def main(argv: list[str]) -> None:
    name = "python -m experiments.claims.identities"
    errors.Parser(prog=name, description=__doc__).parse_args(argv)
    results = {name: float(f"{value:.3g}") for name, value in measure().items()}
    record("identities", results)
    for name, value in results.items():
        print(f"{name:<45}{value:.3g}")


if __name__ == "__main__":
    errors.run(main)
