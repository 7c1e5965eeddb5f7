"""The ways to compute attention, against scaled_dot_product_attention and the readable one."""

import pytest
import torch
import torch.nn.functional as F
from oracles_hf import LAYERED, encodings, longest, name, tiny, tokens

import model as model_file
from model import BLOCK, GPT, Attention, GPTConfig, fused, kernel_for, products, whole_scores


def heads(dtype, T=24):
    torch.manual_seed(0)
    return [torch.randn(2, 3, T, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


def causal(T):
    return torch.ones(T, T, dtype=torch.bool).tril()


def alibi(T, dtype):
    """Scores less a slope times the distance, -inf at keys to come: (heads, T, T)."""
    place = torch.arange(T, dtype=dtype)
    bias = torch.tensor([0.5, 0.1, 0.02], dtype=dtype)[:, None, None] * (place - place[:, None])
    return bias.masked_fill(place > place[:, None], -torch.inf)


def both(dtype, T=24, mask=None, scale=0.3):
    """(ours, torch's), each as output and gradients."""
    results = []
    for attention in (
        lambda q, k, v: products(q, k, v, causal(T) if mask is None else mask, scale, 0.0),
        lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, mask if mask is None else mask[None], is_causal=mask is None, scale=scale
        ),
    ):
        q, k, v = heads(dtype, T)
        y = attention(q, k, v)
        (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum().backward()
        results.append([y, q.grad, k.grad, v.grad])
    return results


LENGTHS = [1, 24, BLOCK + 1]


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
    # Called as the model does: a float32 mask beside bfloat16 queries.
    ours, theirs = both(torch.bfloat16, T, mask(torch.float32))
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + 2e-2


def test_products_are_chosen_in_bfloat16_training_on_short_windows_of_a_cpu_alone():
    layer = GPT(GPTConfig(vocab_size=9, n_layer=1)).h[0].attn
    q, k, _ = heads(torch.bfloat16)
    assert kernel_for(layer, q, k) is products
    with torch.no_grad():
        assert kernel_for(layer, q, k) is fused
    assert kernel_for(layer, q, k[:, :1]) is fused
    assert kernel_for(layer, q[:, :, -1:], k) is fused
    assert kernel_for(layer, q.float(), k.float()) is fused
    assert kernel_for(layer, *heads(torch.bfloat16, T=4 * BLOCK + 1)[:2]) is fused
    assert kernel_for(layer, q.to("meta"), k.to("meta")) is fused


class Readable(Attention):
    """Its own scores: those of the base class, which `attend` then computes step by step."""

    def scores(self, q, k, at, rows):
        return super().scores(q, k, at, rows)


@pytest.mark.parametrize("n_kv_head", [4, 2])
@pytest.mark.parametrize("settings", [*encodings(), *LAYERED], ids=name)
def test_the_fast_ways_are_the_readable_one(settings, n_kv_head, monkeypatch):
    """In blocks of 7 queries, so that several of them make up a text."""
    fast, slow = (tiny(torch.float64, n_kv_head=n_kv_head, **settings) for _ in range(2))
    for block in slow.h:
        block.attn.__class__ = Readable
    assert kernel_for(slow.h[0].attn, *heads(torch.float32)[:2]) is whole_scores
    idx = tokens(longest(settings), batch=2)
    whole = fast(idx)
    for block in (7, BLOCK):
        monkeypatch.setattr(model_file, "BLOCK", block)
        torch.testing.assert_close(fast(idx), whole, rtol=0, atol=1e-12)
        torch.testing.assert_close(slow(idx), whole, rtol=0, atol=1e-12)


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
