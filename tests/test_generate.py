"""The KV cache, `generate` and sampling: a token at a time, as if every text were read whole.

T time, V vocabulary. `tiny`: oracles_hf.py.
"""

import math

import pytest
import torch
from oracles_hf import LAYERED, TINY, encodings, longest, name, rebuilt, tiny, tokens
from transformers import TopKLogitsWarper, TopPLogitsWarper

from model import KVCache, distribution, sample_tokens
from positions import POSITIONS

L = TINY["block_size"]

# a frequency that depends on the length already within the block, and partly rotated heads
VARIANTS = [
    {"pos": "rope", "beyond": "extend", "rope_scaling": "dynamic_yarn", "rope_train_len": 3},
    {"pos": "rope", "rope_layout": "interleaved", "rope_fraction": 0.5},
    {"pos": "rope", "rope_fraction": 0.5, "rope_scaling": "dynamic_yarn"},
    *LAYERED,
]
every_encoding = pytest.mark.parametrize("settings", [*encodings(), *VARIANTS], ids=name)


@pytest.fixture(autouse=True)
def one_thread_and_no_grad():
    """Models this small only lose time to a second thread."""
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def cached_logits(model, idx, cache, prompt=3):
    """What `generate` sees at each length from the prompt's on."""
    found = []
    for t in range(prompt, idx.size(1) + 1):
        if cache.factors != model.interpolation_factors(t):
            cache.clear()
        found.append(model.logits(model.hidden(idx[:, cache.length : t], cache, last=1)[0, -1]))
    return found


def drawn(model, idx, count, **settings):
    """The tokens of `generate` for a single prompt, as a list."""
    return [int(tokens) for tokens in model.generate(idx, count, **settings)]


def full_logits(model, idx, prompt=3):
    return [model(idx[:, :t])[0, -1] for t in range(prompt, idx.size(1) + 1)]


# ---- cached equals whole


@pytest.mark.parametrize(
    ("dtype", "tolerance", "n_kv_head"),
    [(torch.float64, 1e-12, 4), (torch.float64, 1e-12, 1), (torch.float32, 1e-5, 2)],
)
@every_encoding
def test_cached_logits_are_those_of_a_full_forward_at_each_length(
    settings, dtype, tolerance, n_kv_head
):
    model, idx = tiny(dtype, n_kv_head=n_kv_head, **settings), tokens(longest(settings))
    cached = cached_logits(model, idx, KVCache(idx.size(1)))
    for fast, full in zip(cached, full_logits(model, idx), strict=True):
        torch.testing.assert_close(fast, full, rtol=0, atol=tolerance)


@every_encoding
def test_bfloat16_cached_logits_are_those_of_a_full_forward(settings):
    model, idx = tiny(torch.bfloat16, **settings), tokens(longest(settings))
    cached = cached_logits(model, idx, KVCache(idx.size(1)))
    for fast, full in zip(cached, full_logits(model, idx), strict=True):
        assert (fast - full).norm() < 0.02 * full.norm()


@every_encoding
def test_a_short_text_after_a_long_one_is_read_as_by_a_fresh_model(settings):
    model, idx = tiny(torch.float64, **settings), tokens(longest(settings))
    short = tokens(5, seed=1)
    cache = KVCache(idx.size(1))
    cached_logits(model, idx, cache)
    model(idx)
    list(model.generate(idx[:, :3], idx.size(1) - 3))
    fresh = rebuilt(model)
    assert torch.equal(model(short), fresh(short))
    greedy = [drawn(m, short[:, :3], 3, temperature=0) for m in (model, fresh)]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize(
    "settings",
    [
        s
        for s in [*encodings(), *LAYERED]
        if s.get("beyond", "extend") == "extend" and "dynamic" not in name(s)
    ],
    ids=name,
)
def test_a_text_read_in_pieces_is_read_as_a_whole(settings, n_kv_head):
    model = tiny(torch.float64, n_kv_head=n_kv_head, **settings)
    idx = tokens(longest(settings), batch=2)
    cache, pieces = KVCache(idx.size(1)), []
    for size in [1, 3, 7] * 3:
        piece = idx[:, cache.length : cache.length + size]
        if piece.size(1):
            pieces.append(model.logits(model.hidden(piece, cache)))
    torch.testing.assert_close(torch.cat(pieces, 1), model(idx), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_kv_head", [4, 1])
@pytest.mark.parametrize("settings", [*encodings(), *LAYERED], ids=name)
def test_the_last_positions_alone_are_those_of_the_whole(settings, n_kv_head):
    model = tiny(torch.float64, n_kv_head=n_kv_head, **settings)
    for length in (3, longest(settings)):
        idx = tokens(length, batch=2)
        whole, cache = model.hidden(idx), KVCache(length)
        for last in (1, 2, length - 1, length, length + 1):
            part = model.hidden(idx, last=last)
            torch.testing.assert_close(part, whole[:, -last:], rtol=0, atol=1e-12)
        part = model.hidden(idx, cache, last=2)
        torch.testing.assert_close(part, whole[:, -2:], rtol=0, atol=1e-12)


def test_a_cache_refuses_positions_past_its_size():
    model, cache = tiny(), KVCache(4)
    model.hidden(tokens(3), cache)
    with pytest.raises(ValueError, match="holds 4 positions; asked for 5"):
        model.hidden(tokens(2), cache)


def test_a_cache_holds_shared_heads_once():
    model, cache = tiny(n_kv_head=2), KVCache(5)
    model.hidden(tokens(3), cache)
    shape = (1, 2, 5, TINY["n_embd"] // TINY["n_head"])
    assert [tuple(store.shape) for store in cache.layers[1]] == [shape, shape]


def test_a_learned_table_refuses_to_be_read_past_its_end_through_a_cache():
    model, cache = tiny(pos="learned"), KVCache(2 * L)
    model.hidden(tokens(L), cache)
    with pytest.raises(ValueError, match=f"end at {L}, .* asked for {L + 1}"):
        model.hidden(tokens(1), cache)


# ---- generate


@every_encoding
def test_greedy_tokens_are_the_likeliest_of_full_forwards(settings):
    """From a short prompt across the trained length."""
    model, text = tiny(torch.float64, **settings), tokens(3)
    count = longest(settings) + 1 - 3  # the last token is not read again
    greedy = drawn(model, text, count, temperature=0)
    for _ in range(count):
        text = torch.cat((text, model(text)[:, -1:].argmax(-1)), 1)
    assert greedy == text[0, 3:].tolist()


@pytest.mark.parametrize("settings", [s for s in encodings() if s["pos"] != "learned"], ids=name)
def test_a_prompt_may_be_longer_than_the_trained_length(settings):
    model, text = tiny(torch.float64, **settings), tokens(2 * L + 1)
    first = next(model.generate(text, 4, temperature=0))
    assert first == model(text)[0, -1].argmax()


def test_the_same_seed_draws_the_same_tokens():
    model = tiny()
    texts = [
        drawn(model, tokens(3), 20, generators=[torch.Generator().manual_seed(seed)])
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 20


@every_encoding
def test_a_sample_does_not_depend_on_those_beside_it(settings):
    """Three prompts as one batch, each row with a generator of its own, and each row alone."""
    model, prompts = tiny(torch.float64, **settings), tokens(3, batch=3)
    count = min(longest(settings) - 3, 12)

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (4, 5, 6)]

    batch = torch.stack(list(model.generate(prompts, count, 0.8, 9, 0.9, generators())), 1)
    assert batch.dtype == torch.int64
    for prompt, row, generator in zip(prompts, batch.tolist(), generators(), strict=True):
        assert (
            drawn(
                model,
                prompt[None],
                count,
                temperature=0.8,
                top_k=9,
                top_p=0.9,
                generators=[generator],
            )
            == row
        )


@pytest.mark.parametrize("settings", [*encodings(), *LAYERED], ids=name)
def test_a_window_shows_the_model_its_last_tokens_alone(settings):
    """`--beyond slide`: past L tokens each is drawn as after the last L by themselves."""
    model, text = tiny(torch.float64, **settings), tokens(3)
    greedy = drawn(model, text, 3 * L, temperature=0, window=L)
    for _ in range(3 * L):
        text = torch.cat((text, model(text[:, -L:])[:, -1:].argmax(-1)), 1)
    assert greedy == text[0, 3:].tolist()


@pytest.mark.parametrize(
    "settings", [{"temperature": 1e-45}, {"temperature": 5e-324}, {"top_k": 1}, {"top_p": 0.0}]
)
def test_what_leaves_one_token_is_greedy(settings):
    model = tiny(torch.float64)
    assert drawn(model, tokens(3), 12, **settings) == drawn(model, tokens(3), 12, temperature=0)


@pytest.mark.parametrize("settings", [{"top_k": 10**6}, {"top_p": 1.0}])
def test_what_leaves_all_tokens_changes_nothing(settings):
    model = tiny()
    texts = [
        drawn(model, tokens(3), 20, generators=[torch.Generator().manual_seed(0)], **more)
        for more in ({}, settings)
    ]
    assert texts[0] == texts[1]


def test_a_model_trains_on_after_it_has_generated():
    model = tiny(rope_scaling="dynamic_ntk").train()
    list(model.generate(tokens(3), 2 * L))
    with torch.enable_grad():
        model(tokens(2 * L), tokens(2 * L, seed=1)).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_nothing_is_drawn_where_nothing_is_asked_for():
    assert list(tiny().generate(tokens(3), 0)) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": -3}, "top_k is -3"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": -0.1}, "top_p is -0.1"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"idx": tokens(0)}, r"shape \(1, 0\)"),
        ({"idx": tokens(3, batch=2)[:0]}, r"shape \(0, 3\)"),
        ({"idx": tokens(3)[0]}, r"shape \(3,\)"),
    ],
)
def test_what_cannot_be_generated_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        next(tiny().generate(**{"idx": tokens(3), "max_new_tokens": 2, **settings}))


def test_dropout_must_be_off():
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        next(tiny(dropout=0.1).train().generate(tokens(3), 2))


def test_a_learned_table_that_will_not_suffice_is_refused_before_the_first_token():
    model = tiny(pos="learned")
    assert len(list(model.generate(tokens(3), L + 1 - 3))) == L + 1 - 3
    with pytest.raises(ValueError, match=f"end at {L}"):
        next(model.generate(tokens(3), L + 2 - 3))


# ---- the distribution that is drawn from


def reference(logits, temperature=1.0, top_k=None, top_p=None):
    """transformers' warpers in the order that it applies them."""
    scores = logits.double()[None] / temperature
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 2, 7, 49, 50, 1000])
@pytest.mark.parametrize("top_p", [None, 0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p):
    for seed in range(5):
        logits = 3 * torch.randn(50, generator=torch.Generator().manual_seed(seed))
        expected = reference(logits, temperature, top_k, top_p)
        (drawn_from,) = distribution(logits[None].double() / temperature, top_k, top_p)
        drawn_from = drawn_from / drawn_from.sum()  # as multinomial does
        matters = (expected == 0) | (expected > 1e-15)  # the rest is lost in rounding
        assert torch.equal((drawn_from > 0)[matters], (expected > 0)[matters])
        torch.testing.assert_close(drawn_from, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.8}, {"temperature": 0.4}])
def test_tokens_are_those_that_torch_draws(settings):
    """torch.multinomial, a row at a time, from generators in the same state."""
    logits = 3 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    ours, theirs = ([torch.Generator().manual_seed(i) for i in range(64)] for _ in range(2))
    drawn_tokens = sample_tokens(logits, **settings, generators=ours).tolist()
    rows = [reference(row, **settings) for row in logits]
    expected = [
        int(torch.multinomial(r, 1, generator=g)) for r, g in zip(rows, theirs, strict=True)
    ]
    assert drawn_tokens == expected
    assert len(set(drawn_tokens)) > 10


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.8}, {"temperature": 2.0}])
def test_tokens_are_drawn_as_often_as_they_are_likely(settings):
    """Within four standard deviations."""
    logits, n = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5]), 4000
    generator = torch.Generator().manual_seed(0)
    draws = [int(sample_tokens(logits[None], **settings, generators=[generator])) for _ in range(n)]
    counts, p = torch.bincount(torch.tensor(draws), minlength=5), reference(logits, **settings)
    assert ((counts - n * p).abs() <= 4 * (n * p * (1 - p)).sqrt()).all()


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0}])
def test_sampling_leaves_the_logits_as_they_were(settings):
    logits = torch.arange(5, dtype=torch.float64)
    sample_tokens(logits[None], **settings)
    assert torch.equal(logits, torch.arange(5, dtype=torch.float64))


def test_every_encoding_is_covered():
    assert {settings["pos"] for settings in encodings()} == set(POSITIONS)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_scaling": "dynamic_yarn"},
        {"pos": "learned", "beyond": "interpolate"},
        {"layers": "LG", "window": 4, "rope_scaling": "dynamic_ntk"},
    ],
)
def test_a_stale_cache_is_refused(settings):
    model, cache = tiny(**settings), KVCache(4 * L)
    model.hidden(tokens(L), cache)
    with pytest.raises(ValueError, match=r"cache of 8 tokens was filled under .* factors"):
        model.hidden(tokens(1), cache)
    cache.clear()
    model.hidden(tokens(L + 1), cache)


def test_a_negative_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="max_new_tokens is -1; it must be 0 or more"):
        next(tiny(pos="rope").generate(tokens(3), -1))
