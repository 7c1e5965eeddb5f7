"""rope.py against transformers, against slow float64 twins (oracles.py), and its own promises.

B batch, H heads, T time, D head_dim, F = D/2 planes; s factor, L trained length.
"""

import math
import shutil

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import GPTNeoXConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama

from rope import SCALINGS, frequencies, rotate, rotation_table, settings

LAYOUTS = ("half", "interleaved")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# head_dim, theta, factor, train_len
SIZES = [
    (64, 10000.0, 4.0, 256),
    (64, 10000.0, 4.0, 128),
    (32, 10000.0, 8.0, 64),
    (16, 10000.0, 1.0, 256),
    (96, 1000000.0, 32.0, 4096),
    (128, 10000.0, 2.5, 2048),
    (128, 500000.0, 8.0, 8192),
    (32, 10.0, 4.0, 1000),  # every plane turns often: the end of YaRN's index ramp is cut off
]

# every scaling as it comes, then with its settings changed
VARIANTS = [(scaling, {}) for scaling in SCALINGS] + [
    ("ntk_by_parts", {"beta_fast": 8.0, "beta_slow": 0.5}),
    ("yarn", {"ramp": "rotations"}),
    ("yarn", {"ramp": "rotations", "beta_fast": 8.0, "beta_slow": 0.5}),
    ("yarn", {"truncate": False}),
    ("yarn", {"beta_fast": 8.0, "beta_slow": 0.5}),
    ("yarn", {"beta_fast": 4.0, "beta_slow": 2.0, "truncate": False}),
    ("llama3", {"low_freq_factor": 2.0, "high_freq_factor": 16.0}),
    ("clip", {"clip": "soft"}),
]
INTERPOLATING = [variant for variant in VARIANTS if variant[0] != "clip"]  # they read a factor

many = hypothesis_settings(max_examples=50, deadline=None, derandomize=True)
any_size = {
    "head_dim": st.integers(2, 64).map(lambda planes: 2 * planes),
    "theta": st.floats(1.5, 1e7),
    "factor": st.floats(1, 128),
    "train_len": st.integers(1, 10**6),
}
any_seed = st.integers(0, 2**32 - 1)


def gaussian(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def table(positions, head_dim):
    return rotation_table(torch.as_tensor(positions), frequencies(head_dim)[0])


# ---- frequencies, against transformers


def transformers_config(head_dim, theta, factor, train_len, fraction=1.0, **rope_parameters):
    return LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=round(train_len * factor),
        rope_parameters={
            "rope_theta": theta,
            "factor": factor,
            "partial_rotary_factor": fraction,
            "original_max_position_embeddings": train_len,
            **rope_parameters,
        },
    )


TRANSFORMERS_VARIANTS = [
    ("linear", {}),
    ("yarn", {}),
    ("yarn", {"truncate": False}),
    ("yarn", {"beta_fast": 8.0, "beta_slow": 2.0}),
    ("yarn", {"beta_fast": 16.0, "beta_slow": 4.0, "truncate": False}),
    ("yarn", {"attention_factor": 1.25}),
    ("llama3", {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ("llama3", {"low_freq_factor": 2.0, "high_freq_factor": 16.0}),
]


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("scaling", "knobs"), TRANSFORMERS_VARIANTS, ids=str)
def test_scaled_frequencies_are_those_of_transformers(scaling, knobs, size, fraction):
    head_dim, theta, factor, train_len = size
    config = transformers_config(*size, fraction, rope_type=scaling, **knobs)
    theirs, their_attention_factor = ROPE_INIT_FUNCTIONS[scaling](config)

    rotary_dim = int(head_dim * fraction)
    ours, attention_factor = frequencies(rotary_dim, theta, scaling, factor, train_len, **knobs)

    # transformers works in float32 and raises theta to rounded powers
    np.testing.assert_allclose(ours, theirs, rtol=3e-6)
    assert attention_factor == their_attention_factor


@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10000.0), (128, 500000.0), (32, 100.0)])
def test_unscaled_frequencies_are_those_of_transformers(head_dim, theta, fraction):
    config = GPTNeoXConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": theta,
            "partial_rotary_factor": fraction,
        },
    )
    theirs = GPTNeoXRotaryEmbedding(config)

    ours, attention_factor = frequencies(int(head_dim * fraction), theta)

    np.testing.assert_allclose(ours, theirs.inv_freq, rtol=3e-6)
    assert attention_factor == theirs.attention_scaling


# ---- frequencies, against the formulas


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("scaling", "knobs"), VARIANTS, ids=str)
def test_frequencies_are_those_of_the_published_formula(scaling, knobs, size):
    head_dim, theta, factor, train_len = size
    inv_freq, _ = frequencies(head_dim, theta, scaling, factor, train_len, **knobs)

    assert inv_freq.dtype == torch.float64
    twin = getattr(oracles, scaling)(*size, **knobs)
    np.testing.assert_allclose(inv_freq, twin, rtol=1e-13)


@pytest.mark.parametrize(
    ("ramp", "published"),
    [
        ("index", [1, 1.13, 1.30, 1.53, 1.86, 2.36, 3.25, 4]),
        ("rotations", [1, 1.28, 1.86, 2.49, 3.08, 3.56, 3.89, 4]),
    ],
)
def test_yarn_slows_the_planes_by_the_golden_numbers(ramp, published):
    slowed, _ = frequencies(64, 10000.0, "yarn", factor=4.0, train_len=256, ramp=ramp)
    effective_scale = frequencies(64)[0] / slowed
    np.testing.assert_allclose(effective_scale[0:16:2], published, atol=0.005)


@pytest.mark.parametrize(("scaling", "knobs"), VARIANTS, ids=str)
def test_only_yarn_sharpens_attention(scaling, knobs):
    _, attention_factor = frequencies(64, scaling=scaling, factor=4.0, train_len=256, **knobs)
    assert attention_factor == (0.1 * math.log(4) + 1 if scaling == "yarn" else 1.0)


def test_a_given_attention_factor_replaces_that_of_yarn():
    given_factor = {"factor": 4.0, "attention_factor": 1.5}
    assert frequencies(64, scaling="yarn", **given_factor)[1] == 1.5
    assert frequencies(64, scaling="yarn", ramp="rotations", **given_factor)[1] == 1.5


@pytest.mark.parametrize("scaling", SCALINGS)
def test_settings_lists_every_knob_with_the_default_it_has(scaling):
    plain, plain_factor = frequencies(64, scaling=scaling, factor=4.0, train_len=256)
    spelled_out, spelled_out_factor = frequencies(
        64,
        scaling=scaling,
        factor=4.0,
        train_len=256,
        **{name: p.default for name, p in settings(scaling).items()},
    )
    assert torch.equal(plain, spelled_out)
    assert plain_factor == spelled_out_factor


def test_the_trained_length_is_2048_where_none_is_given():
    by_default, _ = frequencies(64, scaling="yarn", factor=4.0)
    assert torch.equal(by_default, frequencies(64, 10000.0, "yarn", 4.0, 2048)[0])


@pytest.mark.parametrize(
    ("scaling", "known"),
    [
        ("none", []),
        ("linear", []),
        ("ntk", []),
        ("ntk_by_parts", ["beta_fast", "beta_slow"]),
        ("yarn", ["beta_fast", "beta_slow", "ramp", "truncate", "attention_factor"]),
        ("llama3", ["low_freq_factor", "high_freq_factor"]),
        ("clip", ["clip"]),
    ],
)
def test_settings_are_the_published_ones(scaling, known):
    assert list(settings(scaling)) == known


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.55, 0.75, 1.0])
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10000.0), (128, 500000.0), (32, 100.0)])
def test_p_rope_frequencies_are_those_of_transformers(head_dim, theta, p):
    config = transformers_config(head_dim, theta, 1.0, 256, fraction=p, rope_type="proportional")
    theirs, _ = ROPE_INIT_FUNCTIONS["proportional"](config)
    ours, attention_factor = frequencies(head_dim, theta, p=p)
    np.testing.assert_allclose(ours, theirs, rtol=3e-6)
    assert (len(ours) - ours.count_nonzero(), attention_factor) == (
        head_dim // 2 - p * head_dim // 2,
        1,
    )


@pytest.mark.parametrize("p", [0.0, 0.01, 1.1, -1.0])
def test_p_that_leaves_no_plane_or_too_many_is_refused(p):
    with pytest.raises(ValueError, match=r"p is .*; it must leave 1 to 32 planes that rotate"):
        frequencies(64, p=p)


def test_clip_stops_exactly_the_planes_that_saw_no_whole_rotation():
    plain, (hard, _), (soft, _) = (
        frequencies(64)[0],
        frequencies(64, scaling="clip", train_len=256),
        frequencies(64, scaling="clip", train_len=256, clip="soft"),
    )
    slow = 2 * math.pi / plain > 256
    assert 0 < slow.sum() < 32
    assert torch.equal(hard, plain.where(~slow, 0.0))
    assert torch.equal(soft[~slow], plain[~slow])
    ratio = (soft / plain)[slow]
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(0, abs=1e-15)
    assert (ratio.diff() < 0).all()
    assert frequencies(64, scaling="clip", train_len=18)[0].count_nonzero() == 4
    with pytest.raises(ValueError, match="clip is 'round'; it must be 'hard' or 'soft'"):
        frequencies(64, scaling="clip", clip="round")


# ---- frequencies, what must hold at any size


@pytest.mark.parametrize(("scaling", "knobs"), INTERPOLATING, ids=str)
@many
@given(size=st.fixed_dictionaries(any_size))
def test_factor_one_scales_nothing(scaling, knobs, size):
    size = {**size, "factor": 1.0}
    inv_freq, attention_factor = frequencies(scaling=scaling, **size, **knobs)
    unscaled, _ = frequencies(size["head_dim"], size["theta"])
    assert torch.equal(inv_freq, unscaled)
    assert attention_factor == 1.0


@pytest.mark.parametrize(("scaling", "knobs"), INTERPOLATING, ids=str)
@many
@given(size=st.fixed_dictionaries(any_size))
def test_slower_planes_are_stretched_more_and_none_beyond_the_factor(scaling, knobs, size):
    inv_freq, _ = frequencies(scaling=scaling, **size, **knobs)
    effective_scale = frequencies(size["head_dim"], size["theta"])[0] / inv_freq
    rounding = 1e-12 * size["factor"]
    assert effective_scale.min() >= 1 - rounding
    assert effective_scale.max() <= size["factor"] + rounding
    assert effective_scale.diff().min() >= -rounding


@many
@given(size=st.fixed_dictionaries(any_size))
def test_ntk_keeps_the_first_plane_and_slows_the_last_by_the_factor(size):
    inv_freq, _ = frequencies(scaling="ntk", **size)
    unscaled, _ = frequencies(size["head_dim"], size["theta"])
    assert inv_freq[0] == unscaled[0] == 1
    assert inv_freq[-1].item() == pytest.approx(unscaled[-1].item() / size["factor"], rel=1e-12)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_trained_on_less_than_a_turn_keeps_the_first_plane_alone(truncate):
    # here both ends of the index ramp lie below plane 0; transformers turns the ramp around
    slowed, _ = frequencies(64, 10000.0, "yarn", factor=4.0, train_len=4, truncate=truncate)
    effective_scale = frequencies(64, 10000.0)[0] / slowed
    np.testing.assert_allclose(effective_scale, [1] + 31 * [4])


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_trained_on_many_turns_of_every_plane_slows_none(truncate):
    # here both ends lie beyond the last plane
    slowed, _ = frequencies(64, 10.0, "yarn", factor=4.0, train_len=10**6, truncate=truncate)
    assert torch.equal(slowed, frequencies(64, 10.0)[0])


# ---- the table


@pytest.mark.parametrize("head_dim", [2, 64, 128])
def test_the_table_is_exact_up_to_position_one_million(head_dim):
    positions = np.concatenate((np.arange(0, 10**6, 997), [999_999, 10**6]))
    angles = np.outer(positions, oracles.none(head_dim, 10000.0, 1, None))
    cos, sin = table(positions, head_dim)
    np.testing.assert_allclose(cos, np.cos(angles), rtol=0, atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(angles), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_the_table_is_float32_with_a_row_a_position_for_any_type_of_position(dtype):
    for part, reference in zip(
        table(torch.arange(5, dtype=dtype), 8), table(range(5), 8), strict=True
    ):
        assert part.shape == (5, 4)
        assert part.dtype == torch.float32
        assert torch.equal(part, reference)


def test_positions_between_whole_numbers_turn_by_their_share():
    positions = np.array([0.25, 1.5, 1000.75])
    cos, sin = table(positions, 16)
    angles = np.outer(positions, oracles.none(16, 10000.0, 1, None))
    np.testing.assert_allclose(cos, np.cos(angles), rtol=0, atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(angles), rtol=0, atol=1e-7)


# ---- rotation, against what others wrote


POSITIONS = np.array([0, 1, 2, 17, 4095, 100_000])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation_is_multiplication_by_the_rotation_matrix(layout):
    x = gaussian(2, 3, 6, 16)
    rotated = rotate(x, *table(POSITIONS, 16), layout)
    expected = oracles.rotate_by_matrices(x, POSITIONS, oracles.none(16, 1e4, 1, None), layout)
    np.testing.assert_allclose(rotated, expected, rtol=0, atol=5e-7)


def test_interleaved_rotation_is_the_complex_product_of_llama():
    x = gaussian(2, 3, 6, 16)
    rotated = rotate(x, *table(POSITIONS, 16), "interleaved")
    expected = oracles.rotate_as_complex_numbers(x, POSITIONS, oracles.none(16, 1e4, 1, None))
    np.testing.assert_allclose(rotated, expected, rtol=0, atol=5e-7)


def test_half_rotation_is_that_of_llama_in_transformers():
    x = gaussian(2, 3, 6, 16)
    angles = torch.tensor(np.outer(POSITIONS, oracles.none(16, 1e4, 1, None))).repeat(1, 2)
    theirs, _ = modeling_llama.apply_rotary_pos_emb(x, x, angles.cos()[None], angles.sin()[None])
    np.testing.assert_allclose(rotate(x, *table(POSITIONS, 16)), theirs, rtol=0, atol=5e-7)


def test_interleaved_rotation_is_that_of_gpt_j_in_transformers():
    x = gaussian(2, 3, 6, 16)
    angles = torch.tensor(np.outer(POSITIONS, oracles.none(16, 1e4, 1, None)))[None]
    theirs = modeling_gptj.apply_rotary_pos_emb(x.transpose(1, 2), angles.sin(), angles.cos())
    rotated = rotate(x, *table(POSITIONS, 16), "interleaved")
    np.testing.assert_allclose(rotated, theirs.transpose(1, 2), rtol=0, atol=5e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_is_turned_back_by_the_transposed_matrix(layout):
    x = gaussian(2, 3, 6, 16).requires_grad_()
    upstream = gaussian(2, 3, 16, 6, seed=1).mT  # as keys see it: its channels are not adjacent
    rotate(x, *table(POSITIONS, 16), layout).backward(upstream)

    turned_back = oracles.rotate_by_matrices(
        upstream, -POSITIONS, oracles.none(16, 1e4, 1, None), layout
    )
    np.testing.assert_allclose(x.grad, turned_back, rtol=0, atol=5e-7)


# ---- rotation, what must hold for any tensor


@pytest.mark.parametrize("layout", LAYOUTS)
@many
@given(seed=any_seed, position=st.integers(0, 10**6), planes=st.integers(1, 64))
def test_rotation_keeps_norms(layout, seed, position, planes):
    x = gaussian(3, 1, 2 * planes, seed=seed, dtype=torch.float32)
    rotated = rotate(x, *table([position], 2 * planes), layout)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1), rtol=5e-7, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@many
@given(
    seed=any_seed,
    m=st.integers(0, 4096),
    n=st.integers(0, 4096),
    offset=st.integers(0, 10**5) | st.just(10**5),
)
def test_query_times_key_depends_on_their_distance_alone(layout, seed, m, n, offset):
    q, k = gaussian(2, 1, 64, seed=seed, dtype=torch.float32)

    def score(query_position, key_position):
        rotated_q = rotate(q, *table([query_position], 64), layout)
        return (rotated_q * rotate(k, *table([key_position], 64), layout)).sum()

    difference = score(m, n) - score(m + offset, n + offset)
    assert difference.abs() <= 1e-6 * q.norm() * k.norm()  # the rounding of two float32 tables


@many
@given(seed=any_seed, position=st.integers(0, 10**6), planes=st.integers(1, 64))
def test_layouts_differ_by_a_fixed_order_of_channels(seed, position, planes):
    order = torch.tensor(oracles.channel_pairs(2 * planes, "interleaved")).T.flatten()
    x = gaussian(2, 1, 2 * planes, seed=seed)
    cos, sin = table([position], 2 * planes)
    half, interleaved = rotate(x[..., order], cos, sin), rotate(x, cos, sin, "interleaved")
    torch.testing.assert_close(half, interleaved[..., order], rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@many
@given(seed=any_seed, planes=st.integers(1, 8), untouched=st.integers(1, 8))
def test_channels_beyond_the_table_pass_through_bit_for_bit(dtype, layout, seed, planes, untouched):
    x = gaussian(2, 3, 2 * (planes + untouched), seed=seed, dtype=dtype)
    cos, sin = table([0, 5, 9], 2 * planes)
    rotated = rotate(x, cos, sin, layout)
    first = x[..., : 2 * planes].contiguous()
    assert torch.equal(rotated[..., 2 * planes :], x[..., 2 * planes :])
    torch.testing.assert_close(rotated[..., : 2 * planes], rotate(first, cos, sin, layout))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_position_zero_changes_nothing(dtype, layout):
    x = gaussian(2, 1, 16, dtype=dtype)
    assert torch.equal(rotate(x, *table([0], 16), layout), x)


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation_returns_the_shape_and_dtype_it_got(layout, dtype, shape):
    x = gaussian(*shape, dtype=dtype)
    rotated = rotate(x, *table(range(5), 8), layout)
    assert (rotated.shape, rotated.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation_leaves_its_input_alone(layout):
    x, cos, sin = gaussian(2, 5, 8, dtype=torch.float32), *table(range(5), 8)
    before = [part.clone() for part in (x, cos, sin)]
    rotate(x, cos, sin, layout)
    assert all(map(torch.equal, (x, cos, sin), before))


@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_split_off_a_fused_projection_rotate_as_contiguous_ones(layout, dtype, width):
    projected = gaussian(2, 5, 3 * 4 * width, dtype=dtype)  # (B, T, q k v of 4 heads)
    key = projected.unflatten(-1, (3, 4, width))[:, :, 1].transpose(1, 2)  # (B, H, T, D)
    assert not key.is_contiguous()
    cos, sin = table(range(5), 8)
    contiguous = rotate(key.contiguous(), cos, sin, layout)
    torch.testing.assert_close(rotate(key, cos, sin, layout), contiguous)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(
    "x",
    [gaussian(2, 8, 5).mT, gaussian(2, 5, 9), gaussian(2 * 5 * 8 + 1)[1:].view(2, 5, 8)],
    ids=["channels not adjacent", "odd number of channels", "begins at an odd address"],
)
def test_memory_order_does_not_matter(layout, x):
    rotated = rotate(x, *table(range(5), 8), layout)
    expected = oracles.rotate_by_matrices(
        x[..., :8], range(5), oracles.none(8, 1e4, 1, None), layout
    )
    np.testing.assert_allclose(rotated[..., :8], expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_is_rounded_once_at_the_end(layout, dtype):
    x = gaussian(4, 6, 64, dtype=dtype)
    rotated = rotate(x, *table(POSITIONS, 64), layout)
    exact = oracles.rotate_by_matrices(
        x.double(), POSITIONS, oracles.none(64, 1e4, 1, None), layout
    )
    unit_in_the_last_place = torch.finfo(dtype).eps * 2.0 ** np.floor(np.log2(np.abs(exact)))
    error = np.abs(rotated.double().numpy() - exact)
    assert np.all(error <= unit_in_the_last_place / 2 + 1e-6)  # 1e-6: float32 on the way


@pytest.mark.parametrize("layout", LAYOUTS)
def test_autocast_does_not_touch_the_rotation(layout):
    x = gaussian(2, 5, 8, dtype=torch.float32)
    cos, sin = table(range(5), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rotated = rotate(x, cos, sin, layout)
    assert torch.equal(rotated, rotate(x, cos, sin, layout))


# ---- rotation, compiled


def one_training_step(rotate, layout):
    """Score rotated projections against a target: the loss, the gradient and the new weights."""
    x, target = gaussian(2, 5, 12, dtype=torch.float32), gaussian(2, 5, 12, seed=1)
    weights = gaussian(12, 12, seed=2, dtype=torch.float32).requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=0.1)

    def loss():
        rotated = rotate(x @ weights, *table(range(5), 8), layout)
        return (rotated - target.float()).square().mean()

    before = loss()
    before.backward()
    optimizer.step()
    return before.detach(), weights.grad, weights.detach(), loss().detach()


@pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None,
    reason="torch.compile builds its CPU kernels with a C++ compiler",
)
@pytest.mark.filterwarnings(  # both from torch's own compiler
    "ignore:.torch.jit.script_method:DeprecationWarning", "ignore:The .grad attribute:UserWarning"
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_rotation_trains_as_the_eager_one(layout):
    eager = one_training_step(rotate, layout)
    compiled = one_training_step(torch.compile(rotate, fullgraph=True), layout)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
    before, _, _, after = compiled
    assert after < before


# ---- what is refused


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"head_dim": 63}, "head_dim is 63; .* even"),
        ({"head_dim": 0}, "head_dim is 0; .* even"),
        ({"factor": 0.5}, "factor is 0.5; .* at least 1"),
        ({"factor": math.nan}, "factor is nan; .* finite"),
        ({"factor": math.inf}, "factor is inf; .* finite"),
        ({"theta": 1.0}, "theta is 1.0; .* above 1"),
        ({"theta": -10000.0}, "theta is -10000.0; .* above 1"),
        ({"theta": math.nan}, "theta is nan; .* finite"),
        ({"theta": math.inf}, "theta is inf; .* finite"),
        ({"train_len": 0}, "train_len is 0; .* at least 1"),
        ({"scaling": "ntk_by_parts", "train_len": None}, "train_len is missing; .*'ntk_by_parts'"),
        ({"scaling": "yarn", "train_len": None}, "train_len is missing; .*'yarn'"),
        ({"scaling": "llama3", "train_len": None}, "train_len is missing; .*'llama3'"),
        ({"scaling": "ntk", "head_dim": 2}, "head_dim is 2; scaling ntk needs 4"),
        ({"beta_fast": 8.0}, "'none' has no beta_fast; it has none"),
        ({"scaling": "linear", "ramp": "index"}, "'linear' has no ramp; it has none"),
        ({"scaling": "yarn", "beta": 8.0}, "'yarn' has no beta; it has beta_fast, beta_slow, ramp"),
        ({"scaling": "yarn", "ramp": "cosine"}, "ramp is 'cosine'; .* 'index' or 'rotations'"),
    ],
    ids=str,
)
def test_a_bad_setting_is_refused_by_name(setting, words):
    with pytest.raises(ValueError, match=words):
        frequencies(**{"head_dim": 64, "factor": 4.0, **setting})


@pytest.mark.parametrize("ends", [(32.0, 32.0), (32.0, 1.0), (0.0, 1.0), (math.nan, 32.0)], ids=str)
@pytest.mark.parametrize(
    ("scaling", "slow_name", "fast_name"),
    [
        ("ntk_by_parts", "beta_slow", "beta_fast"),
        ("yarn", "beta_slow", "beta_fast"),
        ("llama3", "low_freq_factor", "high_freq_factor"),
    ],
)
def test_ramp_ends_in_the_wrong_order_are_refused_by_name(scaling, slow_name, fast_name, ends):
    slow, fast = ends
    words = f"{slow_name} is {slow} and {fast_name} {fast}; need 0 < {slow_name} < {fast_name}"
    with pytest.raises(ValueError, match=words):
        frequencies(64, scaling=scaling, factor=4.0, **{slow_name: slow, fast_name: fast})


@pytest.mark.parametrize("ask", [frequencies, settings], ids=["frequencies", "settings"])
def test_an_unknown_scaling_is_refused_with_the_known_ones(ask):
    words = f"unknown scaling 'yarm'; known are {', '.join(SCALINGS)}"
    with pytest.raises(ValueError, match=words):
        ask(**({"head_dim": 64} if ask is frequencies else {}), scaling="yarm")


@pytest.mark.parametrize("scaling", ["none", "linear", "ntk"])
def test_a_scaling_by_factor_alone_needs_no_trained_length(scaling):
    without, _ = frequencies(64, scaling=scaling, factor=4.0, train_len=None)
    assert torch.equal(without, frequencies(64, scaling=scaling, factor=4.0, train_len=256)[0])


def test_an_unknown_layout_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="layout is 'neox'; it must be 'half' or 'interleaved'"):
        rotate(gaussian(5, 8), *table(range(5), 8), "neox")
