"""Checkpoints: written atomically with a hash, and loaded without running any code in them.

A checkpoint is the file that `torch.save` makes, followed by one line of LINE_BYTES:
`nanorope checkpoint FORMAT sha256 HEX`. torch.load alone can load it too; `read` unpickles nothing
before the hash has matched. See docs/checkpoint.md.
"""

import errno
import hashlib
import io
import os
import re
import shutil
import sys
import zipfile
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import BinaryIO

import torch

import data
import rope
from model import GPT, GPTConfig
from positions import KNOBS, require
from runtime import errors

FORMAT = 1
LINE = re.compile(rb"\nnanorope checkpoint (\d{4}) sha256 ([0-9a-f]{64})\n")
LINE_BYTES = 98
NEWEST, PREVIOUS, FRESH = "ckpt.pt", "ckpt.prev.pt", "ckpt.pt.tmp"
PIECE = 2**20  # bytes hashed at once


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not for this code."""

    exit_code = errors.CHECKPOINT


class SaveError(OSError):
    """A checkpoint that could not be written. Those before it are untouched."""


def save(folder: Path, state: dict, keep_previous: bool = True) -> Path:
    """Write `state` (tensors and plain Python values) as the newest checkpoint of a folder.

    The newest so far becomes the previous one, or is overwritten. A crash at any moment leaves one
    of them whole, and so does SaveError, which is raised where the file cannot be written.
    """
    buffer = io.BytesIO()  # in memory first: torch.save hides the error of a full disk
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(f"\nnanorope checkpoint {FORMAT:04} sha256 {digest}\n".encode())
    newest, fresh = folder / NEWEST, folder / FRESH
    try:
        with open(fresh, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if not keep_previous:
            (folder / PREVIOUS).unlink(missing_ok=True)
        # A damaged newest must not take the place of the good one before it.
        elif newest.exists() and _is_whole(newest):
            os.replace(newest, folder / PREVIOUS)
        os.replace(fresh, newest)
        data.sync_folder(folder)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise _failure(error, folder, state["iter"], buffer.tell()) from None
    return newest


def _failure(error: OSError, folder: Path, step: int, size: int) -> SaveError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "disk full" if full else error.strerror
    good, free = last_good(folder), shutil.disk_usage(folder).free
    last = "none" if good is None else f"step {good}"
    return SaveError(
        f"{reason} while saving step {step} to {folder} "
        f"(need {size / 1e6:.1f} MB, {free / 1e6:.1f} MB free); last good: {last}"
    )


def _hashed(file: BinaryIO) -> re.Match | None:
    """The last line of a checkpoint, if its hash matches the bytes before it; else None.

    The line is looked at first, and the rest is hashed in pieces: a foreign file of any size
    takes neither time nor memory. Leaves the file at the beginning of the line.
    """
    left = file.seek(0, os.SEEK_END) - LINE_BYTES
    file.seek(max(0, left))
    line = LINE.fullmatch(file.read(LINE_BYTES))
    if line is None:
        return None
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(min(PIECE, left)):
        digest.update(piece)
        left -= len(piece)
    return line if digest.hexdigest() == line[2].decode() else None


def _is_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        return _hashed(file) is not None


def read_file(path: Path) -> dict:
    """The state in one file, checked by its hash before it is unpickled as plain data only."""
    raw, line = _checked_bytes(path)
    if int(line[1]) != FORMAT:
        newer = "; a newer nanorope wrote it" if int(line[1]) > FORMAT else ""
        raise CheckpointError(f"{path} has format {int(line[1])}; this code reads {FORMAT}{newer}")
    state = _unpickle(raw, path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} was not loaded: it does not hold a run")
    state |= {"sha256": line[2].decode(), "path": str(path)}
    return _without_slide(state)


def _checked_bytes(path: Path) -> tuple[bytes, re.Match]:
    """What torch.save wrote, and the line after it."""
    try:
        with open(path, "rb") as file:
            line = _hashed(file)
            size = file.tell()
            file.seek(0)
            raw = file.read(size) if line else b""
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {error.strerror}; train a run into it first") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if not line:
        raise CheckpointError(
            f"{path} is damaged or not a nanorope checkpoint: its SHA-256 does not match"
        )
    return raw, line


def _unpickle(raw: bytes, path: Path) -> object:
    """Tensors and plain Python values; CheckpointError for anything that could run code."""
    try:
        # torch.save compresses nothing, and torch.load would unpack a zip bomb of any size.
        unpacked = sum(member.file_size for member in zipfile.ZipFile(io.BytesIO(raw)).infolist())
        if unpacked > len(raw):
            raise zipfile.BadZipFile
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # of nine types; the hash matched, so the file was made like this
        reason = "contains code" if "eights only" in str(error) else "cannot be unpacked"
        raise CheckpointError(f"{path} was not loaded: it {reason}") from None


def _without_slide(state: dict) -> dict:
    """A state whose model was trained with beyond="slide", in today's terms.

    The setting changed no step of training. It showed a text to the model through a window of the
    last block_size tokens. Now that is a setting of sampling, so the length of the window goes
    into state["window"], and the model becomes an ordinary one.
    """
    config, run = state.get("config"), state.get("run")
    if isinstance(config, dict) and config.get("beyond") == "slide":
        state["window"] = config.get("block_size")
        state["config"] = config | {"beyond": "extend"}
        if isinstance(run, dict):
            state["run"] = run | {"beyond": "extend"}
    return state


def read(path: str | Path) -> dict:
    """The state in a run folder (its newest whole checkpoint) or in a file.

    state["window"] is set where a text must be shown through a window: see `_without_slide`.
    """
    path = Path(path).expanduser()
    return _read_folder(path) if path.is_dir() else read_file(path)


def _read_folder(folder: Path) -> dict:
    newest, previous, fresh = folder / NEWEST, folder / PREVIOUS, folder / FRESH
    if fresh.exists():
        print(f"{fresh} is half of a save that was cut short; left alone", file=sys.stderr)
    if not exists(folder):
        raise CheckpointError(f"{folder} holds no checkpoint ({NEWEST}); train one into it first")
    if not newest.exists():
        return _fall_back(previous, f"{newest} is missing")
    try:
        return read_file(newest)
    except CheckpointError as error:
        if not previous.exists():
            raise
        return _fall_back(previous, error)


def _fall_back(previous: Path, reason: object) -> dict:
    state = read_file(previous)
    print(f"{reason}; using the previous one, of step {state.get('iter')}", file=sys.stderr)
    return state


def last_good(folder: Path) -> int | None:
    """The step of the newest whole checkpoint of a folder."""
    for name in (NEWEST, PREVIOUS):
        with suppress(CheckpointError):
            return read_file(folder / name).get("iter")
    return None


def config_of(state: dict) -> GPTConfig:
    """The model's settings; those that are newer than the checkpoint have their defaults."""
    try:
        return GPTConfig(**state["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{state['path']} does not describe a model: {error}") from None


def with_overrides(config: GPTConfig, **overrides) -> GPTConfig:
    """`replace`, where a new rope_scaling does not inherit the settings of the one it replaces."""
    if overrides.get("rope_scaling", config.rope_scaling) != config.rope_scaling:
        of_scalings = {"rope_factor", *KNOBS}
        defaults = {f.name: f.default for f in fields(GPTConfig) if f.name in of_scalings}
        overrides = defaults | overrides
    config = replace(config, **overrides)
    check_factor(config)
    return config


def check_factor(config: GPTConfig) -> None:
    """ValueError where a fixed scaling would do nothing, because no factor is given."""
    fixed = config.rope_scaling in rope.SCALINGS and rope.reads_factor(config.rope_scaling)
    idle = fixed and config.rope_factor is None and config.factor == 1
    rule = f"given: without it rope_scaling {config.rope_scaling!r} changes nothing here"
    require(not idle, config, "rope_factor", rule)


def build(state: dict, config: GPTConfig, make: type[GPT] = GPT) -> GPT:
    """A model of this config with the weights of a state; CheckpointError where they do not fit."""
    model = make(config)
    if not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{state['path']} holds no weights")
    _check_weights(state["model"], model.state_dict(), state["path"])
    model.load_state_dict(state["model"])
    return model


def _check_weights(saved: dict, expected: dict, path: str) -> None:
    """CheckpointError that names the first five tensors that are wrong."""
    problems = [f"{name} is missing" for name in expected.keys() - saved.keys()]
    problems += [f"{name} is unknown" for name in saved.keys() - expected.keys()]
    both = {name: _problem(saved[name], expected[name]) for name in saved.keys() & expected.keys()}
    problems += [f"{name} {problem}" for name, problem in both.items() if problem]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{path} does not fit: {'; '.join(sorted(problems)[:5])}{more}")


def _problem(saved: object, expected: torch.Tensor) -> str | None:
    if not isinstance(saved, torch.Tensor) or saved.layout != torch.strided:
        return "is not a dense tensor"
    if saved.shape != expected.shape:
        return f"is {tuple(saved.shape)} in the checkpoint and {tuple(expected.shape)} in the model"
    return None if saved.isfinite().all() else "is not finite"


def load(path: str | Path, **overrides) -> tuple[GPT, dict]:
    """(model in eval mode, info) from a run folder or its ckpt.pt.

    overrides are GPTConfig fields (rope_scaling, rope_factor, beyond, ...). info holds all that was
    saved but the weights and the optimizers: iter, config, run, tokenizer, data, sha256, path.
    Raises CheckpointError (a ValueError) that names what is wrong with the file, ValueError for an
    override that cannot be.
    """
    state = read(path)
    model = build(state, with_overrides(config_of(state), **overrides)).eval()
    weights = ("model", "optimizers", "scaler")
    return model, {name: value for name, value in state.items() if name not in weights}


def describe(model: GPT) -> dict:
    """The part of a state that `build` needs."""
    return {"config": asdict(model.config), "model": model.state_dict()}


def exists(folder: Path) -> bool:
    return any((folder / name).exists() for name in (NEWEST, PREVIOUS))


def newest_run(root: str | Path = "out") -> Path:
    """The run folder with the newest checkpoint."""
    files = [*Path(root).glob(f"*/{NEWEST}"), *Path(root).glob(f"*/{PREVIOUS}")]
    if not files:
        raise CheckpointError(f"no run in {root}/ yet; python train.py configs/rope.py makes one")
    return max(files, key=lambda file: file.stat().st_mtime).parent
