"""Files made to harm, and models that cannot be expressed: one sentence each, and no run."""

import json
import random
import shutil
import struct
import time

import pretrained
import pytest
import torch
from pretrained import V, change, model_of, save
from safetensors.torch import load_file, save_file

from data import DataError
from runtime import errors
from runtime.checkpoint import CheckpointError
from runtime.hub import __main__ as hub

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    models = {name: model_of(name) for name in ("llama", "qwen3", "gpt2", "gpt_neox")}
    return {name: save(root / name, model) for name, model in models.items()}


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return lambda name="llama": shutil.copytree(saved[name], tmp_path / name)


def refused(source, tmp_path, words, error=CheckpointError):
    with pytest.raises(error, match=words) as caught:
        hub.main(["import", str(source), str(tmp_path / "run")])
    assert "\n" not in errors.message(caught.value)
    assert errors.exit_code(caught.value) in (errors.USAGE, errors.DATA, errors.CHECKPOINT)
    assert not (tmp_path / "run").exists()


# ---- what this code lacks


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", {"model_type": "mixtral"}, "model_type is 'mixtral'; this code has llama, mist"),
        ("llama", {"model_type": "deepseek_v3"}, "model_type is 'deepseek_v3'"),
        ("llama", {"model_type": ["llama"]}, r"model_type is \['llama'\]"),
        ("llama", {"num_local_experts": 8}, "has num_local_experts 8, which this code lacks"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ("llama", {"kv_lora_rank": 512}, "kv_lora_rank 512"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'; this code has silu"),
        ("llama", {"attention_bias": True}, "has mlp_bias False, which this code lacks"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp 2"),
        ("llama", {"partial_rotary_factor": 0.5}, "partly rotated heads"),
        ("qwen3", {"layer_types": ["full_attention"] * 2}, "layer_types must have 3 layers"),
        ("qwen3", {"layer_types": ["linear_attention"] * 3}, "layer_types must have"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias False"),
    ],
)
def test_what_this_code_lacks_is_named(folder, tmp_path, name, changes, words):
    source = folder(name)
    change(source, **changes)
    refused(source, tmp_path, words)


LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 4.0}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"rope_type": "longrope", **LONG}, "rope_type is 'longrope'; this code reads default"),
        ({"rope_type": "su"}, "rope_type is 'su'"),
        ({"rope_type": "dynamic", "factor": 4.0}, "rope_parameters has factor 4.0"),
        ({"rope_type": "linear"}, "rope_parameters has no factor"),
        ({"rope_type": "linear", "factor": 4.0, "beta_fast": 32}, "rope_parameters has beta_fast"),
        ({"rope_type": "linear", "factor": "4"}, "rope_factor is '4'; it must be of type float"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "no high_freq_factor"),
        ({"rope_type": "default", "rope_theta": -1.0}, "rope_theta is -1.0; it must be above 1"),
        ({"full_attention": {"rope_type": "default"}}, "not one set for all layers"),
        ([1], "not one set for all layers"),
    ],
)
def test_a_rotation_that_this_code_lacks_is_named(folder, tmp_path, parameters, words):
    source = folder()
    change(source, rope_parameters=parameters)
    refused(source, tmp_path, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "32"}, "n_embd is '32'; it must be of type int"),
        ({"hidden_size": 10**9}, "n_embd is 1000000000; it must be at most"),
        ({"hidden_size": -1}, "n_embd is -1; it must be at least 1"),
        ({"hidden_size": 64}, r"embed_tokens.weight \(320, 32\) cannot be wte.weight \(320, 64\)"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000; it must be a number of"),
        ({"num_hidden_layers": 9999}, "it has 30 weights for 9999 layers"),
        ({"num_hidden_layers": 2}, "has no place for model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 4}, "it has no model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": None}, "its config has no num_hidden_layers"),
        ({"num_hidden_layers": True}, "has num_hidden_layers True"),
        ({"num_key_value_heads": 3}, "n_kv_head is 3; it must be a divisor"),
        ({"vocab_size": 10**7}, r"cannot be wte.weight \(10000000, 32\)"),
        ({"vocab_size": None}, "has no vocab_size"),
        ({"max_position_embeddings": None}, "has no max_position_embeddings"),
        ({"rms_norm_eps": 0}, "norm_eps is 0.0"),
        ({"tie_word_embeddings": "yes"}, "tie_embeddings is 'yes'; it must be of type bool"),
        ({"sliding_window": "5", "layer_types": ["sliding_attention"] * 3}, "window is '5'"),
    ],
)
def test_settings_that_do_not_fit_are_named(folder, tmp_path, changes, words):
    source = folder()
    change(source, **changes)
    began = time.monotonic()
    refused(source, tmp_path, words)
    assert time.monotonic() - began < 10


# ---- damaged files


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100000, b"\xff\xfe", b"null"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_damaged_json_is_refused(folder, tmp_path, file, content):
    source = folder()
    (source / file).write_bytes(content)
    refused(source, tmp_path, f"{file} is damaged|damaged: it")


@pytest.mark.parametrize(("file", "size"), [("config.json", 2**20), ("tokenizer.json", 2**26)])
def test_a_huge_json_is_not_read(folder, tmp_path, file, size):
    source = folder()
    with open(source / file, "wb") as f:
        f.truncate(size + 1)
    refused(source, tmp_path, r"more than [\d,]+ are not read")


def test_a_cut_file_of_weights_is_refused(folder, tmp_path):
    source = folder()
    path = source / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(source, tmp_path, "model.safetensors is damaged or cut short")
    for header in (2**63, 2**32, len(whole)):
        path.write_bytes(struct.pack("<Q", header) + whole[8:])
        refused(source, tmp_path, "model.safetensors is damaged or cut short")


def rewritten(source, edit):
    path = source / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda w: w.pop("model.norm.weight"), "it has no model.norm.weight"),
        (lambda w: w.update(extra=torch.ones(2)), "this code has no place for extra"),
        (lambda w: w["model.norm.weight"].fill_(torch.nan), "model.norm.weight is not finite"),
        (lambda w: w.update({"model.norm.weight": torch.ones(32, 1)}), r"\(32, 1\) cannot be ln_f"),
        (lambda w: w.update({"model.norm.weight": torch.ones(())}), r"\(\) cannot be ln_f"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            "model.norm.weight is int8; quantized weights are not read",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, tmp_path, edit, words):
    source = folder()
    rewritten(source, edit)
    refused(source, tmp_path, words)


def test_a_pickle_is_not_read(folder, tmp_path):
    source = folder()
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused(source, tmp_path, "pytorch_model.bin could run code, so it is not read")


@pytest.fixture
def shards(tmp_path):
    return save(tmp_path / "shards", model_of("llama"), max_shard_size="20KB")


def test_a_missing_or_cut_shard_is_refused(shards, tmp_path):
    first, *_ = sorted(shards.glob("*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    refused(shards, tmp_path, "damaged or cut short")
    first.unlink()
    refused(shards, tmp_path, f"{first.name} does not exist")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.update({"lm_head.weight": "../../etc/x.safetensors"}), "names a file"),
        (lambda m: m.update({"lm_head.weight": "/etc/passwd"}), "names a file '/etc/passwd'"),
        (lambda m: m.update({"lm_head.weight": 5}), "names a file '5'"),
        (lambda m: m.update({"more": m["lm_head.weight"]}), "wrong about the place of more"),
        (lambda m: m.pop("lm_head.weight"), "has no lm_head.weight"),
        (lambda m: m.clear(), "has no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(shards, tmp_path, edit, words):
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))
    refused(shards, tmp_path, words)


# ---- tokenizers


def spoil(source, edit):
    path = source / "tokenizer.json"
    described = json.loads(path.read_text())
    edit(described)
    path.write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d["model"].update(type="Unigram"), "tokenizer"),
        (
            lambda d: d.update(decoder={"type": "WordPiece", "prefix": "", "cleanup": False}),
            "only byte pairs",
        ),
        (lambda d: d.update(decoder=None), "only byte pairs"),
        (lambda d: d["model"]["merges"].append(["no", "such"]), "cannot be used"),
        (lambda d: d["model"]["vocab"].update({"☃": 5}), "'☃', which stands for no byte"),
        (lambda d: d.pop("model"), "cannot be used"),
        (lambda d: d.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}), "cannot"),
        (lambda d: d["model"].update(vocab={}, merges=[]), "has no token for byte 0x21"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(folder, tmp_path, edit, words):
    source = folder()
    spoil(source, edit)
    refused(source, tmp_path, words, DataError)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(folder, tmp_path):
    source = folder()
    made = pretrained.tokenizer()
    made.add_tokens([f"more {i}" for i in range(V)])
    made.save(str(source / "tokenizer.json"))
    refused(source, tmp_path, "its tokenizer has [0-9]+ tokens and the model knows 320", DataError)


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
    source = folder()
    (source / "tokenizer.json").unlink()
    refused(source, tmp_path, "tokenizer.json does not exist", DataError)


def test_changed_bytes_end_in_a_sentence_or_in_a_run(folder, tmp_path):
    """Whatever byte of whatever file: never any other error."""
    draw, source = random.Random(0), folder()
    files = {path: path.read_bytes() for path in source.iterdir()}
    refusals = 0
    for i in range(60):
        path, whole = draw.choice([*files.items()])
        spoiled = bytearray(whole)
        for _ in range(draw.choice((1, 3, 30))):
            spoiled[draw.randrange(min(len(spoiled), 3000))] = draw.randrange(256)
        path.write_bytes(spoiled)
        said = ""
        try:
            hub.main(["import", str(source), str(tmp_path / f"run{i}")])
        except (CheckpointError, DataError) as error:
            said = errors.message(error)
        assert "\n" not in said
        refusals += said != ""
        path.write_bytes(whole)
    assert refusals > 20
