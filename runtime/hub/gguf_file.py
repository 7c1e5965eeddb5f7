"""A GGUF file (llama.cpp's format) of the Llama or Qwen3 architecture, in transformers' terms.

The header is read here, every number checked against the size of the file before it is used: the
`gguf` package trusts its input. It is asked for one thing, the values of quantized blocks.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import tokenizer
from runtime.checkpoint import CheckpointError
from runtime.hub.folders import package
from runtime.hub.settings import Settings, Source

STRING, ARRAY = 8, 9
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
KEYS = {  # of the metadata, after the architecture, and of config.json
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _split(pattern: str) -> list[Settings]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [split | {"invert": False}, _BYTES | {"use_regex": False}]


PRE_TOKENIZERS = {  # how text is cut into words, by the name that the file gives
    "gpt-2": [_BYTES | {"use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES | {"use_regex": True}],
    "llama-bpe": _split(rf"{_ENDS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"),
    "qwen2": _split(rf"{_ENDS}|{_WORDS}|\p{{N}}|{_REST}"),
}


@dataclass
class Entry:
    """Where a tensor lies."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int  # bytes


class Reader:
    """The content of a file, from its beginning. CheckpointError where it ends too early."""

    def __init__(self, content: np.ndarray, path: str):
        self.content, self.path, self.at = content, path, 0

    def damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged or cut short: {reason}")

    def take(self, size: int) -> memoryview:
        if size > len(self.content) - self.at:
            raise self.damaged(f"{size} bytes are missing at byte {self.at}")
        self.at += size
        return self.content[self.at - size : self.at].data

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, least: int) -> int:
        """How many things follow, of at least so many bytes each."""
        count = self.number("Q")
        if count * least > len(self.content) - self.at:
            raise self.damaged(f"it says that {count} things follow byte {self.at}")
        return count

    def text(self) -> str:
        try:
            return bytes(self.take(self.count(1))).decode()
        except UnicodeDecodeError:
            raise self.damaged(f"there is no UTF-8 before byte {self.at}") from None

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise self.damaged(f"type {kind} at byte {self.at} is unknown")
        return self.number(SCALARS[kind])

    def array(self) -> list[Any]:
        kind = self.number("I")
        if kind == STRING:
            return [self.text() for _ in range(self.count(8))]
        if kind not in SCALARS:
            raise self.damaged(f"an array of type {kind} at byte {self.at} is not read")
        dtype = np.dtype(f"<{SCALARS[kind]}")
        return np.frombuffer(self.take(self.count(dtype.itemsize) * dtype.itemsize), dtype).tolist()


class File:
    """Metadata and tensors of a GGUF file; nothing of the tensors is read yet."""

    def __init__(self, content: np.ndarray, path: str):
        self.content, self.quantization = content, package("gguf")
        reader = Reader(content, path)
        if bytes(reader.take(4)) != b"GGUF":
            raise CheckpointError(f"{path} is not a GGUF file")
        version = reader.number("I")
        if version not in (2, 3):
            raise CheckpointError(f"{path} is of GGUF version {version}; this code reads 2 and 3")
        tensors, pairs = reader.count(24), reader.count(12)
        self.metadata = {reader.text(): reader.value(reader.number("I")) for _ in range(pairs)}
        found = [self._entry(reader) for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 2**20:
            raise reader.damaged(f"general.alignment is {alignment!r}")
        start = -(-reader.at // alignment) * alignment
        self.entries = {}
        for name, entry in found:
            entry.start += start
            if entry.start + entry.size > len(content) or name in self.entries:
                raise reader.damaged(f"{name} is said to end at byte {entry.start + entry.size}")
            self.entries[name] = entry

    def _entry(self, reader: Reader) -> tuple[str, Entry]:
        name, dims = reader.text(), reader.number("I")
        if not 1 <= dims <= 4:
            raise reader.damaged(f"{name} has {dims} dimensions")
        shape = tuple(reader.number("Q") for _ in range(dims))[::-1]  # the fastest comes first
        kind, start = reader.number("I"), reader.number("Q")
        known = {int(k): size for k, size in self.quantization.GGML_QUANT_SIZES.items()}
        if kind not in known or shape[-1] % known[kind][0] or 0 in shape:
            raise reader.damaged(f"{name} is of shape {shape} and type {kind}")
        elements, (block, size) = 1, known[kind]
        for length in shape:
            elements *= length
        return name, Entry(shape, kind, start, elements // block * size)

    def read(self, name: str) -> Tensor:
        """The values of a tensor, float32."""
        entry = self.entries[name]
        kind = self.quantization.GGMLQuantizationType(entry.kind)
        raw = np.array(self.content[entry.start : entry.start + entry.size])  # aligned, our own
        rows = raw.reshape(*entry.shape[:-1], -1)
        try:
            values = self.quantization.dequantize(rows, kind)
        except NotImplementedError:
            raise CheckpointError(f"{name} is of type {kind.name}, which is not read") from None
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(entry.shape)


def read_file(path: Path) -> Source:
    try:
        content = np.memmap(path, np.uint8, mode="r")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError:  # numpy's word for an empty file
        raise CheckpointError(f"{path} is empty") from None
    return read(content, str(path))


def read(content: np.ndarray, path: str) -> Source:
    """A GGUF file's bytes as a source of weights with transformers' names and layout."""
    file = File(content, path)
    config = config_of(file)
    names = {name: _name(name) for name in file.entries}
    theirs = {new: old for old, new in names.items()}

    def weight(name: str) -> Tensor:
        values = file.read(theirs[name])
        rotated = name.rsplit(".", 2)[-2] in ("q_proj", "k_proj")
        if rotated and config["model_type"] == "llama":
            return unpermuted(values, config, name)
        return values

    shapes = {new: file.entries[old].shape for old, new in names.items()}
    source = Source(path, config, shapes, weight)
    source.tokenizer = tokenizer_of(file)
    return source


def unpermuted(values: Tensor, config: Settings, name: str) -> Tensor:
    """Rows of a llama file's q or k, from planes (2i, 2i + 1) back to planes (i, i + D/2)."""
    heads = config["num_attention_heads"]
    if "k_proj" in name:
        heads = config.get("num_key_value_heads") or heads
    return values.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _name(name: str) -> str:
    """transformers' name of a weight; one that is unknown stays, and is refused later."""
    module, _, kind = name.rpartition(".")
    if module in NAMES:
        return f"{NAMES[module]}.{kind}"
    parts = module.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in LAYER:
        return f"model.layers.{parts[1]}.{LAYER[parts[2]]}.{kind}"
    return name


def config_of(file: File) -> Settings:
    """The metadata as a config.json; keys that this code does not know stay, to be refused."""
    kind = file.metadata.get("general.architecture")
    if kind not in ("llama", "qwen3"):
        raise CheckpointError(f"its architecture is {kind!r}; this code has llama and qwen3")
    own = {
        name.removeprefix(f"{kind}."): value
        for name, value in file.metadata.items()
        if name.startswith(f"{kind}.")
    }
    config = {KEYS[name]: own.pop(name) for name in KEYS if name in own}
    scaling = {SCALING[name]: own.pop(name) for name in SCALING if name in own}
    if scaling.get("rope_type") == "none":
        scaling = {}
    config |= {"model_type": kind, "rope_scaling": scaling or None}
    config["tie_word_embeddings"] = "output.weight" not in file.entries
    for name in ("rms_norm_eps", "rope_theta"):  # 1e-5, not the nearest float32 to it
        if isinstance(config.get(name), float):
            config[name] = float(str(np.float32(config[name])))
    if "token_embd.weight" in file.entries:
        config.setdefault("vocab_size", file.entries["token_embd.weight"].shape[0])
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    counted = type(heads) is int and type(width) is int and heads > 0
    head = config.get("head_dim") or (width // heads if counted else None)
    for name in ("attention.value_length", "rope.dimension_count"):
        if own.get(name) == head:
            del own[name]
    if own.get("expert_count") == 0:
        del own["expert_count"]
    return config | {f"{kind}.{name}": value for name, value in own.items()}


def tokenizer_of(file: File) -> Settings:
    """The tokenizer that the metadata describes, as Tokenizer.to_meta has it."""
    of = {n.removeprefix("tokenizer.ggml."): value for n, value in file.metadata.items()}
    kind, pre = of.get("model"), of.get("pre", "gpt-2")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        known = f"model 'gpt2' with pre {', '.join(PRE_TOKENIZERS)}"
        raise CheckpointError(f"the file's tokenizer is {kind!r} with pre {pre!r}, not {known}")
    tokens, kinds, merges = (of.get(name) for name in ("tokens", "token_type", "merges"))
    if not all(isinstance(part, list) and part for part in (tokens, kinds, merges)):
        raise CheckpointError("the file's tokenizer lacks tokens, token_type or merges")
    options = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": token, "special": kind == 3, **options}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind in (3, 4)  # control and user-defined tokens
    ]
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}}
    model |= {"merges": merges, "ignore_merges": pre == "llama-bpe"}
    described = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
        "decoder": _BYTES | {"use_regex": True},
        "model": model,
    }
    return _with_start(described, of, tokens)


def _with_start(described: Settings, of: Settings, tokens: list[str]) -> Settings:
    """With the token that opens a text, where the file says that one does."""
    ends = {name: of.get(f"{name}_token_id") for name in ("bos", "eos")}
    known = {name: tokens[i] for name, i in ends.items() if type(i) is int and 0 <= i < len(tokens)}
    if of.get("add_bos_token", of.get("pre") == "llama-bpe") and "bos" in known:
        bos = {"SpecialToken": {"id": known["bos"], "type_id": 0}}
        of_bos = {"id": known["bos"], "ids": [ends["bos"]], "tokens": [known["bos"]]}
        described["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, *({"Sequence": {"id": name, "type_id": 0}} for name in "AB")],
            "special_tokens": {known["bos"]: of_bos},
        }
    text = json.dumps(described, ensure_ascii=False)
    return tokenizer.from_json(text, known.get("eos")).to_meta()
