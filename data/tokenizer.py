"""Text to tokens and back: characters, byte pairs, a pretrained model's own, behind one interface.

`from_meta(tokenizer.to_meta())` is the same tokenizer. The dict is plain JSON, so that it can lie
in meta.json and in a checkpoint, and nothing else is needed to read text back years later.
"""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data import MAX_VOCAB, DataError

END_OF_TEXT = "<|endoftext|>"
KINDS = ("char", "bpe", "gpt2")  # that are made from text; "json" comes with a pretrained model


class Tokenizer(Protocol):
    """What every tokenizer offers. `end_of_text` opens each document, or is None."""

    kind: str
    vocab_size: int
    end_of_text: int | None
    opens_prompts: bool  # whether it must stand before a prompt, too

    def encode(self, text: str) -> np.ndarray:
        """Text to uint16 (T,), uint32 where the vocabulary needs it; special tokens written in the
        text are plain text."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Tokens to UTF-8. One token may be part of a character: feed a stream of these to
        `codecs.getincrementaldecoder("utf-8")("replace")`. DataError for an unknown id."""

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens to text; bytes that are no UTF-8 become U+FFFD."""

    def to_meta(self) -> dict[str, Any]:
        """All of the tokenizer as JSON."""


def _check_ids(ids: Sequence[int], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise DataError(f"token {token} is not one of the {vocab_size} of the tokenizer")


class Char:
    """One token a character, numbered in the order of code points (as in nanoGPT)."""

    kind = "char"
    end_of_text, opens_prompts = None, False

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(characters)))
        self.vocab_size = len(self.characters)
        if not 1 <= self.vocab_size <= MAX_VOCAB:
            limit = f"a char tokenizer takes 1 to {MAX_VOCAB}, try --tokenizer bpe"
            raise DataError(f"the text has {self.vocab_size} different characters: {limit}")
        self._points = _code_points(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """DataError names the first character that is unknown."""
        points = _code_points(text)
        ids = np.searchsorted(self._points, points)
        ids = np.minimum(ids, self.vocab_size - 1)  # past the last one: unknown, seen just below
        unknown = self._points[ids] != points
        if unknown.any():
            at = int(unknown.argmax())
            which = f"character {text[at]!r} (U+{points[at]:04X}) at position {at}"
            known = f"the {self.vocab_size} the model was trained on"
            raise DataError(f"{which} is not among {known}")
        return ids.astype(np.uint16)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self.decode(ids).encode()

    def decode(self, ids: Sequence[int]) -> str:
        _check_ids(ids, self.vocab_size)
        return "".join(self.characters[i] for i in ids)

    def to_meta(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


def _code_points(text: str) -> np.ndarray:
    # A prompt from the command line may hold lone surrogates: let them be named as unknown.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class Bpe:
    """Byte pairs through tiktoken: `tokens` are byte strings by rank, then end of text."""

    opens_prompts = False

    def __init__(self, tokens: list[bytes], pattern: str, kind: str = "bpe") -> None:
        import tiktoken  # noqa: PLC0415 (a char run never imports it)

        self.kind, self.tokens, self.pattern = kind, tokens, pattern
        self.end_of_text, self.vocab_size = len(tokens), len(tokens) + 1
        ranks = {token: rank for rank, token in enumerate(tokens)}
        # Without all 256 bytes tiktoken aborts on some text, and much later.
        if not {bytes([b]) for b in range(256)} <= ranks.keys() or len(ranks) < len(tokens):
            raise DataError("byte-pair tokens must hold every single byte, and none twice")
        if self.vocab_size > MAX_VOCAB:
            raise DataError(f"{self.vocab_size} tokens do not fit into uint16: at most {MAX_VOCAB}")
        special = {END_OF_TEXT: self.end_of_text}
        self._encoding = tiktoken.Encoding(
            kind, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )

    def encode(self, text: str) -> np.ndarray:
        # `encode` would raise on a special token that someone wrote out in their text.
        return np.array(self._encoding.encode_ordinary(text), dtype=np.uint16)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        _check_ids(ids, self.vocab_size)
        return self._encoding.decode_bytes([int(i) for i in ids])

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def to_meta(self) -> dict[str, Any]:
        # JSON has no type for bytes, and half a UTF-8 character is not a string.
        merges = [base64.b64encode(token).decode() for token in self.tokens]
        return {"kind": self.kind, "pattern": self.pattern, "merges": merges}


class Json:
    """Byte pairs described by a `tokenizer.json`, through the `tokenizers` package.

    Byte-level ones (GPT-2, Llama 3, Qwen), and those that write a blank as U+2581 and an unknown
    byte as <0x0A> (Llama 2). DataError for all others.
    """

    kind = "json"

    def __init__(self, text: str, end_of_text: int | None, opens_prompts: bool = False) -> None:
        self.text, self.end_of_text, self.opens_prompts = text, end_of_text, opens_prompts
        self._tokenizer = _tokenizers().Tokenizer.from_str(text)
        self._tokenizer.encode_special_tokens = True  # <|endoftext|> in a text is plain text
        described = json.loads(text)
        self._special = {token["content"] for token in described["added_tokens"]}
        self._byte_level = _is_byte_level(described)
        ids = self._tokenizer.get_vocab().values()
        self.vocab_size = max(ids) + 1
        if end_of_text not in {None, *ids} or type(opens_prompts) is not bool:
            raise DataError(f"end_of_text {end_of_text!r} is not a token of the tokenizer")
        if opens_prompts and end_of_text is None:
            raise DataError("no token is given that could open prompts")

    def encode(self, text: str) -> np.ndarray:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=np.uint16 if self.vocab_size <= MAX_VOCAB else np.uint32)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        _check_ids(ids, self.vocab_size)
        return b"".join(self._bytes_of(self._tokenizer.id_to_token(int(i))) for i in ids)

    def _bytes_of(self, token: str | None) -> bytes:
        if token is None:  # a number that stands for nothing
            return b"\xff"
        if token in self._special:
            return token.encode()
        if not self._byte_level:
            return _bytes_of_fallback(token)
        return bytes(map(_byte_level_alphabet().__getitem__, token))

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def to_meta(self) -> dict[str, Any]:
        meta = {"kind": self.kind, "json": self.text, "end_of_text": self.end_of_text}
        return meta | {"opens_prompts": self.opens_prompts}


def _bytes_of_fallback(token: str) -> bytes:
    """Those of a token that is text, or the name of a byte (<0x0A>)."""
    byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else token.replace("\u2581", " ").encode()


def _tokenizers():
    try:
        import tokenizers  # noqa: PLC0415 (only the tokenizers of pretrained models need it)
    except ImportError:
        needed = "the tokenizer of a pretrained model needs the package `tokenizers`"
        raise DataError(f"{needed}: pip install -r requirements-models.txt") from None
    return tokenizers


def _is_byte_level(described: dict[str, Any]) -> bool:
    """Whether tokens are bytes in GPT-2's alphabet. DataError where it is neither kind of Json."""
    model, decoder = described["model"], described.get("decoder") or {}
    parts = {part.get("type", "none") for part in decoder.get("decoders", [decoder])}
    if model["type"] == "BPE" and "ByteLevel" in parts:
        _check_alphabet(model["vocab"], described["added_tokens"])
        return True
    if model["type"] == "BPE" and model.get("byte_fallback") and "ByteFallback" in parts:
        return False
    found = f"model {model['type']!r} with decoder {', '.join(sorted(parts))}"
    raise DataError(f"the tokenizer is {found}: only byte pairs (BPE) on bytes can be used")


def _check_alphabet(vocabulary: dict[str, int], added: list[dict[str, Any]]) -> None:
    """DataError unless the tokens are of GPT-2's alphabet, and every character of ASCII is one."""
    special = {token["content"] for token in added}
    letters = set().union(*(token for token in vocabulary if token not in special))
    if foreign := letters - _byte_level_alphabet().keys():
        raise DataError(f"the tokenizer has {min(foreign)!r}, which stands for no byte")
    for letter, byte in _byte_level_alphabet().items():
        if letter not in vocabulary and 0x20 <= byte < 0x7F:  # SmolLM2 lacks a few rare bytes
            raise DataError(f"the tokenizer has no token for byte {byte:#04x}, and would skip it")


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """The byte that each letter of a byte-level token stands for (GPT-2): printable ones for
    themselves, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def from_json(text: str, end: str | None = None) -> Json:
    """The tokenizer of a `tokenizer.json`; end: the token after a text, where it names none.

    Where it puts a token before every text, that opens documents and prompts. Otherwise
    <|endoftext|> or `end`, if it has them, opens documents. DataError when it cannot be used.
    """
    try:
        described = json.loads(text)
        opening, end_of_text = _start_of_text(_tokenizers().Tokenizer.from_str(text), end)
        described |= {"truncation": None, "padding": None, "post_processor": None}
        text = json.dumps(described, ensure_ascii=False, separators=(",", ":"))
        return Json(text, end_of_text, opening is not None)
    except DataError:
        raise
    except Exception as error:  # the package raises plain Exceptions
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"the tokenizer's description cannot be used ({reason})") from None


def _start_of_text(made, end: str | None) -> tuple[int | None, int | None]:
    """The tokens that stand before every text, and before a document."""
    plain, whole = made.encode("a", add_special_tokens=False).ids, made.encode("a").ids
    opening = whole[0] if plain and whole[1 : len(plain) + 1] == plain else None
    names = [made.token_to_id(name) for name in (END_OF_TEXT, end or END_OF_TEXT)]
    return opening, next((i for i in (opening, *names) if i is not None), None)


def of_run(folder: Path) -> Tokenizer:
    """The tokenizer of a model that runtime.hub has imported into a run folder."""
    path = folder / "tokenizer.json"
    try:
        meta = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name the folder of an imported model") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} is damaged: import the model again") from None
    return from_meta(meta)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Bpe:
    """A tokenizer of at most `vocab_size` tokens (end of text included), learnt from `texts`."""
    import rustbpe  # noqa: PLC0415 (only needed here)

    # rustbpe counts the byte pairs only; end of text comes on top.
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size - 1)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    return Bpe([bytes(token) for token, _ in ranks], trainer.get_pattern())


def from_meta(meta: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `to_meta` wrote. DataError when the dict is not sound."""
    try:
        kind = meta["kind"]
        if kind == "char":
            meta["characters"].encode()  # a lone surrogate could never be printed
            return Char(meta["characters"])
        if kind == "json":
            return _json_of(meta)
        if kind in KINDS:
            tokens = [base64.b64decode(token, validate=True) for token in meta["merges"]]
            return Bpe(tokens, meta["pattern"] + "", kind)  # anything but a string raises here
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        again = "prepare the data again, or take another checkpoint"
        raise DataError(f"the tokenizer's description is damaged ({error!r}): {again}") from None
    known = ", ".join((*KINDS, "json"))
    raise DataError(f"tokenizer kind {kind!r} is unknown: expected one of {known}")


def _json_of(meta: dict[str, Any]) -> Json:
    try:
        return Json(meta["json"], meta["end_of_text"], meta["opens_prompts"])
    except DataError:
        raise
    except Exception as error:  # the package raises plain Exceptions
        raise ValueError(str(error)[:200]) from None
