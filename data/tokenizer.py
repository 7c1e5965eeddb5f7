"""Text to tokens and back: characters, byte pairs, GPT-2's byte pairs, behind one interface.

`from_meta(tokenizer.to_meta())` is the same tokenizer. The dict is plain JSON, so that it can lie
in meta.json and in a checkpoint, and nothing else is needed to read text back years later.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from data import MAX_VOCAB, DataError

END_OF_TEXT = "<|endoftext|>"
KINDS = ("char", "bpe", "gpt2")


class Tokenizer(Protocol):
    """What every tokenizer offers. `end_of_text` opens each document, or is None."""

    kind: str
    vocab_size: int
    end_of_text: int | None

    def encode(self, text: str) -> np.ndarray:
        """Text to uint16 (T,); special tokens written in the text are plain text."""

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
    end_of_text = None

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
        if kind in KINDS:
            tokens = [base64.b64decode(token, validate=True) for token in meta["merges"]]
            return Bpe(tokens, meta["pattern"] + "", kind)  # anything but a string raises here
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        again = "prepare the data again, or take another checkpoint"
        raise DataError(f"the tokenizer's description is damaged ({error!r}): {again}") from None
    raise DataError(f"tokenizer kind {kind!r} is unknown: expected one of {', '.join(KINDS)}")
