"""Other bases than 10,000 in training: do planes that all complete a turn read on more gently?

The slowest plane of base b needs 2 pi b^(15/16) tokens for a turn: 124 at b = 24, so that within
128 and 256 tokens all planes meet every angle; 2.6 million at b = 1,000,000.
"""

import cli
from experiments import NONE, YARN, Trained, judge, like_rope

BASES = (24, 1_000_000)
FORMS = [NONE, YARN]
OTHERS = [like_rope(f"theta-{base}", FORMS, f"--rope_theta={base}") for base in BASES]
MODELS = [OTHERS[0], Trained("rope", FORMS), OTHERS[1]]

if __name__ == "__main__":
    cli.end(lambda argv: judge("theta", MODELS, argv))
