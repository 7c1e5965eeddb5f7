"""model.py and positions.py against transformers, a slow float64 twin, and their own promises.

B batch, T time, C channels, H heads, V vocabulary, L block_size. The twins are in oracles_hf.py.
"""

import dataclasses
import math
import shutil

import numpy as np
import oracles_hf as twins
import pytest
import torch
from oracles_hf import LAYERED, TINY, encodings, longest, name, rebuilt, tiny, tokens

from model import GPT, GPTConfig
from positions import POSITIONS, Place

# Frequencies that turn within the block, so that every ramp has an inside; T is 4 x block_size.
WIDE = {"block_size": 32, "n_embd": 64}
IDX = tokens(4 * WIDE["block_size"], batch=2)

every_encoding = pytest.mark.parametrize("settings", [*encodings(), *LAYERED], ids=name)
every_position = pytest.mark.parametrize("pos", POSITIONS)


def in_order(T):
    """Where T tokens of a text stand."""
    return Place(torch.arange(T), torch.arange(T), T)


def distance(a, b):
    return (a - b).abs().max().item()


@pytest.fixture(autouse=True)
def one_seed_and_one_thread():
    """Models this small only lose time to a second thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


# ---- against transformers, float32, at 4x the trained length


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("pos", ["learned", "sinusoidal", "none"])
def test_logits_are_gpt2s_with_the_same_table_of_positions(pos, n_kv_head, bias):
    model = tiny(pos=pos, n_kv_head=n_kv_head, bias=bias, **WIDE)
    idx = IDX[:, : WIDE["block_size"]] if pos == "learned" else IDX
    wpe = {
        "learned": lambda: model.position.wpe.detach().numpy(),
        "sinusoidal": lambda: 0.02 * math.sqrt(2) * twins.sinusoids(idx.size(1), WIDE["n_embd"]),
        "none": lambda: np.zeros((idx.size(1), WIDE["n_embd"])),
    }[pos]()
    assert distance(model(idx), twins.gpt2(model, wpe)(idx).logits) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_rope_logits_are_gpt_neoxs(n_kv_head, bias):
    model = tiny(pos="rope", n_kv_head=n_kv_head, bias=bias, **WIDE)
    assert distance(model(IDX), twins.gpt_neox(model)(IDX).logits) < 1e-5


L = WIDE["block_size"]
TRAINED = {"factor": 4.0, "original_max_position_embeddings": L}
SCALED = [  # our settings beside rope_scaling and what transformers calls the same
    ("linear", {}, {"rope_type": "linear", "factor": 4.0}),
    ("yarn", {"attention_factor": 1.0}, {"rope_type": "yarn", "attention_factor": 1.0, **TRAINED}),
    (
        "yarn",
        {"attention_factor": 1.0, "beta_fast": 3.0, "beta_slow": 0.25, "truncate": False},
        {"rope_type": "yarn", "attention_factor": 1.0, "beta_fast": 3.0, "beta_slow": 0.25}
        | {"truncate": False, **TRAINED},
    ),
    (
        "llama3",
        {},
        {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **TRAINED},
    ),
]


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize(("scaling", "ours", "theirs"), SCALED)
def test_scaled_rope_logits_are_gpt_neoxs(scaling, ours, theirs, fraction, layout):
    ours = {"rope_scaling": scaling, "rope_factor": 4.0, **ours}
    model = tiny(pos="rope", rope_fraction=fraction, rope_layout=layout, **ours, **WIDE)
    assert distance(model(IDX), twins.gpt_neox(model, **theirs)(IDX).logits) < 1e-5


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_yarn_logits_with_its_sharper_softmax_are_gpt_neoxs(fraction):
    """Partly rotated heads included: the rotated channels alone are sharpened."""
    fraction = {"rope_fraction": fraction}
    model = tiny(pos="rope", rope_scaling="yarn", rope_factor=4.0, **fraction, **WIDE)
    theirs = twins.gpt_neox(model, rope_type="yarn", **TRAINED)(IDX).logits
    assert distance(model(IDX), theirs) < 1e-5


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_ntk_logits_are_gpt_neoxs_at_a_larger_theta(fraction):
    model = tiny(pos="rope", rope_scaling="ntk", rope_factor=4.0, rope_fraction=fraction, **WIDE)
    turning = fraction * WIDE["n_embd"] / TINY["n_head"]
    theta = 10000 * 4 ** (turning / (turning - 2))
    assert distance(model(IDX), twins.gpt_neox(model, rope_theta=theta)(IDX).logits) < 1e-5


@pytest.mark.parametrize("length", [L // 2, L, 2 * L, 3 * L + 5, 4 * L])
def test_dynamic_ntk_logits_are_those_of_a_fresh_gpt_neox(length):
    """Fresh, because transformers' remembers the longest text it has read."""
    model = tiny(pos="rope", rope_scaling="dynamic_ntk", **WIDE)
    theirs = twins.gpt_neox(model, rope_type="dynamic", factor=1.0)(IDX[:, :length]).logits
    assert distance(model(IDX[:, :length]), theirs) < 1e-5


@pytest.mark.parametrize("n_head", [4, 6, 8, 12])
def test_alibi_logits_are_blooms(n_head):
    model = tiny(pos="alibi", n_head=n_head, n_embd=48)
    idx = tokens(4 * TINY["block_size"], batch=2)
    assert distance(model(idx), twins.bloom(model)(idx).logits) < 1e-5


def test_a_checkpoint_rebuilt_with_another_scaling_is_gpt_neox_with_it():
    trained = tiny(pos="rope", **WIDE)
    stretched = rebuilt(trained, rope_scaling="yarn", rope_factor=4.0)
    theirs = twins.gpt_neox(trained, rope_type="yarn", **TRAINED)(IDX).logits
    assert distance(stretched(IDX), theirs) < 1e-5


# ---- against the slow twin, float64, at twice the trained length

VARIANTS = [
    {"pos": "rope", "rope_layout": "interleaved"},
    {"pos": "rope", "rope_fraction": 0.5, "rope_layout": "interleaved"},
    {"pos": "rope", "rope_fraction": 0.5, "rope_scaling": "yarn", "rope_factor": 4.0},
    {"pos": "rope", "rope_theta": 100.0, "rope_scaling": "dynamic_yarn", "rope_train_len": 4},
    {"pos": "rope", "rope_scaling": "yarn", "ramp": "rotations", "rope_train_len": 4}
    | {"beta_fast": 1.0, "beta_slow": 0.01},
    {"pos": "rope", "rope_scaling": "yarn", "truncate": False, "rope_train_len": 2}
    | {"beta_fast": 0.3, "beta_slow": 0.001},
    {"pos": "rope", "rope_scaling": "llama3", "low_freq_factor": 0.01, "high_freq_factor": 1.0}
    | {"rope_factor": 8.0},
    {"pos": "rope", "rope_scaling": "dynamic_ntk_by_parts", "beta_fast": 1.0, "beta_slow": 0.01},
    {"pos": "rope", "n_kv_head": 2, "bias": False},
    {"pos": "alibi", "n_kv_head": 2},
    {"pos": "alibi", "n_head": 6, "n_kv_head": 3, "n_embd": 24},
    {"pos": "learned", "n_kv_head": 1, "beyond": "interpolate", "bias": False},
    {"pos": "none", "n_kv_head": 2},
    {"pos": "rope", "rope_p": 0.5},
    {"pos": "rope", "rope_p": 0.75, "rope_fraction": 0.5, "n_embd": 64},
    {"pos": "rope", "rope_p": 0.5, "rope_scaling": "yarn", "rope_factor": 4.0},
    {"pos": "rope", "rope_theta": 100.0, "rope_scaling": "clip", "clip": "soft"},
    {"pos": "rope", "rope_learned": True, "rope_scaling": "dynamic_yarn"},
    {"pos": "rope", "rope_scaling": "yarn", "rope_factor": 4.0, "logit_scaling": "logn"},
    {"pos": "pope", "n_kv_head": 2, "rope_theta": 100.0},
    {"pos": "t5", "t5_max_distance": 17},
    {"pos": "hard_alibi", "alibi_heads": 3},
    {"pos": "fox", "n_kv_head": 2, "fox_bias": 0.0},
    *({"pos": "none", "logit_scaling": name} for name in ("logn", "ssmax", "llama4")),
    {"pos": "none", "logit_scaling": "log_length", "logit_c": 0.4},
]


@pytest.mark.parametrize("settings", [*encodings(), *LAYERED, *VARIANTS], ids=name)
def test_logits_are_those_of_the_slow_twin(settings):
    model = tiny(torch.float64, **settings)
    idx = tokens(min(longest(settings), 2 * TINY["block_size"]))
    slow = twins.slow_logits(model, idx[0].numpy())
    np.testing.assert_allclose(model(idx)[0].detach().numpy(), slow, rtol=0, atol=1e-10)


@every_encoding
def test_after_a_cast_to_bfloat16_the_logits_are_those_of_the_rounded_weights(settings):
    """The slow twin reads the same rounded weights in float64: nothing but the weights was cast."""
    model = tiny(torch.bfloat16, **settings)
    idx = tokens(min(longest(settings), 2 * TINY["block_size"]))
    slow = twins.slow_logits(rebuilt(model).double(), idx[0].numpy())
    logits = model(idx)[0].detach().numpy()
    np.testing.assert_allclose(logits, slow, rtol=0, atol=0.03 * np.abs(slow).max())


# ---- what a token sees


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@every_encoding
def test_no_logit_sees_a_later_token(settings, dtype):
    model, idx = tiny(dtype, **settings), tokens(longest(settings))
    logits = model(idx)
    for cut in (1, 5, idx.size(1) - 1):
        changed = idx.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % TINY["vocab_size"]
        assert distance(model(changed)[:, :cut], logits[:, :cut]) == 0
        assert distance(model(changed)[:, cut], logits[:, cut]) > 1e-3


@every_encoding
def test_the_first_token_is_seen_to_the_end_unless_all_layers_have_a_window(settings):
    model, idx = tiny(torch.float64, **settings), tokens(longest(settings))
    changed = idx.clone()
    changed[:, 0] = (changed[:, 0] + 1) % TINY["vocab_size"]
    moved = (model(changed) - model(idx)).abs().amax(-1)[0]
    seen = idx.size(1)
    if settings.get("layers") == "L":  # each layer sees window - 1 tokens farther back
        seen = 1 + TINY["n_layer"] * (settings["window"] - 1)
    assert (moved[:seen] > 1e-6).all()
    assert (moved[seen:] == 0).all()


@pytest.mark.parametrize("settings", [*encodings(), *LAYERED], ids=name)
def test_drawn_positions_are_those_of_the_slow_twin_and_the_mask_goes_by_order(settings):
    """One row of positions a text, or one for both."""
    if settings["pos"] == "learned" or "interpolate" in settings.values():
        pytest.skip("a table of positions has none but its own")
    model, idx = tiny(torch.float64, **settings), tokens(TINY["block_size"], batch=2)
    drawn = torch.tensor([[0, 2, 3, 7, 8, 11, 20, 21], [1, 2, 3, 5, 9, 10, 11, 30]])
    for positions in (drawn, drawn[:1]):
        logits = model(idx, positions=positions if len(positions) == 2 else positions[0])
        for row in range(2):
            slow = twins.slow_logits(
                model, idx[row].numpy(), positions[row % len(positions)].tolist()
            )
            np.testing.assert_allclose(logits[row].detach().numpy(), slow, rtol=0, atol=1e-10)


def test_positions_that_a_table_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"end at 8, .* asked for 10"):
        tiny(pos="learned")(tokens(3), positions=torch.tensor([0, 4, 9]))


@every_position
def test_rows_of_a_batch_do_not_meet(pos):
    model, idx = tiny(torch.float64, pos=pos), tokens(8, batch=3)
    alone = torch.cat([model(row[None]) for row in idx])
    assert distance(model(idx), alone) < 1e-12


# ---- past the trained length


def test_a_learned_table_refuses_positions_past_its_end():
    model = tiny(pos="learned")
    model(tokens(8))
    with pytest.raises(ValueError, match=r"end at 8, .* asked for 9\..* beyond to 'interp"):
        model(tokens(9))


@pytest.mark.parametrize("length", [1, 5, 8, 9, 20, 32, 57])
def test_a_learned_table_is_stretched_by_linear_interpolation(length):
    model = tiny(torch.float64, pos="learned", beyond="interpolate")
    table = model.position.wpe.detach().numpy()
    read = np.arange(length) / max(1, length / 8)  # position m of the text is at m / s
    expected = [np.interp(read, np.arange(8), column) for column in table.T]
    zeros = torch.zeros(1, length, TINY["n_embd"], dtype=torch.float64)
    rows = model.position.embed(zeros, in_order(length))[0].detach().numpy()
    np.testing.assert_allclose(rows, np.stack(expected, 1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("pos", ["learned", "sinusoidal"])
def test_interpolation_changes_nothing_within_the_trained_length(pos):
    model, idx = tiny(torch.float64, pos=pos, beyond="interpolate"), tokens(TINY["block_size"])
    assert distance(model(idx), rebuilt(model, beyond="extend")(idx)) == 0


# ---- weights: initialisation, gradients, state


def test_weights_begin_as_gpt2s():
    layers = 2
    model = GPT(GPTConfig(vocab_size=500, n_layer=layers, n_head=4, n_embd=128, bias=True))
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == key.endswith("weight")).all(), key
        else:
            std = 0.02 / math.sqrt(2 * layers) if key.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.03), key
            assert abs(parameter.mean().item()) < 0.03 * std, key


def test_a_learned_table_begins_as_loud_as_the_tokens():
    table = GPT(GPTConfig(vocab_size=17, pos="learned", n_layer=1)).position.wpe
    assert table.std().item() == pytest.approx(0.02, rel=0.03)


def test_sinusoids_are_as_loud_as_the_tokens_at_initialisation():
    model = GPT(GPTConfig(vocab_size=1000, pos="sinusoidal", n_layer=1))
    zeros = torch.zeros(1, 256, model.config.n_embd)
    waves = model.position.embed(zeros, in_order(256))
    rms = [x.square().mean().sqrt().item() for x in (waves, model.wte.weight)]
    assert rms[0] == pytest.approx(rms[1], rel=0.01)


@every_position
def test_every_encoding_draws_the_same_shared_weights(pos):
    reference = GPT(GPTConfig(**TINY, pos="none"))
    torch.manual_seed(0)
    weights = GPT(GPTConfig(**TINY, pos=pos)).state_dict()
    for key, value in reference.state_dict().items():
        assert torch.equal(weights[key], value), key


@every_position
def test_loss_begins_at_the_log_of_the_vocabulary(pos):
    model = GPT(GPTConfig(**{**TINY, "vocab_size": 300}, pos=pos))
    idx, targets = torch.randint(300, (2, 64, 8))
    assert model(idx, targets).item() == pytest.approx(math.log(300), abs=0.03)


@pytest.mark.parametrize(
    ("dtype", "n_kv_head"), [(torch.float32, 4), (torch.float32, 2), (torch.bfloat16, 2)]
)
@every_encoding
def test_every_parameter_gets_a_gradient(settings, dtype, n_kv_head):
    model, length = tiny(dtype, n_kv_head=n_kv_head, **settings).train(), longest(settings)
    model(tokens(length, 2), tokens(length, 2, seed=1)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 1e-6, key


@every_encoding
def test_the_state_dict_holds_parameters_and_no_table(settings):
    model = tiny(**settings)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
    assert list(model.buffers()) == []
    shared = {"learned": {"wpe"}, "t5": {"by_bucket"}, "kerple": {"a", "p"}}
    shared["fire"] = {"c", "m", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight"}
    extra = {f"position.{key}" for key in shared.get(settings["pos"], ())}
    assert {key for key in model.state_dict() if key.startswith("position")} == extra


# ---- loss and dtypes


def test_loss_is_the_mean_cross_entropy_of_targets_that_count():
    model, idx, targets = tiny(torch.float64), tokens(8, 2), tokens(8, 2, seed=1)
    targets[0, :3] = targets[1, 5] = -1
    log_p = model(idx).log_softmax(-1)
    terms = [
        -log_p[b, t, targets[b, t]].item() for b in range(2) for t in range(8) if targets[b, t] >= 0
    ]
    assert len(terms) == 12
    assert model(idx, targets).item() == pytest.approx(np.mean(terms), abs=1e-12)


@every_position
def test_bfloat16_weights_give_float32_logits(pos):
    model, idx = tiny(pos=pos), tokens(8, 2)
    exact, logits = model(idx), model.to(torch.bfloat16)(idx)
    assert logits.dtype == torch.float32
    assert distance(logits, exact) < 0.05


@every_position
def test_bfloat16_autocast_gives_float32_logits_and_gradients(pos):
    model, idx = tiny(pos=pos), tokens(8, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = model(idx), model(idx, idx)
    loss.backward()
    assert logits.dtype == loss.dtype == torch.float32
    assert distance(logits, model(idx)) < 0.05
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("scaling", ["none", "yarn", "dynamic_yarn"])
def test_casting_a_model_to_bfloat16_leaves_its_rotation_table_exact(scaling):
    model = tiny(pos="rope", rope_scaling=scaling, rope_theta=500.0, rope_train_len=4)
    positions = torch.arange(2**16 - 8, 2**16)
    exact = model.position.table(positions, 2**16)
    cast = model.to(torch.bfloat16).position.table(positions, 2**16)
    assert {table.dtype for table in cast[:2]} == {torch.float32}
    assert all(map(torch.equal, cast[:2], exact[:2]))
    assert cast[2] == exact[2]


def test_dropout_acts_in_training_alone():
    model, idx = tiny(dropout=0.5), tokens(8)
    assert distance(model(idx), model(idx)) == 0
    assert distance(model(idx), rebuilt(model, dropout=0.0)(idx)) == 0
    model.train()
    assert distance(model(idx), model(idx)) > 0.1


# ---- torch.compile

COMPILED = [
    {"pos": "rope"},
    {"pos": "rope", "rope_layout": "interleaved"},
    {"pos": "alibi"},
    {"pos": "learned"},
    {"pos": "rope", "layers": "LG", "window": 4, "global_pos": "none", "n_layer": 2},
]


def one_step(model, run):
    model.zero_grad()
    loss = run(tokens(8, 2), tokens(8, 2, seed=1))
    loss.backward()
    return loss.detach(), {key: p.grad.clone() for key, p in model.named_parameters()}


def compiles_to_the_same_step(settings, backend):
    torch.compiler.reset()
    model = tiny(**{"n_layer": 1, **settings})
    compiled = one_step(model, torch.compile(model, fullgraph=True, backend=backend))
    torch.testing.assert_close(compiled, one_step(model, model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", COMPILED, ids=name)
def test_a_training_step_is_one_graph(settings):
    compiles_to_the_same_step(settings, "aot_eager")


@pytest.mark.soak  # a minute: the kernels of each encoding are built again
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on CPU")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("settings", COMPILED, ids=name)
def test_a_compiled_training_step_is_the_eager_one(settings):
    compiles_to_the_same_step(settings, "inductor")


# ---- what is refused

YARN = {"rope_scaling": "yarn", "rope_factor": 4.0}
REFUSED = [  # the field that the message names, and settings
    ("block_size", {"block_size": True}),
    ("block_size", {"block_size": "256"}),
    ("block_size", {"block_size": 256.0}),
    ("block_size", {"block_size": None}),
    ("block_size", {"block_size": 0}),
    ("vocab_size", {"vocab_size": -1}),
    ("n_layer", {"n_layer": 0}),
    ("n_head", {"n_head": 0}),
    ("n_embd", {"n_embd": 0}),
    ("n_embd", {"n_embd": 34, "n_head": 4}),
    ("n_kv_head", {"n_kv_head": 0}),
    ("n_kv_head", {"n_kv_head": 3, "n_head": 4}),
    ("n_kv_head", {"n_kv_head": 8, "n_head": 4}),
    ("dropout", {"dropout": 1.0}),
    ("dropout", {"dropout": -0.1}),
    ("dropout", {"dropout": math.nan}),
    ("bias", {"bias": 1}),
    ("pos", {"pos": "rotary"}),
    ("pos", {"pos": None}),
    ("beyond", {"beyond": "crop"}),
    ("beyond", {"beyond": "slide", "pos": "learned"}),
    ("beyond", {"beyond": "slide"}),
    ("layers", {"layers": ""}),
    ("layers", {"layers": "LX", "window": 8}),
    ("layers", {"layers": "LG"}),
    ("layers", {"layers": "L"}),
    ("window", {"window": 8}),
    ("window", {"window": 0, "layers": "LG"}),
    ("window", {"window": 8, "layers": "GGGGL"}),
    ("global_pos", {"global_pos": "none"}),
    ("global_pos", {"global_pos": "nope", "layers": "LG"}),
    ("global_pos", {"global_pos": "none", "layers": "L", "window": 8}),
    ("global_pos", {"global_pos": "learned", "layers": "LG"}),
    ("global_pos", {"global_pos": "rope", "pos": "sinusoidal", "layers": "LG"}),
    ("rope_scaling", {"rope_scaling": "yarn", "rope_factor": 4.0, "layers": "L", "window": 8}),
    (
        "rope_scaling",
        {"rope_scaling": "dynamic_ntk", "layers": "LG", "window": 8} | {"global_pos": "none"},
    ),
    ("rope_theta", {"rope_theta": 500.0, "pos": "alibi", "layers": "LG", "global_pos": "none"}),
    ("beyond", {"beyond": "interpolate", "pos": "rope"}),
    ("beyond", {"beyond": "interpolate", "pos": "alibi"}),
    ("beyond", {"beyond": "interpolate", "pos": "none"}),
    ("head_dim", {"n_embd": 20, "n_head": 4}),
    ("head_dim", {"n_embd": 20, "n_head": 4, "rope_scaling": "dynamic_linear"}),
    ("rope_theta", {"rope_theta": 1.0}),
    ("rope_theta", {"rope_theta": 1.0, "rope_scaling": "dynamic_linear"}),
    ("rope_theta", {"rope_theta": "10000"}),
    ("rope_theta", {"rope_theta": math.inf}),
    ("rope_theta", {"rope_theta": math.nan}),
    ("rope_theta", {"rope_theta": 500.0, "pos": "sinusoidal"}),
    ("rope_scaling", {"rope_scaling": "su"}),
    ("rope_scaling", {"rope_scaling": "dynamic_none"}),
    ("rope_scaling", {"rope_scaling": "dynamic_dynamic_ntk"}),
    ("rope_scaling", {"rope_scaling": "yarn", "pos": "learned"}),
    ("rope_factor", {"rope_factor": 0.5, "rope_scaling": "linear"}),
    ("rope_factor", {"rope_factor": math.inf, "rope_scaling": "linear"}),
    ("rope_factor", {"rope_factor": 4.0}),
    ("rope_factor", {"rope_factor": 4.0, "rope_scaling": "dynamic_ntk"}),
    ("rope_train_len", {"rope_train_len": 0}),
    ("rope_train_len", {"rope_train_len": 128.0}),
    ("rope_train_len", {"rope_train_len": 128, "pos": "alibi"}),
    ("rope_fraction", {"rope_fraction": 0}),
    ("rope_fraction", {"rope_fraction": 1.5}),
    ("rope_fraction", {"rope_fraction": 0.5, "pos": "none"}),
    ("rope_layout", {"rope_layout": "neox"}),
    ("rope_layout", {"rope_layout": "interleaved", "pos": "learned"}),
    ("beta_fast", {"beta_fast": 16.0, "rope_scaling": "ntk", "rope_factor": 4.0}),
    ("beta_fast", {"beta_fast": 16.0}),
    ("beta_fast", {"beta_fast": 0.5, **YARN}),
    ("beta_slow", {"beta_slow": -1.0, **YARN}),
    ("beta_slow", {"beta_slow": 32.0, "rope_scaling": "dynamic_ntk_by_parts"}),
    ("ramp", {"ramp": "linear", **YARN}),
    ("ramp", {"ramp": "rotations"}),
    ("truncate", {"truncate": 0, **YARN}),
    ("truncate", {"truncate": False, "rope_scaling": "llama3", "rope_factor": 4.0}),
    ("attention_factor", {"attention_factor": 1.0}),
    ("attention_factor", {"attention_factor": math.nan, **YARN}),
    ("low_freq_factor", {"low_freq_factor": 8.0, "rope_scaling": "dynamic_llama3"}),
    ("high_freq_factor", {"high_freq_factor": 8.0, **YARN}),
]


@pytest.mark.parametrize(("field", "settings"), REFUSED)
def test_a_setting_that_is_wrong_or_does_nothing_is_refused_by_name(field, settings):
    with pytest.raises(ValueError, match=rf"\b{field}\b"):
        GPTConfig(**settings)


def test_a_whole_number_serves_where_a_float_is_asked_for():
    config = GPTConfig(dropout=0, rope_theta=500, rope_scaling="ntk", rope_factor=4)
    assert (config.dropout, config.rope_theta, config.rope_factor) == (0.0, 500.0, 4.0)
    assert {type(config.dropout), type(config.rope_theta), type(config.rope_factor)} == {float}


def test_a_model_needs_to_know_its_vocabulary():
    with pytest.raises(ValueError, match="vocab_size is None"):
        GPT(GPTConfig())


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig().pos = "none"
