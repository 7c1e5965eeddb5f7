"""Random bytes into every reader: each is read, or refused by a line of ours, and never run.

Half of the inputs are noise; the rest are sound files with bytes flipped, cut, doubled and spliced
with what has a meaning to their reader. Where a file carries a hash, half of them get the right
one, so that what lies behind the hash is reached too.
"""

import copy
import hashlib
import json
import linecache
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import configs
import sample
from data import DataError, load, prepare
from data.tokenizer import Char, from_meta, train_bpe
from model import GPT, GPTConfig
from runtime import checkpoint, errors
from runtime.help import meanings

ROOT = Path(__file__).parent.parent.parent
SEED = 1
SECONDS = {"default": 5, "soak": 600}
OURS = (ValueError, DataError, checkpoint.CheckpointError)
PYTHON = "import os;os.system('touch ran');__import__('os');exec;eval;=;==;n_layer;rope_factor;pos"
PYTHON += ";'yarn';'llama3';block_size;beta_slow;10000;-1;1e308;0;9*;/;//;1e-300;True;None;(;);[;]"
PYTHON += """;lambda: 1;:=;#;'\\ud800';'\\0';\0;\xff;\xef\xbb\xbf;';\"\"\";\n"""
PYTHON = PYTHON.split(";")
VALUES = "0 -1 1 2 3 1e308 1e-320 nan inf None True '' 'x' 1/0 2**63 9*9 ٤ \0 \udcff yarn".split()
OPCODES = [b"cos\nsystem\n", b"(S'touch ran'\ntR.", b"\x80\x02", b".", b"R", b"PK\3\4", b"\xff" * 8]
SIGNS = [b"\xff", b"\0", b"\r\n", b"\xef\xbb\xbf", b"\xe2\x98\x83", b"\xed\xa0\x80"]
TEXT = "to be or not to be, that is the question:\n" * 20
Try = tuple[bytes, Callable[[], object]]  # an input, and what reads it


def mutated(draw: random.Random, raw: bytes, words: list[bytes]) -> bytes:
    """A sound file with a few things wrong; now and then nothing but noise."""
    if draw.random() < 0.2:
        return draw.randbytes(draw.choice((0, 1, 2, 3, 98, 99, 1000)))
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at, to = sorted(draw.randrange(len(raw) + 1) for _ in range(2))
        to = min(to, at + draw.choice((1, 2, 8, 1000)))
        new = draw.choice((b"", draw.randbytes(to - at), draw.choice(words), 2 * raw[at:to]))
        raw = raw[:at] + new + raw[to:]
    return raw


def config_files(draw: random.Random, folder: Path) -> Iterator[Try]:
    sound = b"".join(path.read_bytes() for path in sorted(ROOT.glob("configs/*.py")))
    words, file = [word.encode("latin-1") for word in PYTHON], folder / "mine.py"
    names = [name.encode() for name in meanings()]
    while True:
        lines = (draw.choice(names) + b" = " + draw.choice(words) for _ in range(draw.randrange(4)))
        raw = draw.choice((mutated(draw, sound[:600], words + names), b"\n".join(lines)))
        file.write_bytes(raw)
        yield raw, lambda: configs.load([str(file)])


def flags(draw: random.Random, folder: Path) -> Iterator[Try]:
    names = [*meanings(), "help", "", "n_layr"]
    while True:
        value = draw.choice((draw.choice(VALUES), draw.randbytes(4).decode("latin-1")))
        argv = [f"--{draw.choice(names)}={value}" for _ in range(draw.randrange(1, 4))]
        yield repr(argv).encode(), lambda argv=argv: configs.load(argv)


def prompts(draw: random.Random, folder: Path) -> Iterator[Try]:
    tokenizers, file = (Char(TEXT), train_bpe([TEXT], 270)), folder / "prompt.txt"
    while True:
        raw = mutated(draw, TEXT[:100].encode(), SIGNS)
        file.write_bytes(raw)
        yield raw, lambda: [t.encode(sample.text_of(str(file))) for t in tokenizers]


def token_files(draw: random.Random, folder: Path) -> Iterator[Try]:
    made = _dataset(folder)
    sound, meta = (made / "train.bin").read_bytes(), json.loads((made / "meta.json").read_text())
    while True:
        raw = mutated(draw, sound, [b"\xff\xff", b"\0"])
        entry = {"sha256": hashlib.sha256(raw).hexdigest(), "tokens": len(raw) // 2}
        entry["documents"] = [0]
        repaired = meta["splits"] | {"train": meta["splits"]["train"] | entry}
        splits = draw.choice((meta["splits"], repaired))
        (made / "meta.json").write_text(json.dumps(meta | {"splits": splits}))
        (made / "train.bin").write_bytes(raw)
        yield raw, lambda: load("own", folder)


def metas(draw: random.Random, folder: Path) -> Iterator[Try]:
    path = _dataset(folder) / "meta.json"
    sound, odd = path.read_text(), [None, True, -1, 0, 1.5, 2**70, "", "x", [], [[]], {}, {"x": 1}]
    words = [b"{", b"}", b"[", b"null", b"1e999", b"NaN", b"\\ud800", b'"', b",", b"9" * 5000]
    while True:
        meta = json.loads(sound)
        for _ in range(draw.randrange(1, 3)):
            _spoil(draw, meta, odd)
        raw = draw.choice((json.dumps(meta).encode(), mutated(draw, sound.encode(), words)))
        path.write_bytes(raw)
        yield raw, lambda: from_meta(load("own", folder).meta["tokenizer"])


def _spoil(draw: random.Random, value: object, odd: list) -> None:
    """Another value at a random place of a JSON document."""
    if isinstance(value, dict | list) and value:
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if draw.random() < 0.4:
            value[key] = copy.deepcopy(draw.choice(odd))
        else:
            _spoil(draw, value[key], odd)


def checkpoints(draw: random.Random, folder: Path) -> Iterator[Try]:
    tokenizer, path = Char(TEXT), folder / "ckpt.pt"
    config = GPTConfig(block_size=8, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=4)
    state = checkpoint.describe(GPT(config)) | {"iter": 1, "tokenizer": tokenizer.to_meta()}
    sound = checkpoint.save(folder, state).read_bytes()
    body = sound[: -checkpoint.LINE_BYTES]
    while True:
        raw = draw.choice((mutated(draw, sound, OPCODES), mutated(draw, body, OPCODES)))
        if draw.random() < 0.5:
            digest = hashlib.sha256(raw).hexdigest()
            raw += f"\nnanorope checkpoint 0001 sha256 {digest}\n".encode()
        path.write_bytes(raw)
        yield raw, lambda: checkpoint.load(path)


def _dataset(folder: Path) -> Path:
    (folder / "text.txt").write_text(TEXT)
    return prepare.prepare("own", [folder / "text.txt"], root=folder)


READERS = (config_files, flags, prompts, token_files, metas, checkpoints)


def outcome(read: Callable[[], object]) -> str:
    """read, refused, or what went wrong instead."""
    try:
        read()
    except BaseException as error:  # a panic of Rust is no Exception
        at = error.__traceback__
        while at.tb_next:
            at = at.tb_next
        file = at.tb_frame.f_code.co_filename
        raised = linecache.getline(file, at.tb_lineno).strip().startswith("raise ")
        ours = type(error) in OURS and raised and Path(file).is_relative_to(ROOT)
        if ours and errors.message(error) != type(error).__name__:
            return "refused"
        return f"{type(error).__name__}: {error}"[:200]
    return "read"


def fuzz(reader: Callable, folder: Path, seconds: float) -> Counter:
    """How many inputs of a reader were read and refused; every other outcome is a failure."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    end, counts = time.monotonic() + seconds, Counter()
    for raw, read in reader(random.Random(SEED), folder):
        found = outcome(read)
        assert found in ("read", "refused"), f"{found} on {raw[:2000]!r}"
        counts[found] += 1
        if time.monotonic() > end:
            break
    assert not list(folder.rglob("ran"))
    return counts


@pytest.mark.parametrize("lane", ["default", pytest.param("soak", marks=pytest.mark.soak)])
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_random_bytes_are_read_or_refused(tmp_path, monkeypatch, record, lane):
    """Rows 16, 18, 44, 46, 48, 49."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found = {
        reader.__name__: fuzz(reader, tmp_path / reader.__name__, SECONDS[lane] / len(READERS))
        for reader in READERS
    }
    total = sum(found.values(), Counter())
    assert min(sum(counts.values()) for counts in found.values()) > 5
    assert not (tmp_path / "ran").exists()
    inputs = {name: sum(counts.values()) for name, counts in found.items()}
    record(
        "fuzz",
        seconds=SECONDS[lane],
        inputs=inputs,
        total=total.total(),
        tracebacks=0,
        read=total["read"],
        refused=total["refused"],
    )


def test_an_error_of_python_itself_would_be_seen():
    for wrong in (lambda: {}["iter"], "\ud800".encode, lambda: int("x"), lambda: 1 / 0):
        assert outcome(wrong) not in ("read", "refused")
