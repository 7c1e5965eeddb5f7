"""Imported models compute what transformers computes, and are runs like any other."""

import copy
import json
import shutil
import sys

import pretrained
import pytest
import torch
from conftest import merged, run
from pretrained import MODELS, TEXT, T, V, change, model_of, save
from transformers import GPT2Model

import data.prepare
import evaluate
import sample
import train
from data import DataError, tokenizer
from model import GPT
from runtime import checkpoint, errors
from runtime.hub import __main__ as hub
from runtime.hub import folders

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
IDX = torch.randint(V, (2, 4 * T), generator=torch.Generator().manual_seed(0))


def imported(source, folder, *flags):
    hub.main(["import", str(source), str(folder), *flags])
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A saved Llama, and the run that was made of it."""
    root = tmp_path_factory.mktemp("llama")
    source = save(root / "source", model_of("llama"))
    return source, imported(source, root / "run")


# ---- the same logits


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name, tmp_path):
    theirs = model_of(name)
    source = save(tmp_path / "source", theirs)
    ours, info = checkpoint.load(imported(source, tmp_path / "run"))
    expected = theirs(IDX).logits
    assert expected.std() > 1
    torch.testing.assert_close(ours(IDX), expected, rtol=1e-5, atol=5e-5)
    assert info["iter"] == 0


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_greedy_tokens_are_those_of_transformers(name, tmp_path):
    theirs = model_of(name)
    ours, _ = checkpoint.load(imported(save(tmp_path / "source", theirs), tmp_path / "run"))
    text = IDX[:1, :5]
    seen = torch.ones_like(text)
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(text, attention_mask=seen, max_new_tokens=20, do_sample=False)
    tokens = [token.item() for token in ours.generate(text, 20, temperature=0)]
    assert tokens == expected[0, 5:].tolist()


@pytest.mark.parametrize(
    ("scaling", "theirs"),
    [
        ("linear", {"rope_type": "linear", "factor": 4.0}),
        ("yarn", {"rope_type": "yarn", **pretrained.BY_PARTS}),
        ("llama3", {"rope_type": "llama3", **pretrained.LLAMA3}),
    ],
)
def test_a_scaling_that_is_added_is_that_of_transformers(llama, scaling, theirs):
    ours, _ = checkpoint.load(llama[1], rope_scaling=scaling, rope_factor=4.0)
    theirs = {"rope_parameters": {"rope_theta": 10000.0, **theirs}}
    twin = model_of("llama", **theirs)
    torch.testing.assert_close(ours(IDX), twin(IDX).logits, rtol=1e-5, atol=5e-5)


def test_shards_and_half_precision_are_read(tmp_path):
    theirs = model_of("llama")
    for parameter in theirs.parameters():
        parameter.data = parameter.data.bfloat16().float()
    half = copy.deepcopy(theirs).bfloat16()
    source = save(tmp_path / "source", half, max_shard_size="20KB")
    assert len([*source.glob("*.safetensors")]) > 1
    ours, _ = checkpoint.load(imported(source, tmp_path / "run"))
    torch.testing.assert_close(ours(IDX), theirs(IDX).logits, rtol=1e-5, atol=5e-5)


def test_a_base_model_without_a_head_is_read(tmp_path):
    """As the files of `gpt2` on the Hub are."""
    whole = model_of("gpt2")
    base = GPT2Model(whole.config)
    base.load_state_dict(whole.transformer.state_dict())
    ours, _ = checkpoint.load(imported(save(tmp_path / "source", base), tmp_path / "run"))
    torch.testing.assert_close(ours(IDX), whole(IDX).logits, rtol=1e-5, atol=5e-5)


def test_keys_of_before_transformers_5_mean_the_same(tmp_path):
    theirs = model_of("gpt_neox")
    source = save(tmp_path / "source", theirs)
    old = {"rotary_pct": 0.25, "rotary_emb_base": 10000, "rope_scaling": None}
    change(source, rope_parameters="REMOVED", torch_dtype="float16", **old)
    ours, _ = checkpoint.load(imported(source, tmp_path / "run"))
    torch.testing.assert_close(ours(IDX), theirs(IDX).logits, rtol=1e-5, atol=5e-5)
    theirs = model_of("llama-yarn")
    source = save(tmp_path / "llama", theirs)
    old = {"type": "yarn", **pretrained.YARN}
    change(source, rope_parameters="REMOVED", rope_theta=500, rope_scaling=old)
    ours, _ = checkpoint.load(imported(source, tmp_path / "llama-run"))
    torch.testing.assert_close(ours(IDX), theirs(IDX).logits, rtol=1e-5, atol=5e-5)


# ---- a run like any other


def test_the_run_holds_all_that_is_needed(llama):
    folder = llama[1]
    state = checkpoint.read(folder)
    assert (state["iter"], state["data"], state["run"]["name"]) == (0, {}, "run")
    made = tokenizer.from_meta(json.loads(json.dumps(state["tokenizer"])))
    theirs = pretrained.tokenizer()
    for text in (TEXT[:90], "naïve ☃ 12345\n", "<|endoftext|> is text"):
        assert made.decode(made.encode(text).tolist()) == text
    assert made.encode(TEXT).tolist() == theirs.encode(TEXT).ids
    assert 0 not in made.encode("<|endoftext|>")
    assert (made.vocab_size, made.end_of_text) == (theirs.get_vocab_size(), 0)
    assert made.decode([0]) == "<|endoftext|>"
    assert tokenizer.of_run(folder).to_meta() == state["tokenizer"]
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["iter"]) == ("done", 0, 0)


@pytest.mark.parametrize("scaling", ["none", "yarn", "dynamic_ntk", "llama3"])
def test_it_is_sampled_from(llama, scaling, capsys):
    flags = ["--prompt=to be", "--max_len=2x", f"--rope_scaling={scaling}"]
    sample.main([f"--out_dir={llama[1]}", *flags])
    assert capsys.readouterr().out.startswith("to be")


@pytest.fixture
def encoded(llama, tmp_path, monkeypatch):
    """A dataset in the tokens of the imported model."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 3)
    data.prepare.prepare("own", [text], tokenizer=str(llama[1]), root=tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def test_a_corpus_is_encoded_with_its_tokenizer(llama, encoded, capsys):
    meta = data.read_meta(encoded / "own")
    assert meta["tokenizer"] == checkpoint.read(llama[1])["tokenizer"]
    again = {"tokenizer": str(llama[1]), "root": encoded}
    data.prepare.prepare("own", [encoded.parent / "text.txt"], **again)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(DataError, match="with a different tokenizer"):
        data.prepare.prepare("own", [encoded.parent / "text.txt"], root=encoded)
    with pytest.raises(ValueError, match="passkey means tokenizer char, not json"):
        data.prepare.prepare("passkey", **again)


def test_it_is_evaluated(llama, encoded, capsys):
    flags = [str(llama[1]), "--lengths=1/2x,1x,2x", "--rope_scaling=none,yarn,dynamic_yarn"]
    flags += ["--tokens=32", "--window_tokens=64", f"--data_dir={encoded}", "--wandb=disabled"]
    with pytest.raises(ValueError, match="was imported, not trained here; name a --dataset"):
        evaluate.main(flags)
    evaluate.main([*flags, "--dataset=own"])
    assert "dynamic_yarn" in capsys.readouterr().out


FEW = [
    "--dataset=own",
    "--max_iters=2",
    "--eval_interval=1",
    "--eval_tokens=64",
    "--log_interval=1",
]
FEW += ["--wandb=disabled", "--dtype=float32", "--batch_size=2", "--warmup_iters=1"]


def test_training_starts_from_it(llama, encoded, tmp_path):
    """Settings of the model that are left out are those of the weights."""
    longer = ["--block_size=32", "--rope_scaling=yarn", f"--data_dir={encoded}"]
    flags = [f"--init_from={llama[1]}", *longer, *FEW, f"--out_dir={tmp_path / 'tuned'}"]
    assert train.main(flags) == errors.DONE
    model, info = checkpoint.load(tmp_path / "tuned")
    assert (model.config.rope_train_len, model.config.n_inner, info["iter"]) == (T, 48, 2)
    assert model.config.norm == "rmsnorm"
    with pytest.raises(ValueError, match="n_layer is 9; it must be 3, as"):
        train.main([*flags, "--overwrite", "--n_layer=9"])


def test_it_is_resumed(llama, encoded, tmp_path):
    folder = shutil.copytree(llama[1], tmp_path / "copy")
    flags = ["--resume", f"--data_dir={encoded}", *FEW]
    assert train.main([*flags, f"--out_dir={folder}"]) == errors.DONE
    assert checkpoint.read(folder)["iter"] == 2
    text = tmp_path / "other.txt"
    text.write_text("letters " * 500)
    data.prepare.prepare("letters", [text], root=encoded)
    folder = shutil.copytree(llama[1], tmp_path / "again")
    with pytest.raises(DataError, match="was trained with a different tokenizer"):
        train.main([*merged(flags, "--dataset=letters"), f"--out_dir={folder}"])


def test_a_run_is_not_overwritten_by_chance(llama, tmp_path):
    folder = imported(llama[0], tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already"):
        imported(llama[0], folder)
    imported(llama[0], folder, "--overwrite")
    assert [*tmp_path.glob("run/ckpt*")] == [folder / "ckpt.pt"]


def test_nothing_of_it_is_needed_to_train(monkeypatch, flags, tmp_path):
    for name in ("safetensors", "tokenizers", "huggingface_hub", "gguf"):
        monkeypatch.setitem(sys.modules, name, None)
    assert checkpoint.load(run(flags, "--max_iters=1"))[0].config.block_size == 16


# ---- what is missing


@pytest.mark.parametrize("name", ["safetensors", "tokenizers"])
def test_a_missing_package_is_named(llama, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    words = f"needs the package `{name}`: pip install -r requirements-models.txt"
    with pytest.raises(ValueError, match=words):
        imported(llama[0], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_name_on_the_hub_is_fetched(llama, tmp_path, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(llama[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    imported("owner/name@v1", tmp_path / "run")
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("owner/name", "v1")
    assert not any("bin" in pattern or ".pt" in pattern for pattern in patterns)


def test_without_a_network_the_way_out_is_named(tmp_path, monkeypatch):
    import huggingface_hub  # noqa: PLC0415 - beside its only use

    def offline(name, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach it\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    words = r"owner/name cannot be had from the Hub \(cannot reach it\); download it elsewhere"
    with pytest.raises(DataError, match=words):
        imported("owner/name", tmp_path / "run")


@pytest.mark.parametrize("name", ["nowhere", "../x/y", "a/b/c", "https://x.y/z", ""])
def test_what_is_no_source_is_refused(name, tmp_path):
    with pytest.raises((ValueError, checkpoint.CheckpointError), match=r"no model|[Nn]o such file"):
        imported(name or "x y", tmp_path / "run")


def test_bytes_that_fall_back_are_text_again():
    """Llama 2's kind: a blank is U+2581, and an unknown byte has a token of its own."""
    vocab = {"<s>": 0, **{f"<0x{b:02X}>": b + 1 for b in range(256)}, "▁": 257, "a": 258, "▁a": 259}
    described = {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "<s>", "special": True, "single_word": False}
            | {"lstrip": False, "rstrip": False, "normalized": False}
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["▁ a"], "byte_fallback": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
    }
    made = tokenizer.from_json(json.dumps(described))
    assert made.encode(" aé").tolist() == [259, 0xC3 + 1, 0xA9 + 1]
    assert made.decode(made.encode("a aé☃ ").tolist()) == "a aé☃ "
    assert (made.end_of_text, made.opens_prompts) == (0, True)
    args = sample.parse(["--prompt= a"])
    assert sample.prompt_of(args, made) == [0, 259]


def test_weights_are_read_into_a_gpt_of_the_same_names(llama):
    source = folders.read_folder(llama[0])
    config = hub.families.config_of(source)
    assert GPT(config).state_dict().keys() == hub.families.weights(source, config).keys()
