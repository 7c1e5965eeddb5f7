"""How a run is written and read back: atomically, hashed, and without running what is read.

A checkpoint is the file that `torch.save` makes, followed by one line of LINE_BYTES:
`nanorope checkpoint FORMAT sha256 HEX`. torch.load alone still reads it; `read` looks at nothing
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

from model import GPT, GPTConfig
from positions import KNOBS, check_factor

FORMAT = 1
LINE = re.compile(rb"\nnanorope checkpoint (\d{4}) sha256 ([0-9a-f]{64})\n")
LINE_BYTES = 98
NEWEST, PREVIOUS, FRESH = "ckpt.pt", "ckpt.prev.pt", "ckpt.pt.tmp"
PIECE = 2**20  # bytes hashed at once


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not for this code."""

    exit_code = 4


class SaveError(OSError):
    """A checkpoint that could not be written. Those before it are untouched."""


def save(folder: Path, state: dict) -> Path:
    """Write `state` (tensors and plain Python values) as the newest checkpoint of a folder.

    A crash at any moment leaves the newest or the previous one whole. Raises SaveError (disk full)
    with the last good one still there.
    """
    buffer = io.BytesIO()  # in memory first: torch.save hides what a full disk says
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(f"\nnanorope checkpoint {FORMAT:04} sha256 {digest}\n".encode())
    newest, fresh = folder / NEWEST, folder / FRESH
    try:
        with open(fresh, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        # A damaged newest must not take the place of the good one before it.
        if newest.exists() and _is_whole(newest):
            os.replace(newest, folder / PREVIOUS)
        os.replace(fresh, newest)
        _sync(folder)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise _failure(error, folder, state["iter"], buffer.tell()) from None
    return newest


def _failure(error: OSError, folder: Path, step: int, size: int) -> SaveError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    good, free = last_good(folder), shutil.disk_usage(folder).free
    return SaveError(
        f"{'disk full' if full else error.strerror} while saving step {step} to {folder} "
        f"(need {size / 1e6:.1f} MB, {free / 1e6:.1f} MB free); "
        f"last good: {'none' if good is None else f'step {good}'}"
    )


def _hashed(file: BinaryIO) -> re.Match | None:
    """The last line of a checkpoint whose hash matches what stands before it.

    The line first, then the rest in pieces: junk of any size takes neither time nor memory. Stops
    where the line begins.
    """
    left = file.seek(0, os.SEEK_END) - LINE_BYTES
    file.seek(max(0, left))
    line, digest = LINE.fullmatch(file.read(LINE_BYTES)), hashlib.sha256()
    file.seek(0)
    while line and (piece := file.read(min(PIECE, left))):
        digest.update(piece)
        left -= len(piece)
    return line if line and digest.hexdigest() == line[2].decode() else None


def _is_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        return _hashed(file) is not None


def _sync(folder: Path) -> None:
    """Make the folder's entries outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path) -> dict:
    """The state in one file, checked by its hash before it is unpickled as plain data only."""
    try:
        with open(path, "rb") as file:
            line = _hashed(file)
            size = file.tell()
            file.seek(0)
            raw = io.BytesIO(file.read(size) if line else b"")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if not line:
        raise CheckpointError(f"{path} is damaged, or no nanorope checkpoint: its SHA-256 is off")
    if int(line[1]) != FORMAT:
        newer = "; a newer nanorope wrote it" if int(line[1]) > FORMAT else ""
        raise CheckpointError(f"{path} has format {int(line[1])}; this code reads {FORMAT}{newer}")
    try:
        # torch.save compresses nothing, and torch.load would unpack a bomb of any size.
        if sum(member.file_size for member in zipfile.ZipFile(raw).infolist()) > size:
            raise zipfile.BadZipFile
        raw.seek(0)
        state = torch.load(raw, map_location="cpu", weights_only=True)
    except Exception as error:  # nine types of them; the hash matched, so it was written like this
        code = "contains code" if "eights only" in str(error) else "cannot be unpacked"
        raise CheckpointError(f"{path} was not loaded: it {code}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} was not loaded: it holds no run")
    return state | {"sha256": line[2].decode(), "path": str(path)}


def read(path: str | Path) -> dict:
    """The state in a run folder (its newest whole checkpoint) or in a file."""
    path = Path(path)
    if not path.is_dir():
        return read_file(path)
    if (path / FRESH).exists():
        print(f"{path / FRESH} is half of a save that was cut short; left alone", file=sys.stderr)
    files = [path / name for name in (NEWEST, PREVIOUS) if (path / name).exists()]
    if not files:
        raise CheckpointError(f"{path} holds no checkpoint ({NEWEST}); train one into it first")
    try:
        state, why = read_file(files[0]), f"{path / NEWEST} is missing"
    except CheckpointError as error:
        if len(files) == 1:
            raise
        state, why = read_file(files[1]), error
    if not state["path"].endswith(NEWEST):
        print(f"{why}; using the previous one, of step {state['iter']}", file=sys.stderr)
    return state


def last_good(folder: Path) -> int | None:
    """The step of the newest whole checkpoint of a folder."""
    for name in (NEWEST, PREVIOUS):
        with suppress(CheckpointError):
            return read_file(folder / name).get("iter")
    return None


def config_of(state: dict) -> GPTConfig:
    try:
        return GPTConfig(**state["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{state['path']} describes no model: {error}") from None


def adapt(config: GPTConfig, **overrides) -> GPTConfig:
    """`replace`, where a new rope_scaling does not inherit the settings of the one it replaces."""
    if overrides.get("rope_scaling", config.rope_scaling) != config.rope_scaling:
        of_scaling = {"rope_factor", *KNOBS}
        defaults = {f.name: f.default for f in fields(GPTConfig) if f.name in of_scaling}
        overrides = defaults | overrides
    config = replace(config, **overrides)
    check_factor(config)
    return config


def build(state: dict, config: GPTConfig, make: type[GPT] = GPT) -> GPT:
    """A model of this config with the weights of a state; CheckpointError where they do not fit."""
    model = make(config)
    if not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{state['path']} holds no weights")
    _check(state["model"], model.state_dict(), state["path"])
    model.load_state_dict(state["model"])
    return model


def _check(found: dict, wanted: dict, path: str) -> None:
    """CheckpointError naming the first tensors that are missing, surplus, misshapen, not finite."""
    wrong = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    wrong += [f"{name} is unknown" for name in found.keys() - wanted.keys()]
    for name in sorted(wanted.keys() & found.keys()):
        if not isinstance(found[name], torch.Tensor) or found[name].layout != torch.strided:
            wrong.append(f"{name} is no plain tensor")
        elif found[name].shape != wanted[name].shape:
            shapes = tuple(found[name].shape), tuple(wanted[name].shape)
            wrong.append(f"{name} is {shapes[0]} there and {shapes[1]} here")
        elif not found[name].isfinite().all():
            wrong.append(f"{name} is not finite")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{path} does not fit: {'; '.join(sorted(wrong)[:5])}{more}")


def load(path: str | Path, **overrides) -> tuple[GPT, dict]:
    """(model in eval mode, info) from a run folder or its ckpt.pt.

    overrides are GPTConfig fields (rope_scaling, rope_factor, beyond, ...). info holds all that was
    saved but the weights and the optimizers: iter, config, run, tokenizer, data, sha256, path.
    Raises CheckpointError (a ValueError) naming what is wrong with the file, ValueError for an
    override that cannot be.
    """
    state = read(path)
    model = build(state, adapt(config_of(state), **overrides)).eval()
    return model, {k: v for k, v in state.items() if k not in ("model", "optimizers", "scaler")}


def describe(model: GPT) -> dict:
    """The part of a state that `build` needs."""
    return {"config": asdict(model.config), "model": model.state_dict()}


def exists(folder: Path) -> bool:
    return any((folder / name).exists() for name in (NEWEST, PREVIOUS))


def remove(folder: Path) -> None:
    """Take a run's checkpoints away, before another run starts in its folder."""
    for name in (NEWEST, PREVIOUS, FRESH):
        (folder / name).unlink(missing_ok=True)


def newest_run(root: str | Path = "out") -> Path:
    """The run folder with the newest checkpoint."""
    found = [*Path(root).glob(f"*/{NEWEST}"), *Path(root).glob(f"*/{PREVIOUS}")]
    files = sorted(found, key=lambda file: file.stat().st_mtime)
    if not files:
        raise CheckpointError(f"no run in {root}/ yet; python train.py configs/rope.py makes one")
    return files[-1].parent
