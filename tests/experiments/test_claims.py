"""The scripts behind docs/claims.md: what they put in a model, against formulas written apart."""

import math
import os
import signal

import numpy as np
import oracles_hf as twins
import pytest
import torch
from conftest import SMALL, fingerprint, losses, merged

import rope
from attention import Scene
from data import tasks
from data.tokenizer import Char
from evaluation import results, scoring
from experiments import claims, report
from experiments.claims import Trained, amplitude, finetune, precision, rerope, temperature
from experiments.claims import identities as exact
from experiments.claims import kv_cache as cache
from experiments.claims import linear_attention as linear
from experiments.claims import naive_yarn as texts
from experiments.claims import which_planes as bands
from model import GPT, GPTConfig
from runtime import checkpoint

D, L, S = 32, 128, 4.0
THETA = 10000.0 ** (-np.arange(0, D, 2) / D)  # (F,)


def frequencies(form, factor=S):
    """What a form of reading turns its planes by: (inv_freq, attention_factor) as NumPy."""
    name = form.overrides["rope_scaling"].removeprefix("dynamic_")
    inv_freq, sharp = claims.NEW[name](D, 10000.0, factor, L)
    return inv_freq.numpy(), sharp


def form(module, label):
    return next(f for f in module.FORMS if f.label == label)


def test_bands_slow_one_side_of_a_border():
    """The border at one turn is a wavelength of the trained length."""
    wavelength = 2 * math.pi / THETA
    slow, sharp = frequencies(form(bands, "slow planes, under 1"))
    assert np.allclose(slow, np.where(wavelength > L, THETA / S, THETA), rtol=1e-14)
    assert sharp == 1
    fast, sharp = frequencies(form(bands, "fast planes, from 1, sharpened"))
    assert np.allclose(fast, np.where(wavelength > L, THETA, THETA / S), rtol=1e-14)
    assert sharp == pytest.approx(0.1 * math.log(S) + 1)


def test_a_temperature_leaves_the_frequencies_alone():
    for name in temperature.BASES:
        base = rope.frequencies(D, 10000.0, name, S, L)[0].numpy()
        inv_freq, sharp = frequencies(form(temperature, f"{name}, sharpened"))
        assert np.array_equal(inv_freq, base)
        assert sharp == pytest.approx(0.1 * math.log(S) + 1)
    assert frequencies(form(temperature, "yarn at 0.3"))[1] == pytest.approx(0.3 * math.log(S) + 1)


def test_the_yarn_of_the_texts_divides_every_angle():
    example = form(texts, "theta / (0.25 s)")  # 8x with t = 2
    assert np.allclose(frequencies(example, 8.0)[0], THETA / 2, rtol=1e-14)
    assert np.allclose(frequencies(example, 2.0)[0], THETA, rtol=1e-14)  # t is at least 1


@pytest.mark.parametrize("leaky", [False, True])
def test_rerope_is_the_sum_over_pairs_at_their_distance(leaky, monkeypatch):
    """Against one complex product a pair of positions, in float64; whole, and in blocks."""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=2 * D, block_size=24)
    state = {"model": GPT(config).state_dict(), "path": "made here"}
    attention = rerope.with_window(0.5, leaky)(state, config).h[0].attn
    T, W, step = 60, 12, (60 - 12) / (24 - 12) if leaky else math.inf
    x = torch.randn(1, T, 2 * D)
    q, k, v = attention.plain.c_attn(x).unflatten(-1, (-1, D)).transpose(1, 2).chunk(3, 1)
    a, b = (torch.complex(y[..., : D // 2], y[..., D // 2 :]).to(torch.cdouble) for y in (q, k))
    distance = (torch.arange(T)[:, None] - torch.arange(T)).double()
    seen = torch.where(distance < W, distance, W + (distance - W) / step)
    turn = torch.polar(torch.ones(T, T, D // 2).double(), seen[..., None] * torch.tensor(THETA))
    scores = torch.einsum("bhtf,bhsf,tsf->bhts", a, b.conj(), turn).real / math.sqrt(D)
    weights = scores.masked_fill(distance < 0, -math.inf).softmax(-1).float()
    wanted = attention.plain.c_proj((weights @ v).transpose(1, 2).flatten(2))
    for block, last in ((256, None), (16, None), (16, 23)):
        monkeypatch.setattr(rerope, "BLOCK", block)
        found = attention(x, Scene(None, None, 1 / math.sqrt(D), None, last))
        assert torch.allclose(found, wanted[:, -(last or T) :], atol=1e-5)


def test_rounding_is_that_of_bfloat16_and_nothing_else():
    config = GPTConfig(vocab_size=9)
    at = torch.arange(300)
    exactly = [f(np.arange(300)[:, None] * THETA) for f in (np.cos, np.sin)]
    cos, _ = precision.Rounded(config, "nothing").table(at, 300)
    assert np.allclose(cos, exactly[0], atol=1e-7)
    cos, _ = precision.Rounded(config, "positions").table(at, 300)
    assert torch.equal(cos[257], cos[256])  # bfloat16 holds whole numbers up to 256
    assert np.allclose(cos[:256], exactly[0][:256], atol=1e-7)
    table = precision.Rounded(config, "table").table(at, 300)
    assert all(torch.equal(t, t.bfloat16().float()) for t in table)
    assert np.allclose(table[1], exactly[1], atol=2**-8)


def test_the_exact_claims_hold():
    found = exact.measure()
    below = "rotation less complex product", "rotation less 2 x 2 matrices", "output moved, v as"
    assert all(value < 1e-5 for name, value in found.items() if name.startswith(below))
    assert all(v < 1e-5 for name, v in found.items() if name.endswith("float32"))
    assert found["output moved, v rotated too"] > 1


@pytest.mark.parametrize("pos", ["none", "rope"])
def test_linear_attention_is_the_sum_of_the_paper(pos):
    """RoFormer's eq. 19, a pair of positions at a time in float64; as trained, to bfloat16."""
    torch.manual_seed(0)
    T = 2 * linear.CHUNK + 7
    config = GPTConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=2 * D, block_size=T, pos=pos)
    model = linear.LinearGPT(config)
    seen = []
    model.h[0].attn.register_forward_hook(lambda attn, given, y: seen.append((*given, y)))
    model(torch.randint(9, (1, T)))
    attn, (x, scene, y) = model.h[0].attn, seen[0]
    heads = attn.c_attn(x).double().unflatten(-1, (-1, D)).transpose(1, 2)
    q, k, v = heads.chunk(3, 1)
    q, k = (torch.where(z > 0, z + 1, z.exp()) for z in (q, k))
    distance = (torch.arange(T)[:, None] - torch.arange(T)).double() * (pos == "rope")
    turn = torch.polar(torch.ones(T, T, D // 2).double(), distance[..., None] * torch.tensor(THETA))
    a, b = (torch.complex(z[..., : D // 2], z[..., D // 2 :]) for z in (q, k))
    above = torch.einsum("bhtf,bhsf,tsf->bhts", a, b.conj(), turn).real.tril()
    wanted = (above @ v) / (q @ k.mT).tril().sum(-1, keepdim=True)
    projected = (wanted.transpose(1, 2).flatten(2) @ attn.c_proj.weight.double().T).float()
    assert torch.allclose(y, projected, atol=1e-6)
    q, k, v = attn.features(x)
    assert torch.allclose(linear.above(q, k, scene.rotate), above.float(), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = linear.running(*attn.features(x), scene.rotate)
    assert (rough - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_a_cache_of_rotated_keys_is_that_of_transformers():
    """GPT-NeoX with dynamic NTK and its own cache, a token at a time, to 4x its length."""
    model = twins.tiny(pos="rope", rope_scaling="dynamic_ntk", n_embd=128, block_size=16)
    theirs = twins.gpt_neox(model, rope_type="dynamic", factor=1.0)
    idx, held, found = twins.tokens(64, batch=2), None, []
    with torch.no_grad():
        for n in range(64):
            out = theirs(idx[:, n : n + 1], past_key_values=held, use_cache=True)
            held = out.past_key_values
            found.append(out.logits[:, 0])
        ours = list(cache.stepwise(model, idx, on_read=False))
        fresh = model(idx)[:, -1]
    assert torch.allclose(torch.stack(ours), torch.stack(found), atol=1e-4)
    assert not torch.allclose(ours[-1], fresh, atol=0.1)


@torch.no_grad()
def test_rotation_on_read_is_exact_in_the_first_layer_alone():
    idx, far = twins.tokens(32, batch=2), {}
    for layers in (1, 2):
        model = twins.tiny(pos="rope", rope_scaling="dynamic_yarn", n_embd=128, n_layer=layers)
        read = cache.logits(model, idx, [9, 32], "rotated on read")
        far[layers] = (read - cache.logits(model, idx, [9, 32], "forward pass")).abs().max()
    assert far[1] < 1e-5
    assert far[2] > 1e-3


@torch.no_grad()
def test_what_is_read_along_a_text_is_what_scoring_gives(corpus, monkeypatch):
    """Unscaled, all three ways are one model: the judge's losses, and the keys it finds named."""
    monkeypatch.setattr(cache, "EVERY", 4)
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=40, n_layer=1, n_head=2, n_embd=16, block_size=8)).eval()
    state = {"run": {"dataset": "small", "data_dir": str(corpus)}}
    text = claims.held_out(state, 32, cache.TEXTS)
    whole = scoring.token_losses(model, text[:, :-1], text[:, 1:]).mean(0)
    wanted = [whole[torch.tensor(part) - 1].mean().item() for part in ((12, 16), (20, 24), (28,))]
    for way in cache.WAYS:
        assert cache.prose(model, state, way) == pytest.approx(wanted, abs=1e-4)


@torch.no_grad()
def test_keys_along_a_text_are_those_that_scoring_counts(monkeypatch):
    """Every other answer is what the model itself would say, digit by digit."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=12, n_layer=1, n_head=2, n_embd=16, block_size=8)).eval()
    tokenizer = Char("0123456789[]")

    def questions(length, count, seed):
        idx = torch.randint(12, (count, length), generator=torch.Generator().manual_seed(length))
        said = model(idx)[:, -4:].argmax(-1)
        said[::2] = (said[::2] + 1) % 12
        assert scoring.answered_exactly(model, idx, said) == [False, True] * (count // 2)
        texts = [[tokenizer.decode(row.tolist()) for row in x] for x in (idx, said)]
        return [tasks.Question(*pair, 0.5) for pair in zip(*texts, strict=True)]

    monkeypatch.setattr(cache.PASSKEY, "questions", questions)
    state = {"tokenizer": tokenizer.to_meta()}
    for way in cache.WAYS:
        assert cache.keys(model, state, way) == [0.5, 0.5]


def test_loud_sinusoids_are_those_of_the_paper():
    config = GPTConfig(vocab_size=9, pos="sinusoidal")
    angles = np.arange(40)[:, None] * 10000.0 ** (-np.arange(0, 128, 2) / 128)
    waves = np.stack((np.sin(angles), np.cos(angles)), -1).reshape(40, 128)
    x = torch.randn(2, 40, 128)
    loud = amplitude.Loud(config).embed(x, torch.arange(40), 40)
    assert np.allclose((loud - x).numpy(), waves, atol=1e-5)


def test_every_model_that_is_tuned_is_a_config_of_train_py(monkeypatch, tmp_path):
    asked, begun = [], {}
    monkeypatch.setattr(claims.train, "main", lambda argv, make: asked.append(argv) or 0)
    monkeypatch.setattr(claims, "begin_with", lambda path, earlier: begun.update({path: earlier}))
    for model in finetune.MODELS[1:]:
        for task in model.flags:
            model.folder(task, 1, str(tmp_path / "o u t"))
    configs = [claims.train.configs.load(argv) for argv in asked]
    by_folder = {config.folder: config for config in configs}
    assert len(by_folder) == 40
    assert {config.block_size / config.train_len for config in configs} == {4}
    assert all(config.tokens_per_step == config.block_size for config in configs)
    assert str(tmp_path / "o u t/passkey-rope-1") in {config.init_from for config in configs}
    for folder, config in by_folder.items():
        fewer = dict(zip(finetune.STEPS, (0, *finetune.STEPS), strict=False))[config.max_iters]
        name = folder.name.replace(f"-{config.max_iters}-", f"-{fewer}-")
        assert begun.get(folder) == (folder.with_name(name) if fewer else None)


def test_more_steps_go_on_with_the_run_of_fewer(tmp_path, corpus):
    """As one run that was stopped and resumed, whose cosine was drawn out: new windows each."""
    small = f"--data_dir={corpus} {' '.join(SMALL[:-1])}"
    flags = [small.replace("--max_iters=6", f"--max_iters={n}") for n in (3, 6)]
    short = Trained("short", [], {"prose": flags[0]})
    more = Trained("more", [], {"prose": flags[1]}, after=short)
    folder = more.folder("prose", 1, str(tmp_path))
    assert more.folder("prose", 1, str(tmp_path)) == folder  # and once is enough
    argv = [f"--out_dir={tmp_path / 'one'}", "--seed=1", "--device=cpu", "--wandb=disabled"]
    rope = str(claims.ROOT / "configs/rope.py")
    assert claims.train.main([rope, *argv, *flags[0].split()]) == 0
    assert claims.train.main([rope, *argv, *flags[1].split(), "--resume"]) == 0
    one, gone_on = (checkpoint.read(path) for path in (tmp_path / "one", folder))
    assert gone_on["iter"] == 6
    assert all(torch.equal(one["model"][name], x) for name, x in gone_on["model"].items())
    assert checkpoint.read(tmp_path / "short-1")["iter"] == 3
    begun = tmp_path / "more-2"  # stopped before its first own step
    claims.begin_with(begun, short.folder("prose", 2, str(tmp_path)))
    assert checkpoint.read(more.folder("prose", 2, str(tmp_path)))["iter"] == 6


def test_a_model_that_is_missing_is_trained_once_and_gone_on_with(tmp_path, corpus, monkeypatch):
    small = f"--data_dir={corpus} {' '.join(SMALL[:-1])}"
    model = Trained("tiny", [], {"prose": small}, linear.LinearGPT)
    before = signal.getsignal(signal.SIGINT)
    folder = model.folder("prose", 1, str(tmp_path))
    assert signal.getsignal(signal.SIGINT) == before
    assert folder == tmp_path / "tiny-1"
    assert len(losses(folder)) == 6
    asked, original = [], claims.train.main
    monkeypatch.setattr(claims.train, "main", lambda argv, make: asked.append(argv) or 143)
    (folder / "status.json").unlink()  # as if it had been killed when all was saved
    assert model.folder("prose", 1, str(tmp_path)) == folder
    assert not asked
    other = model._replace(flags={"prose": small.replace("--block_size=16", "--block_size=8")})
    with pytest.raises(ValueError, match="trained with block_size 16, wanted is 8"):
        other.folder("prose", 1, str(tmp_path))
    half = small.replace("--max_iters=6", "--max_iters=9")
    longer = Trained("tiny", [], {"prose": half}, linear.LinearGPT)
    with pytest.raises(ValueError, match="trained with max_iters 6, wanted is 9"):
        longer.folder("prose", 1, str(tmp_path))
    monkeypatch.setattr(claims.train, "main", original)
    with pytest.raises(checkpoint.CheckpointError, match="linear_attention is unknown"):
        checkpoint.load(folder)  # no GPT takes it for its own


def test_a_training_that_was_stopped_is_gone_on_with(tmp_path, corpus, capsys):
    flags = [*SMALL[:-1], f"--data_dir={corpus}", "--eval_interval=1"]
    model = Trained("tiny", [], {"prose": " ".join(merged(flags))}, linear.LinearGPT)
    with pytest.MonkeyPatch.context() as patch:
        step = claims.train.train_step

        def interrupted(run):
            if run.iter == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(run)

        patch.setattr(claims.train, "train_step", interrupted)
        with pytest.raises(SystemExit, match="143"):
            model.folder("prose", 1, str(tmp_path))
    assert capsys.readouterr().err.endswith("Here the same command again is enough.\n")
    assert len(losses(model.folder("prose", 1, str(tmp_path)))) == 6
    whole = model.folder("prose", 1, str(tmp_path / "at once"))
    assert fingerprint(whole) == fingerprint(tmp_path / "tiny-1")


def test_a_script_asks_for_the_runs_of_its_task(tmp_path, monkeypatch):
    monkeypatch.setattr(rope, "SCALINGS", dict(rope.SCALINGS))
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    asked, started = [], ["--seeds=1", "--task=keys", f"--out={tmp_path}"]
    with pytest.raises(
        ValueError, match=r"passkey-rope-1337 is missing; experiments/reproduce.sh trains"
    ):
        claims.judge("bands", bands.MODELS, started)
    (tmp_path / "passkey-rope-1337").mkdir()
    (tmp_path / "passkey-rope-1337/ckpt.pt").touch()
    monkeypatch.setattr(claims.evaluate, "plan_of", lambda path, args: asked.append(path))
    with pytest.raises(AttributeError):  # no plan to go on with: only the names are looked at here
        claims.judge("bands", bands.MODELS, started)
    assert asked == [str(tmp_path / "passkey-rope-1337")]
    assert "slow_planes,_under_1" in rope.SCALINGS
    with pytest.raises(ValueError, match="invalid choice: 'poems'"):
        claims.judge("bands", bands.MODELS, ["--task=poems"])


def test_only_what_compares_lengths_is_scored(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(claims, "scores_of", lambda task, longest: tmp_path / f"{task}.jsonl")
    monkeypatch.setattr(claims, "ASKED", {"prose": ["--tokens=64", "--window_tokens=256"]})
    monkeypatch.setattr(claims.rope, "SCALINGS", dict(claims.rope.SCALINGS))
    flags = f"--data_dir={corpus} {' '.join(SMALL[:-1])}"
    models = [Trained("tiny", [claims.NONE, claims.YARN], {"prose": flags})]
    models.append(Trained("short", [claims.NONE], {"prose": flags}, ratios=(1,)))
    given = ["--task=prose", "--seeds=1", f"--out={tmp_path}"]
    claims.judge("tiny", models, given, ratios=(1, 2))
    rows = results.read(tmp_path / "prose.jsonl")
    assert {row["protocol"] for row in rows} == {"matched"}
    found = {(row["run"], row["scaling"], row["length"] / row["trained"]) for row in rows}
    tiny = {("tiny", scaling, ratio) for scaling in ("none", "yarn") for ratio in (1, 2)}
    assert found == {*tiny, ("short", "none", 1)}


def test_what_is_compared_was_scored_on_the_same_targets():
    """Prose: in a file one set of targets at all lengths; keys: one set of texts a length."""
    for longest in (8, 16):
        prose, keys = report.Results(claims.ROOT).claims(longest)
        assert len({summary.row["targets"] for summary in prose.by_cell.values()}) == 1
        assert max(prose.lengths) == longest * prose.trained
        texts = {(length, s.row["targets"]) for (_, length), s in keys.by_cell.items()}
        assert len(texts) == len(keys.lengths)
