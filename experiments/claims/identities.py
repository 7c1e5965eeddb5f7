"""What is exact about the rotation, and how exact: no training, half a minute.

Letters: T time, D head_dim, F = D/2 planes.
"""

import math

import torch
from torch import Tensor

import rope
from experiments.claims import record
from runtime import errors

D, T = 64, 512
OFFSETS = (1_000, 100_000, 1_000_000)


def turned(x: Tensor, offset: int = 0, layout: str = "half", sharpened: float = 1.0) -> Tensor:
    """x (N, T, D), rotated as if its first token stood at `offset`."""
    inv_freq, _ = rope.frequencies(D)
    cos, sin = rope.rotation_table(torch.arange(offset, offset + x.size(1)), inv_freq)
    return rope.rotate(x, sharpened * cos, sharpened * sin, layout)


def as_complex(x: Tensor) -> Tensor:
    """RoFormer's, float64: channels 2i and 2i + 1 as a complex number, times e^(i m theta)."""
    angles = torch.arange(T).double()[:, None] * 10000.0 ** (-torch.arange(0, D, 2).double() / D)
    z = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def as_matrices(x: Tensor) -> Tensor:
    """The same, float64: [[cos, -sin], [sin, cos]] times the column (x, y) of each plane."""
    angles = torch.arange(T).double()[:, None] * 10000.0 ** (-torch.arange(0, D, 2).double() / D)
    rows = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1)
    matrices = rows.unflatten(-1, (2, 2))  # (T, F, 2, 2)
    return torch.einsum("tfij,ntfj->ntfi", matrices, x.double().unflatten(-1, (-1, 2))).flatten(-2)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return (q.float() @ k.float().mT) / math.sqrt(D)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    return scores(q, k).masked_fill(future, -math.inf).softmax(-1) @ v


def largest(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def measure() -> dict[str, float]:
    """Each property and its largest error, of standard normal q, k and v (4, T, D)."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, T, D)
    found = {
        "rotation less complex product": largest(turned(q, layout="interleaved"), as_complex(q)),
        "rotation less 2 x 2 matrices": largest(turned(q, layout="interleaved"), as_matrices(q)),
        "norm after less norm before": largest(turned(q).norm(dim=-1), q.norm(dim=-1)),
    }
    sharp = 0.1 * math.log(4) + 1  # YaRN's at 4x, put on the table as some code does
    norms = turned(q, sharpened=sharp).norm(dim=-1) / q.norm(dim=-1)
    found["norm after / before, table times 1.139"] = norms.mean().item()
    whole = scores(turned(q), turned(k))
    for offset in OFFSETS:
        moved = scores(turned(q, offset), turned(k, offset))
        found[f"score moved by {offset:,}, float32"] = largest(whole, moved)
        low = [turned(x.bfloat16(), offset) for x in (q, k)]
        found[f"score moved by {offset:,}, bfloat16"] = largest(whole, scores(*low))
    found["score unmoved, bfloat16"] = largest(
        whole, scores(turned(q.bfloat16()), turned(k.bfloat16()))
    )
    order = torch.arange(D).unflatten(0, (2, -1)).T.flatten()  # 0, F, 1, F + 1, ...
    other = turned(q[..., order], layout="interleaved")
    found["layout half less interleaved, permuted"] = largest(turned(q)[..., order], other)
    plain, far = attend(turned(q), turned(k), v), OFFSETS[-1]
    found["output moved, v as it is"] = largest(plain, attend(turned(q, far), turned(k, far), v))
    at, moved = (attend(turned(q, o), turned(k, o), turned(v, o)) for o in (0, far))
    found["output moved, v rotated too"] = largest(at, moved)
    return found


def main(argv: list[str]) -> None:
    errors.Parser(prog="python -m experiments.claims.identities", description=__doc__).parse_args(
        argv
    )
    found = {name: float(f"{value:.3g}") for name, value in measure().items()}
    record("identities", found)
    print("\n".join(f"{name:<45}{value:.3g}" for name, value in found.items()))


if __name__ == "__main__":
    errors.end(main)
