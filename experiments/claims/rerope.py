"""Distances exact within a window W and constant beyond it: ReRoPE, and leaky ReRoPE.

Two texts give YaRN a local window |m - n| < W. YaRN has none; ReRoPE has one (J. Su, 2023,
https://kexue.fm/archives/9708). It computes the scores twice, as RoPE does and as if every key
stood W + (distance - W) / step away, and chooses by distance.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from experiments.claims import NONE, YARN, Trained, Variant, compare
from experiments.claims.remapping import Part, Remapped, remapped
from model import GPTConfig
from runtime import errors


class ReRope(Remapped):
    """Attention whose scores depend on a distance that grows slower, or not, beyond W.

    window: W in trained lengths. leaky: the step is such that no key stands farther away than the
    trained length; otherwise it is infinite. Full forward passes only where it is leaky: the step
    depends on the length of the text, and a cache would keep the states of shorter texts.
    """

    def __init__(self, config: GPTConfig, layer: int, window: float, leaky: bool):
        super().__init__(config, layer)
        self.local, self.leaky = int(window * config.train_len), leaky

    def parts(self, i: Tensor, j: Tensor, length: int) -> Iterator[Part]:
        W = min(length, self.local)
        step = self.step(length, W)
        near = i[:, None] - j < W
        yield Part(near, i, j)
        # A key at distance d then stands W + (d - W) / step away.
        yield Part(~near, i / step + W * (1 - 1 / step), j / step)

    def step(self, length: int, window: int) -> float:
        if not self.leaky:
            return math.inf
        return max(1.0, (length - window) / (self.config.train_len - window))


def rerope(window: float, leaky: bool, logn: bool = False) -> Variant:
    """The variant of this window, in trained lengths."""
    name = "leaky ReRoPE" if leaky else "ReRoPE"
    return remapped(f"{name}, W = {window:g} L", ReRope, logn, window=window, leaky=leaky)


VARIANTS = [NONE, YARN, rerope(0.25, leaky=False), rerope(0.5, leaky=False)]
VARIANTS += [rerope(0.5, leaky=True)]
# Its author multiplies the scores by max(1, ln(position) / ln L) as well.
VARIANTS += [rerope(0.5, leaky, logn=True) for leaky in (False, True)]
MODELS = [Trained("rope", VARIANTS)]

if __name__ == "__main__":
    errors.run(lambda argv: compare("rerope", MODELS, argv))
