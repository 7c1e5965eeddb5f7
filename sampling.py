"""Which token comes next: one drawn from the logits, by temperature, top_k and top_p."""

import math

import torch
from torch import Tensor


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """ValueError that names the setting a token cannot be drawn with."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be 0 (the likeliest) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 <= top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be from 0 (the likeliest) to 1 (all)")


def sample_token(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Draw a token id from logits (V,) on the CPU; arguments as in `GPT.generate`."""
    if not logits.max().isfinite():  # NaN spreads to the maximum
        way_out = "sample from an earlier checkpoint, or train with a lower learning_rate"
        raise ValueError(f"the model's logits are not finite; {way_out}")
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.double()
    logits = (logits - logits.max()) / temperature  # 0 at most: no temperature overflows
    if top_k is not None and top_k < logits.numel():
        logits[logits < logits.topk(top_k).values[-1]] = -math.inf
    probabilities = logits.softmax(-1)
    if top_p is not None:
        ranked, order = probabilities.sort(descending=True, stable=True)
        beyond = ranked.cumsum(-1) - ranked >= top_p  # mass before it already reaches top_p
        beyond[0] = False
        probabilities[order[beyond]] = 0.0
    return int(torch.multinomial(probabilities, 1, generator=generator))
