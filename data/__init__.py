"""Token files: open, check, and batches as a pure function of (seed, step, micro).

B batch, T time (block_size). A split is one run of little-endian uint16 tokens, nanoGPT's format;
of uint32 where the vocabulary needs it, and then meta.json says so.
"""

import hashlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent
SPLITS = ("train", "val")
MAX_VOCAB = 2**16  # what uint16 can tell apart
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}  # of token files
HASHED_UP_TO = 256 * 2**20  # bytes; larger files would delay every start by many seconds
MAX_META = 2**28  # bytes of a meta.json: that of a hundred thousand documents has some millions
CHUNK = 2**24  # tokens looked at together, so that a huge file never fills the memory


class DataError(ValueError):
    """Something is wrong with data on disk, or with text: what, where, what would be right."""

    exit_code = 3


@dataclass(frozen=True)
class Dataset:
    """Two checked token files and what meta.json says about them."""

    name: str
    meta: dict[str, Any]
    train: np.memmap
    val: np.memmap

    @property
    def vocab_size(self) -> int:
        return self.meta["vocab_size"]

    @property
    def fingerprint(self) -> dict[str, str]:
        """The sha256 of each token file, hex: a checkpoint keeps it to notice changed data."""
        return {split: self.meta["splits"][split]["sha256"] for split in SPLITS}

    @property
    def window_stride(self) -> int:
        """Training windows start at multiples of this: documents of one window each, or 1."""
        return self.meta["task"]["every"] if "task" in self.meta else 1

    def mask_targets(self, y: np.ndarray) -> np.ndarray:
        """Targets (B, T), with -1 where the loss leaves a token out.

        For a task, the loss counts only answers: after one of the tokens `after`, and before the
        next one of `until`, if the task has any.
        """
        if "task" not in self.meta:
            return y
        task = self.meta["task"]
        opened = _last(np.isin(y, task["after"]))
        closed = _last(np.isin(y, task.get("until", [])))
        return np.where((opened > closed) & np.isin(y, task["scored"]), y, -1)

    def documents(self, split: str) -> list[tuple[int, int]]:
        """(start, end) token offsets of every whole document of `split`, in file order."""
        entry = self.meta["splits"][split]
        starts = entry["documents"]
        return list(zip(starts, [*starts[1:], entry["tokens"]], strict=True))


def _last(marked: np.ndarray) -> np.ndarray:
    """Where the last mark up to each place of a row stands, from 1; 0 where there is none."""
    places = np.arange(1, marked.shape[1] + 1)
    return np.maximum.accumulate(np.where(marked, places, 0), 1)


def root_of(data_dir: str | None) -> Path:
    """The folder that holds the datasets, from --data_dir: no shell expands the ~ in that."""
    return Path(data_dir).expanduser() if data_dir else DATA


def folder_of(name: str, root: Path = DATA) -> Path:
    """The folder of dataset `name`. ValueError when the name could lead anywhere else."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        allowed = "letters, digits, '.', '_' and '-', and does not start with a dot"
        raise ValueError(f"{name!r} is not a valid dataset name: a name is made of {allowed}")
    return root / name


def command(name: str, root: Path = DATA) -> str:
    """What to type to make the dataset `root`/`name`, in backquotes."""
    from data.prepare import KNOWN  # noqa: PLC0415 (it needs this module)

    own = "" if name in KNOWN else " --input FILE"
    place = "" if root == DATA else f" --data_dir={shlex.quote(str(root))}"
    return f"`python -m data.prepare {name}{own}{place}`"


def load(name: str, root: Path = DATA) -> Dataset:
    """Open `root`/`name`/{train,val}.bin read-only, checked against its meta.json.

    DataError when anything is missing, damaged, or holds a token outside the vocabulary.
    """
    folder = folder_of(name, root)
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: make it with {command(name, root)}")
    missing = [f for f in ("meta.json", "train.bin", "val.bin") if not (folder / f).is_file()]
    if "meta.json" in missing:  # nanoGPT's folders look like this
        why = f"{folder} has no meta.json, so the tokenizer of its token files is unknown"
        way_out = f"remove {folder} or choose another name"
        raise DataError(f"{why}: {way_out}, and prepare the text with {command(name, root)}")
    if missing:
        make = f"remove {folder} and make it with {command(name, root)}"
        raise DataError(f"{folder} has no {missing[0]}: {make}")
    meta = read_meta(folder)
    train, val = (_open_split(folder / f"{split}.bin", meta, split) for split in SPLITS)
    return Dataset(name, meta, train, val)


def read_meta(folder: Path) -> dict[str, Any]:
    """The checked meta.json of a dataset folder. DataError when it is damaged."""
    path, again = folder / "meta.json", f"remove {folder} and prepare it again"
    if path.stat().st_size > MAX_META:  # read, it would fill the memory before it is refused
        raise DataError(f"{path} is larger than {MAX_META} bytes, so it is damaged: {again}")
    try:
        meta = json.loads(path.read_bytes())
        known = meta["format"] == 1
        sound = type(meta["format"]) is int and (not known or _sound(meta))
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise DataError(f"{path} is damaged: {again}")
    if not known:
        raise DataError(f"{path} has format {meta['format']}: this code reads format 1; {again}")
    return meta


def dtype_of(meta: dict[str, Any]) -> np.dtype:
    """Of the tokens of a dataset; the first meta.json of format 1 does not say."""
    return DTYPES[meta.get("dtype", "uint16")]


def _sound(meta: dict[str, Any]) -> bool:
    from data.tokenizer import from_meta  # noqa: PLC0415 (it needs this module)

    size = meta["vocab_size"]
    whole = type(size) is int and 1 <= size <= 2 ** (8 * dtype_of(meta).itemsize)
    # Now, and not when a model that took days is to print its first word.
    whole = whole and from_meta(meta["tokenizer"]).vocab_size == size
    whole = whole and ("task" not in meta or _sound_task(meta["task"], size))
    return whole and all(_sound_split(meta["splits"][split]) for split in SPLITS)


def _sound_task(task: dict[str, Any], size: int) -> bool:
    after = task["after"] if isinstance(task["after"], list) else [task["after"]]
    tokens = [*task["scored"], *after, *task.get("until", [])]
    known = len(tokens) > 1 and all(type(i) is int and 0 <= i < size for i in tokens)
    return known and type(task["every"]) is int and task["every"] > 0


def _sound_split(entry: dict[str, Any]) -> bool:
    starts = entry["documents"]
    bounds = [*starts, entry["tokens"]]
    ascending = all(a < b for a, b in pairwise(bounds))
    whole = all(type(bound) is int for bound in bounds)
    return whole and ascending and starts[:1] == [0] and isinstance(entry["sha256"], str)


def _open_split(path: Path, meta: dict[str, Any], split: str) -> np.memmap:
    size, want = path.stat().st_size, meta["splits"][split]
    again = f"remove {path.parent} and prepare it again"
    if size == 0:  # numpy would only say that it cannot mmap an empty file
        raise DataError(f"{path} is empty: meta.json says {want['tokens']} tokens; {again}")
    dtype = dtype_of(meta)
    count, rest = divmod(size, dtype.itemsize)
    if rest:
        # nanoGPT's format has no header: size and hash are all there is to check.
        raise DataError(f"{path}: {size} bytes is not a whole number of {dtype} tokens; {again}")
    if count != want["tokens"]:
        raise DataError(f"{path} has {count} tokens, meta.json says {want['tokens']}; {again}")
    if size <= HASHED_UP_TO and file_sha256(path) != want["sha256"]:
        raise DataError(f"{path} does not have the sha256 that meta.json says: {again}")
    tokens = np.memmap(path, dtype=dtype, mode="r")
    _check_vocabulary(tokens, meta["vocab_size"], path)
    return tokens


def _check_vocabulary(tokens: np.ndarray, vocab_size: int, path: Path) -> None:
    # Here it is one sentence; inside an embedding on a GPU it would be a device assert.
    for start in range(0, len(tokens), CHUNK):
        outside = tokens[start : start + CHUNK] >= vocab_size
        if outside.any():
            at = start + int(outside.argmax())
            high = f"token {tokens[at]} >= vocab_size {vocab_size} at offset {at}"
            raise DataError(f"{path}: {high}; remove {path.parent} and prepare it again")


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk, so that a rename outlasts a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, hex, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def batch(
    tokens: np.ndarray,
    batch_size: int,
    block_size: int,
    seed: int,
    step: int,
    micro: int = 0,
    window_stride: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs x and targets y, int64 (B, T) each; y is x one token later.

    (seed, step) draws one sequence of windows, and micro-step m takes windows m * B to
    (m + 1) * B of it. So a step holds the same windows however it is cut into micro-steps or
    shared among processes, and a resumed run needs no state. Windows start at multiples of
    `window_stride`. DataError when the split has no window of T + 1 tokens.
    """
    B, T = batch_size, block_size
    if len(tokens) < T + 1:
        name = Path(getattr(tokens, "filename", None) or "the split").name
        needs = f"block_size {T} needs {T + 1}"
        raise DataError(f"{name} has {len(tokens)} tokens, {needs}: lower it, or prepare more text")
    draw = np.random.default_rng([seed, step])
    # With replacement, and across the borders of documents, as nanoGPT trains.
    places = (len(tokens) - T - 1) // window_stride + 1
    starts = draw.integers(places, size=(micro + 1) * B)[micro * B : (micro + 1) * B]
    starts = window_stride * starts
    windows = tokens[starts[:, None] + np.arange(T + 1)].astype(np.int64)  # (B, T + 1)
    return windows[:, :-1].copy(), windows[:, 1:].copy()


def spans(documents: list[tuple[int, int]], length: int, count: int) -> np.ndarray:
    """Start offsets, int64 (at most `count`,), of held-out windows of `length` + 1 tokens.

    Every window lies inside one document and no two share a token. They are spread evenly over
    all the places there are, so a long document gets its share. The same arguments always give
    the same windows. DataError when no document holds even one.
    """
    window = length + 1  # the target of the last position is one more token
    slots = [np.arange(start, end - window + 1, window) for start, end in documents]
    places = np.concatenate([np.empty(0, np.int64), *slots])
    if not len(places):
        longest = max((end - start for start, end in documents), default=0)
        needs = f"length {length} needs {window}: lower block_size, or hold out longer documents"
        raise DataError(f"the longest document has {longest} tokens, {needs}")
    count = min(count, len(places))
    # The middle of each of `count` equal parts of the places.
    return places[(2 * np.arange(count) + 1) * len(places) // (2 * count)]
