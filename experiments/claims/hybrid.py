"""RoPE in windows and no positions in global layers: what of it extrapolates?

`hybrid` has layers LLLG, a window of a quarter of the trained length, and no positions in its G
layer (RNoPE-SWA, arXiv:2501.18795). The others differ from it in one thing each: the window, the
pattern, the encoding of the G layer, or the logit scale (with log-n: SWAN, arXiv:2504.08719).
`swa` has windows alone, and can see no more than its layers pass on.
"""

from experiments.claims import AS_TRAINED, NONE, YARN, Trained, Variant, compare
from runtime import errors

RATIOS = (1, 2, 4, 8, 16, 64)
READ_TIME = [
    AS_TRAINED,
    Variant("logn", {"logit_scaling": "logn"}),
    Variant("llama4", {"logit_scaling": "llama4"}),
]
LENGTHS = {"prose": 256, "keys": 128, "mixture": 128}  # trained


def layered(
    name: str, flags: str, variants: list[Variant], layers: str = "LLLG", window: float = 1 / 4
) -> Trained:
    """A model of this pattern; window: of the L layers, in trained lengths."""
    shared = f"--layers={layers} {flags} --eval_interval=600 --eval_tokens=4096"
    of_task = {task: f"{shared} --window={int(window * L)}" for task, L in LENGTHS.items()}
    return Trained(name, variants, of_task)


NOPE = "--global_pos=none"
MODELS = [layered("hybrid", NOPE, READ_TIME)]
# the window
MODELS += [layered("hybrid-eighth", NOPE, [AS_TRAINED], window=1 / 8)]
MODELS += [layered("hybrid-half", NOPE, [AS_TRAINED], window=1 / 2)]
MODELS += [layered("hybrid-whole", NOPE, [AS_TRAINED], window=1)]
# the pattern, at the same depth
MODELS += [layered("hybrid-lg", NOPE, [AS_TRAINED], layers="LG")]
MODELS += [layered("hybrid-gl", NOPE, [AS_TRAINED], layers="GLLL")]
MODELS += [layered("swa", "", [AS_TRAINED], layers="L")]
# the encoding of the G layer
MODELS += [layered("hybrid-rope", "", [NONE, YARN])]
MODELS += [layered("hybrid-p-rope", "--rope_p=0.25", [NONE, YARN])]
MODELS += [layered("hybrid-theta", "--global_rope_theta=1e6", [NONE, YARN])]
# the logit scale, in training too
MODELS += [
    layered(f"hybrid-{scale}", f"{NOPE} --logit_scaling={scale}", [AS_TRAINED])
    for scale in ("logn", "ssmax", "llama4")
]

if __name__ == "__main__":
    errors.run(lambda argv: compare("hybrid", MODELS, argv, RATIOS))
