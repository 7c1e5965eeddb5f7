"""Can T5's biases be learned in this few steps?

Adam moves a parameter by about the learning rate in a step, and T5's biases start at zero: after
1,200 steps they are within 1.4. `t5-10x` learns a tenth of each bias, which moves it ten times as
fast.
"""

from torch import Tensor

from experiments.claims import AS_TRAINED, compare, new_position, rope_variant
from positions import T5, Place
from runtime import errors

RATIOS = (1, 2, 4, 8, 16)


class FastT5(T5):
    """Biases are ten times the parameters."""

    def bias(self, at: Place, rows: slice) -> Tensor:
        return 10 * super().bias(at, rows)


fast = new_position("t5_10x", FastT5)
MODELS = [
    rope_variant("t5", [AS_TRAINED], "--pos=t5"),
    rope_variant("t5-10x", [AS_TRAINED], f"--pos={fast}"),
]

if __name__ == "__main__":
    errors.run(lambda argv: compare("t5_biases", MODELS, argv, RATIOS))
