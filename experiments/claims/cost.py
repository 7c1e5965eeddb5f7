"""What an encoding costs: parameters, a training step and a decoded token, beside rope's.

Models of the size of the prose models, in turns, on one thread, so that a slow moment of the
machine affects all of them. A step is a forward and a backward pass of 16 windows of 256 tokens in
the dtype that train.py picks; a token is decoded after 512 others, from a full cache.
"""

from collections.abc import Callable
from functools import partial

import torch

from experiments.claims import record
from experiments.timing import cpu, interleaved, spread
from model import GPT, GPTConfig, KVCache
from positions import POSITIONS
from runtime import errors
from runtime.device import pick_dtype

ROUNDS = 7
TOKENS = 16  # decoded in a round
BEFORE = 512  # tokens in the cache
HYBRID = {"pos": "rope", "layers": "LLLG", "window": 64, "global_pos": "none"}
MODELS = {pos: {"pos": pos} for pos in POSITIONS} | {
    "rope, yarn": {"pos": "rope", "rope_scaling": "yarn", "rope_factor": 4.0},
    "rope, learned": {"pos": "rope", "rope_learned": True},
    "swa": {"pos": "rope", "layers": "L", "window": 64},
    "hybrid": HYBRID,
    "hybrid, logn": HYBRID | {"logit_scaling": "logn"},
    "hybrid, ssmax": HYBRID | {"logit_scaling": "ssmax"},
}


def build(settings: dict) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=65, **settings))


def step(model: GPT, idx: torch.Tensor) -> None:
    dtype = pick_dtype("auto", torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(idx, idx)
    loss.backward()


@torch.no_grad()
def decode(model: GPT, cache: KVCache, idx: torch.Tensor) -> None:
    """The tokens after BEFORE of them, one at a time."""
    cache.length = idx.size(1) - TOKENS
    for i in range(idx.size(1) - TOKENS, idx.size(1)):
        model.logits(model.hidden(idx[:, i : i + 1], cache))


def decoder(model: GPT, idx: torch.Tensor) -> Callable[[], None]:
    cache = KVCache(idx.size(1))
    with torch.no_grad():
        model.hidden(idx[:, :-TOKENS], cache)
    return partial(decode, model, cache, idx)


def measure() -> dict:
    torch.set_num_threads(1)
    idx, text = torch.randint(65, (16, 256)), torch.randint(65, (1, BEFORE + TOKENS))
    models = {name: build(settings) for name, settings in MODELS.items()}
    steps = interleaved({name: partial(step, m, idx) for name, m in models.items()}, ROUNDS)
    for model in models.values():
        model.eval()
    # A learned table ends at the trained length.
    longer = {name: m for name, m in models.items() if m.max_length > BEFORE + TOKENS}
    tokens = interleaved({name: decoder(m, text) for name, m in longer.items()}, ROUNDS)
    results = {"cpu": cpu(), "parameters": {}, "step": {}, "token": {}}
    for name, model in models.items():
        results["parameters"][name] = sum(p.numel() for p in model.parameters())
    for kind, times in (("step", steps), ("token", tokens)):
        for name, seconds in times.items():
            ratio = [a / b for a, b in zip(seconds, times["rope"], strict=True)]
            results[kind][name] = [round(x, 3) for x in spread(ratio)]
    return results


def main(argv: list[str]) -> None:
    errors.Parser(prog="python -m experiments.claims.cost").parse_args(argv)
    results = measure()
    for name in MODELS:
        numbers = (results["parameters"][name], results["step"][name], results["token"].get(name))
        print(name, *numbers)
    record("cost", results)


if __name__ == "__main__":
    errors.run(main)
