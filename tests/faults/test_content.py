"""A checkpoint that is damaged, foreign, of another time or of another model: noticed before it is
believed. Rows 16-18 and 20-24 of the fault matrix; for row 19 see test_security.py."""

import io
import os
import random
import re
import shutil
import signal
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import fingerprint, merged, run
from torch import nn

import configs
import data.prepare
import sample
import train
from model import GPT, GPTConfig
from runtime import checkpoint, errors
from runtime.checkpoint import CheckpointError

OLD = Path(__file__).parent.parent / "data" / "format1.pt"
CONFIG = GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8)
DAMAGED = "is damaged or not a nanorope checkpoint: its SHA-256 does not match"


def state_of(**more) -> dict:
    torch.manual_seed(0)
    return checkpoint.describe(GPT(CONFIG)) | {"iter": 3, "tokenizer": {"kind": "char"}} | more


@pytest.fixture
def folder(tmp_path):
    """A run folder with the checkpoints of steps 3 and 9."""
    checkpoint.save(tmp_path, state_of())
    checkpoint.save(tmp_path, state_of(iter=9))
    return tmp_path


def flips(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`whole` with one bit changed, `count` times."""
    draw = random.Random(seed)
    for _ in range(count):
        at, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
        yield whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]


def cuts(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    for length in [0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(count - 3))]:
        yield whole[:length]


def noticed(file: Path, damaged: Iterator[bytes]) -> int:
    """How many of the damaged contents of a file are refused; any other error would be ours."""
    count = 0
    for content in damaged:
        file.write_bytes(content)
        with suppress(CheckpointError):
            checkpoint.load(file)
            continue
        count += 1
    return count


def test_a_cut_anywhere_is_noticed(folder):
    """Row 16."""
    file = folder / "ckpt.pt"
    assert noticed(file, cuts(file.read_bytes(), 200, 2)) == 200


def test_a_flipped_bit_anywhere_is_noticed(folder):
    """Row 17."""
    file = folder / "ckpt.pt"
    assert noticed(file, flips(file.read_bytes(), 500, 1)) == 500


def test_without_its_hash_most_damage_would_pass(folder, monkeypatch):
    """Row 17 bites: the same reader and writer, whose hash is the same for all there is."""
    same = SimpleNamespace(update=lambda _: None, hexdigest=lambda: "0" * 64)
    monkeypatch.setattr(checkpoint, "hashlib", SimpleNamespace(sha256=lambda *_: same))
    file = checkpoint.save(folder, state_of())
    assert noticed(file, flips(file.read_bytes(), 100, 1)) < 50


@pytest.mark.soak
def test_the_figures_of_damage(flags, record):
    """Rows 16 and 17, on a checkpoint with all that a run puts into one."""
    file = run(flags, "--optimizer=muon", "--dtype=float16") / "ckpt.pt"
    whole = file.read_bytes()
    flipped, cut = noticed(file, flips(whole, 1000, 7)), noticed(file, cuts(whole, 300, 8))
    believed = 0
    for content in flips(whole[: -checkpoint.LINE_BYTES], 1000, 7):
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception:  # any of nine types
            continue
        believed += 1
    record(
        "corruption of a checkpoint",
        bytes=len(whole),
        flips=1000,
        flips_noticed=flipped,
        cuts=300,
        cuts_noticed=cut,
        flips_noticed_by_torch=1000 - believed,
    )
    assert (flipped, cut) == (1000, 300)


def test_a_damaged_newest_is_answered_with_the_previous_and_a_line(flags, ended, tmp_path):
    """Rows 16 and 17: the resumed run is the one that would have been; without both, it is 4."""
    whole = run(flags, folder=tmp_path / "whole")
    part = run(flags, "--max_iters=4", folder=tmp_path / "part")
    (part / "ckpt.pt").write_bytes((part / "ckpt.pt").read_bytes()[:-1])
    code, said = ended(*merged(flags, "--resume", folder=part))
    assert code == errors.DONE
    assert f"{part / 'ckpt.pt'} {DAMAGED}; using the previous one, of step 3\n" in said
    assert fingerprint(part) == fingerprint(whole)
    for file in part.glob("ckpt*.pt"):
        file.write_bytes(b"")
    code, said = ended(*merged(flags, "--resume", folder=part))
    assert code == errors.CHECKPOINT
    assert said.endswith(f"{part / 'ckpt.prev.pt'} {DAMAGED}\n")


# ---- what is no checkpoint at all --------------------------------------------------------------


def hashed(content: bytes) -> bytes:
    """A file whose hash is right, whatever it holds."""
    return content + f"\nnanorope checkpoint 0001 sha256 {sha256(content).hexdigest()}\n".encode()


def deflated(state: object) -> bytes:
    """What torch.save writes, compressed: torch.load would unpack it."""
    plain, bomb = io.BytesIO(), io.BytesIO()
    torch.save(state, plain)
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        for member in zipfile.ZipFile(plain).infolist():
            made.writestr(member.filename, zipfile.ZipFile(plain).read(member))
    return bomb.getvalue()


BOMB = deflated({"model": {"wte.weight": torch.zeros(2**22)}})  # 16 MiB in 16 kB


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", DAMAGED),
        (b"To be, or not to be\n" * 50, DAMAGED),
        (BOMB, DAMAGED),
        (hashed(BOMB), "cannot be unpacked"),
        (hashed(b""), "cannot be unpacked"),
        (hashed(b"PK\x03\x04" + bytes(500)), "cannot be unpacked"),
        (hashed(deflated([])[:-40]), "cannot be unpacked"),
        (b"\nnanorope checkpoint 0001 sha256 " + b"0" * 64 + b"\n", DAMAGED),
        (hashed(b"x")[1:], DAMAGED),
    ],
    ids=[
        "empty",
        "text",
        "bomb",
        "bomb hashed",
        "nothing hashed",
        "zip head hashed",
        "zip cut hashed",
        "line alone",
        "cut line",
    ],
)
def test_what_is_no_checkpoint_is_refused(folder, content, words):
    """Row 18."""
    assert noticed(folder / "ckpt.pt", iter([content])) == 1
    with pytest.raises(CheckpointError, match=re.escape(words)):
        checkpoint.load(folder / "ckpt.pt")
    assert checkpoint.load(folder)[1]["iter"] == 3


def test_a_file_of_a_terabyte_takes_neither_time_nor_memory(folder):
    """Row 18: its last line is looked at first. It has holes, so that it fits."""
    with open(folder / "ckpt.pt", "r+b") as file:
        file.truncate(2**40)
    began = time.monotonic()
    assert checkpoint.load(folder)[1]["iter"] == 3
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("whole", [True, False], ids=["a run", "weights alone"])
def test_a_foreign_file_without_a_hash_is_refused(folder, ended, whole):
    """Row 20. Nothing could tell whether it is damaged; there is no flag that believes it."""
    torch.save(state_of() if whole else state_of()["model"], folder / "ckpt.pt")
    for name in ("ckpt.prev.pt", "config.json"):
        (folder / name).unlink(missing_ok=True)
    code, said = ended("--out_dir", str(folder), "--prompt", "a", main=sample.main)
    assert code == errors.CHECKPOINT
    assert said == f"error: {folder / 'ckpt.pt'} {DAMAGED}\n"


def test_weights_alone_are_no_run_to_resume(flags, ended):
    """Row 20: what docs/checkpoint.md says of a file that was made of foreign weights."""
    folder = run(flags, "--max_iters=1")
    state = checkpoint.read(folder)
    kept = {name: state[name] for name in ("config", "model", "iter", "tokenizer")}
    checkpoint.save(folder, kept)
    code, said = ended(*merged(flags, "--resume"))
    assert code == errors.CHECKPOINT
    assert said == (
        f"error: {folder / 'ckpt.pt'} holds weights but no run to resume; start from "
        "them with --init_from\n"
    )
    code, _ = ended(f"--out_dir={folder}", "--prompt=to", "--max_len=4", main=sample.main)
    assert code == errors.DONE
    other = [f"--init_from={folder}", "--overwrite", "--max_iters=1"]
    assert ended(*merged(flags, *other))[0] == errors.DONE


# ---- another model -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--n_embd=32"], "n_embd: checkpoint 16, config 32"),
        (["--n_layer=3"], "n_layer: checkpoint 2, config 3"),
        (["--n_head=4"], "n_head: checkpoint 2, config 4"),
        (["--n_kv_head=1"], "n_kv_head: checkpoint None, config 1"),
        (["--vocab_size=99"], "vocab_size: checkpoint 19, config 99"),
        (["--pos=learned"], "pos: checkpoint rope, config learned"),
        (["--pos=alibi"], "pos: checkpoint rope, config alibi"),
        (["--rope_theta=5000"], "rope_theta: checkpoint 10000.0, config 5000.0"),
        (
            ["--block_size=8", "--dropout=0.2", "--bias"],
            "block_size: checkpoint 16, config 8; "
            "dropout: checkpoint 0.0, config 0.2; bias: checkpoint False, config True",
        ),
    ],
)
def test_a_run_goes_on_as_the_model_that_it_was(flags, ended, change, words):
    """Row 21: each setting that differs is named, and nothing is touched."""
    folder = run(flags, "--max_iters=1")
    before = (folder / "ckpt.pt").read_bytes()
    code, said = ended(*merged(flags, "--resume", *change))
    assert code == errors.CHECKPOINT
    rest = f"holds a different model ({words}); leave these settings out"
    assert said == f"error: {folder / 'ckpt.pt'} {rest}\n"
    assert (folder / "ckpt.pt").read_bytes() == before


def test_what_the_config_leaves_open_comes_from_the_checkpoint(flags):
    """Row 21."""
    run(flags, "--max_iters=1", "--n_kv_head=1")
    folder = run(flags, "--max_iters=2", "--resume")
    assert checkpoint.load(folder)[0].config.n_kv_head == 1


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_a_prefix_of_a_wrapper_is_refused_with_a_few_names(tmp_path, prefix):
    """Row 22. Single tensors that lack or are too many: test_checkpoint.py."""
    state = state_of()
    state["model"] = {prefix + name: weight for name, weight in state["model"].items()}
    with pytest.raises(CheckpointError, match=r"does not fit: .*; .* and \d+ more$") as caught:
        checkpoint.load(checkpoint.save(tmp_path, state))
    assert len(re.findall(r" is (?:missing|unknown)", str(caught.value))) == 5


def test_a_compiled_model_is_saved_without_its_wrapper(flags, monkeypatch):
    """Row 22."""

    class Compiled(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self._orig_mod = model

        def forward(self, *arguments):
            return self._orig_mod(*arguments)

    monkeypatch.setattr(torch, "compile", Compiled)
    state = checkpoint.read(run(flags, "--compile", "--max_iters=1"))
    assert state["model"].keys() == GPT(checkpoint.config_of(state)).state_dict().keys()


# ---- another time ------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "more"), [(99, "; a newer nanorope wrote it"), (0, "")])
def test_another_format_is_named(folder, number, more):
    """Row 23."""
    file = folder / "ckpt.pt"
    line = f"checkpoint {number:04}".encode()
    file.write_bytes(file.read_bytes().replace(b"checkpoint 0001", line))
    words = f"{file} has format {number}; this code reads 1{more}"
    with pytest.raises(CheckpointError, match=f"^{re.escape(words)}$"):
        checkpoint.load(file)


def test_a_file_of_the_first_version_loads_for_ever(tmp_path, capsys):
    """Row 23: weights, text and all else as they were when tests/data/format1.pt was written."""
    assert sha256(OLD.read_bytes()).hexdigest().startswith("678dc8e9236fa85a")
    model, info = checkpoint.load(OLD)
    assert (info["iter"], info["run"]["learning_rate"], info["threads"]) == (300, 0.03, 1)
    ids = torch.tensor([[" ,:abehinoqrstu".index(c) for c in "to be"]])
    wanted = [4.845, 3.8202, -0.8459, 0.0392, -1.2426, 1.0415, -0.9187, -1.9463, -2.665, -0.9645]
    assert model(ids)[0, -1, :10].tolist() == pytest.approx(wanted, abs=1e-3)
    shutil.copy(OLD, tmp_path / "ckpt.pt")
    likeliest = ["--prompt=to be", "--temperature=0", "--max_len=4x"]
    sample.main([f"--out_dir={tmp_path}", *likeliest])
    assert capsys.readouterr().out == "to be to the tototor tototo toto\n"


def test_a_run_of_the_first_version_goes_on(tmp_path):
    """Row 23: its optimizer, schedule and data too."""
    text, folder = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("to be or not to be, that is the question: " * 60)
    data.prepare.prepare("small", [text], root=tmp_path)
    folder.mkdir()
    shutil.copy(OLD, folder / "ckpt.pt")
    was = checkpoint.read(OLD)["run"]
    same = {
        k: v for k, v in was.items() if k in configs.Config(**was).determining and v is not None
    }
    flags = [f"--{k}={v}" for k, v in same.items() if k not in ("init_from", "vocab_size")]
    run(
        flags,
        "--max_iters=302",
        "--lr_decay_iters=300",
        "--wandb=disabled",
        "--resume",
        f"--data_dir={tmp_path}",
        "--eval_tokens=64",
        folder=folder,
    )
    moved = checkpoint.read(folder)
    assert moved["iter"] == 302
    change = moved["model"]["wte.weight"] - checkpoint.read(OLD)["model"]["wte.weight"]
    assert 0 < change.abs().max() < 0.01


# ---- numbers that are none ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(flags, ended, monkeypatch, value):
    """Row 24."""
    original = train.train_step

    def poisoned(run):
        found = original(run)
        if run.iter == 5:
            run.model.h[1].mlp.c_fc.weight.data[3, 3] = value
            os.kill(os.getpid(), signal.SIGTERM)  # to save, without an evaluation that would notice
        return found

    folder = run(flags, "--max_iters=3")
    before = (folder / "ckpt.pt").read_bytes()
    monkeypatch.setattr(train, "train_step", poisoned)
    # An evaluation would see it first.
    monkeypatch.setattr("evaluation.scoring.HeldOut.losses", lambda *_: {"val/loss": 1.0})
    code, said = ended(*merged(flags, "--resume", "--eval_interval=6"))
    assert code == errors.DIVERGED
    assert "error: h.1.mlp.c_fc.weight is not finite at step 5; the last checkpoint is" in said
    assert (folder / "ckpt.pt").read_bytes() == before
    state = checkpoint.read(folder)
    state["model"]["h.1.mlp.c_fc.weight"][3, 3] = value
    checkpoint.save(folder, state)
    code, said = ended(*merged(flags, "--resume"))
    assert code == errors.CHECKPOINT
    assert "does not fit: h.1.mlp.c_fc.weight is not finite" in said
