"""A small base in training: do planes that all complete a turn read on more gently?

The slowest plane of base b needs 2 pi b^(15/16) tokens for a turn: 124 at b = 24, so that within
128 and 256 tokens all planes meet every angle; 35,000 at 10,000.
"""

import cli
from experiments import NONE, YARN, Trained, judge, like_rope

FORMS = [NONE, YARN]
MODELS = [like_rope("theta-24", FORMS, "--rope_theta=24"), Trained("rope", FORMS)]

if __name__ == "__main__":
    cli.end(lambda argv: judge("theta", MODELS, argv))
