"""Checkpoints: what is written comes back exactly, and nothing else is believed."""

import os

import pytest
import torch

from model import GPT, GPTConfig
from runtime import checkpoint, errors
from runtime.checkpoint import CheckpointError

CONFIG = GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8)


def state_of(config: GPTConfig = CONFIG, **more) -> dict:
    torch.manual_seed(0)
    return checkpoint.describe(GPT(config)) | {"iter": 3, "tokenizer": {"kind": "char"}} | more


@pytest.fixture
def folder(tmp_path):
    checkpoint.save(tmp_path, state_of())
    return tmp_path


def refusal(path, **overrides) -> str:
    with pytest.raises(CheckpointError, match=r"^.+$") as caught:  # one line
        checkpoint.load(path, **overrides)
    assert errors.exit_code(caught.value) == errors.CHECKPOINT
    return str(caught.value)


def test_what_is_saved_comes_back_from_the_folder_and_from_the_file(folder):
    for path in (folder, str(folder / "ckpt.pt")):
        model, info = checkpoint.load(path)
        assert not model.training
        assert model.config == CONFIG
        for name, weight in state_of()["model"].items():
            assert torch.equal(model.state_dict()[name], weight)
        assert (info["iter"], info["tokenizer"]) == (3, {"kind": "char"})
        assert "model" not in info


def test_torch_alone_reads_the_file_too(folder):
    assert torch.load(folder / "ckpt.pt", weights_only=True)["iter"] == 3


def test_another_scaling_is_a_replace(folder):
    model, _ = checkpoint.load(folder, rope_scaling="yarn", rope_factor=4.0)
    assert model.config.rope_scaling == "yarn"
    assert torch.equal(model.wte.weight, state_of()["model"]["wte.weight"])


def test_a_new_scaling_inherits_nothing_of_the_old_one(tmp_path):
    old = GPTConfig(**vars(CONFIG) | {"rope_scaling": "yarn", "rope_factor": 4.0, "beta_fast": 8.0})
    checkpoint.save(tmp_path, state_of(old))
    assert checkpoint.load(tmp_path)[0].config == old
    new = checkpoint.load(tmp_path, rope_scaling="ntk", rope_factor=2.0)[0].config
    assert (new.rope_scaling, new.rope_factor, new.beta_fast) == ("ntk", 2.0, 32.0)
    assert checkpoint.load(tmp_path, rope_scaling="none")[0].config == CONFIG


def test_an_impossible_override_is_named(folder):
    with pytest.raises(ValueError, match=r"rope_factor is 0\.5"):
        checkpoint.load(folder, rope_scaling="yarn", rope_factor=0.5)
    with pytest.raises(ValueError, match=r"rope_factor is None; it must be given: without it"):
        checkpoint.load(folder, rope_scaling="yarn")


def test_a_damaged_newest_falls_back_to_the_previous_and_says_so(folder, capsys):
    checkpoint.save(folder, state_of(iter=9))
    assert checkpoint.load(folder)[1]["iter"] == 9
    (folder / "ckpt.pt").write_bytes(b"junk")
    assert checkpoint.load(folder)[1]["iter"] == 3
    assert "ckpt.pt is damaged" in (said := capsys.readouterr().err)
    assert said.endswith("using the previous one, of step 3\n")
    (folder / "ckpt.prev.pt").unlink()
    refusal(folder)


def test_a_pickle_that_would_run_code_is_refused(folder):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {folder / 'ran'}",)

    checkpoint.save(folder, {"iter": Evil()})
    assert "contains code" in refusal(folder / "ckpt.pt")
    assert not (folder / "ran").exists()


def test_an_empty_folder_and_no_folder_are_named(tmp_path):
    assert "holds no checkpoint" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s["model"].pop("ln_f.weight"), "ln_f.weight is missing"),
        (lambda s: s["model"].update(x=torch.zeros(1)), "x is unknown"),
        (lambda s: s["model"]["wte.weight"].fill_(float("nan")), "wte.weight is not finite"),
        (lambda s: s["config"].update(n_embd=16), "is (24, 8) in the checkpoint and (48,"),
        (lambda s: s["config"].update(pos="rotary"), "does not describe a model: pos is 'rotary'"),
        (lambda s: s["config"].update(knob=1), "does not describe a model"),
        (lambda s: s.pop("config"), "does not describe a model"),
        (lambda s: s.pop("model"), "holds no weights"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, spoil, words):
    state = state_of()
    spoil(state)
    checkpoint.save(tmp_path, state)
    assert words in refusal(tmp_path)


def test_the_newest_run_is_found(tmp_path):
    with pytest.raises(CheckpointError, match="no run in"):
        checkpoint.newest_run(tmp_path)
    for name, age in (("a", 2000), ("b", 1000)):
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name, state_of())
        os.utime(tmp_path / name / "ckpt.pt", (age, age))
    assert checkpoint.newest_run(tmp_path).name == "a"


def test_a_damaged_newest_does_not_push_the_good_previous_out(folder, monkeypatch):
    checkpoint.save(folder, state_of(iter=9))
    (folder / "ckpt.pt").write_bytes(b"junk")
    replace = os.replace

    def once(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(OSError, match="Input/output"):
        checkpoint.save(folder, state_of(iter=12))
    monkeypatch.undo()
    assert checkpoint.load(folder)[1]["iter"] == 3


def test_a_missing_newest_is_answered_with_the_previous(folder, capsys):
    checkpoint.save(folder, state_of(iter=9))
    (folder / "ckpt.pt").unlink()
    assert checkpoint.load(checkpoint.newest_run(folder.parent))[1]["iter"] == 3
    assert "ckpt.pt is missing; using the previous one, of step 3" in capsys.readouterr().err


# ---- runs of beyond="slide" --------------------------------------------------------------------


def slid(state: dict) -> dict:
    """A state as it was saved when a window of the reader was a setting of the model."""
    state["config"]["beyond"] = "slide"
    return state | {"run": dict(state["config"])}


def test_a_window_of_the_model_becomes_one_of_the_reader(folder):
    assert "window" not in checkpoint.read(folder)
    checkpoint.save(folder, slid(state_of(iter=9)))
    state = checkpoint.read(folder)
    assert state["window"] == CONFIG.block_size
    assert state["config"]["beyond"] == state["run"]["beyond"] == "extend"
    model, info = checkpoint.load(folder)
    assert model.config == CONFIG
    assert info["window"] == CONFIG.block_size


@pytest.mark.parametrize("config", [None, 3, [], {"beyond": None}, {"beyond": ["slide"]}])
def test_a_config_that_is_not_one_is_refused_and_not_mapped(tmp_path, config):
    checkpoint.save(tmp_path, state_of() | {"config": config})
    assert "window" not in checkpoint.read(tmp_path)
    assert "does not describe a model" in refusal(tmp_path)
