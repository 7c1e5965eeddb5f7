"""Two matrix products and a softmax, where they are chosen, are scaled_dot_product_attention."""

import pytest
import torch
import torch.nn.functional as F

from attention import BLOCK, products, products_are_faster
from model import GPT, GPTConfig


def heads(dtype, T=24):
    torch.manual_seed(0)
    return [torch.randn(2, 3, T, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


def alibi(T, dtype):
    """Scores less a slope times the distance, -inf at keys to come: (1, heads, T, T)."""
    place = torch.arange(T, dtype=dtype)
    bias = torch.tensor([0.5, 0.1, 0.02], dtype=dtype)[:, None, None] * (place - place[:, None])
    return bias.masked_fill(place > place[:, None], -torch.inf)[None]


def both(dtype, T=24, mask=None, scale=0.3):
    """(ours, torch's), each as output and gradients."""
    found = []
    for attend in (
        lambda q, k, v: products(q, k, v, mask, scale, 0.0),
        lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=scale
        ),
    ):
        q, k, v = heads(dtype, T)
        y = attend(q, k, v)
        (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum().backward()
        found.append([y, q.grad, k.grad, v.grad])
    return found


LENGTHS = [1, 24, BLOCK, BLOCK + 1, 3 * BLOCK - 7]


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_attention_forward_and_backward(T, biased):
    mask = alibi(T, torch.float64) if biased else None
    for ours, theirs in zip(*both(torch.float64, T, mask), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("biased", [False, True])
def test_in_bfloat16_products_err_no_more_than_twice_as_much(T, biased):
    def mask(dtype):
        return alibi(T, torch.float64).to(dtype) if biased else None

    exact = both(torch.float64, T, mask(torch.float64))[1]
    # Asked as the model asks: a float32 mask beside bfloat16 queries.
    ours, theirs = both(torch.bfloat16, T, mask(torch.float32))
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + 2e-2


def test_they_are_chosen_in_bfloat16_training_on_short_windows_of_a_cpu_alone():
    q, k, _ = heads(torch.bfloat16)
    assert products_are_faster(q, k)
    with torch.no_grad():
        assert not products_are_faster(q, k)
    assert not products_are_faster(q, k[:, :1])
    assert not products_are_faster(q[:, :, -1:], k)
    assert not products_are_faster(q.float(), k.float())
    assert not products_are_faster(*heads(torch.bfloat16, T=4 * BLOCK + 1)[:2])
    assert not products_are_faster(q.to("meta"), k.to("meta"))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_training_loss_in_bfloat16_is_close_to_float32(dropout):
    torch.manual_seed(0)
    settings = {"block_size": 32, "vocab_size": 30, "n_layer": 2, "n_head": 2, "n_embd": 32}
    model, idx = GPT(GPTConfig(**settings, dropout=dropout)), torch.randint(30, (4, 33))
    losses = []
    for mixed in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            losses.append(model(idx[:, :-1], idx[:, 1:]).item())
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
