"""A folder as transformers saves a model: config.json, safetensors, tokenizer.json."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import DataError, tokenizer
from runtime.checkpoint import CheckpointError
from runtime.hub.settings import Settings, Source

MAX_JSON = {"config.json": 2**20, "tokenizer.json": 2**26}  # bytes; more is a mistake, or a trap
MAX_OTHER = 2**24
FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


def package(name: str) -> Any:
    """A package of requirements-models.txt. ValueError where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        instead = "pip install -r requirements-models.txt"
        raise ValueError(f"importing this model needs the package `{name}`: {instead}") from None


def read_folder(folder: Path) -> Source:
    """CheckpointError or DataError names the file that is missing or damaged."""
    config = read_json(folder / "config.json")
    files = Shards(folder)
    source = Source(str(folder), config, files.shapes, files.read)
    source.tokenizer = tokenizer_of(folder, config)
    return source


def read_json(path: Path) -> Settings:
    """A dictionary in a file of a sane size."""
    try:
        size, most = path.stat().st_size, MAX_JSON.get(path.name, MAX_OTHER)
        if size > most:
            raise CheckpointError(f"{path} has {size:,} bytes; more than {most:,} are not read")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it does not hold keys and values")
    return content


class Shards:
    """The weights of a folder: one file, or several with an index. Opened, but not read."""

    def __init__(self, folder: Path):
        self.files: dict[str, Any] = {}  # the open file that each weight is in
        self.shapes: dict[str, tuple[int, ...]] = {}
        index = self._index(folder)
        for name in sorted(set(index.values())) or [WHOLE]:
            self._open(folder / name)
        wrong = {n for n, file in index.items() if self.files.get(n, (None, None))[0] != file}
        if wrong or (index and index.keys() != self.files.keys()):
            name = min(wrong or self.files.keys() - index.keys())
            raise CheckpointError(f"{folder / INDEX} is wrong about the place of {name[:60]}")

    def _index(self, folder: Path) -> dict[str, str]:
        if (folder / WHOLE).is_file() or not (folder / INDEX).is_file():
            return {}
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise CheckpointError(f"{folder / INDEX} is damaged: it has no weight_map")
        files = {str(file) for file in index.values()}
        # A name must not lead out of the folder.
        plain = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors").fullmatch
        if foreign := [file for file in files if not plain(file)]:
            raise CheckpointError(f"{folder / INDEX} names a file {min(foreign)[:60]!r}")
        return {name: str(file) for name, file in index.items()}

    def _open(self, path: Path) -> None:
        safetensors = package("safetensors")
        if not path.is_file():
            pickles = sorted(p.name for p in path.parent.glob("*.bin"))
            instead = f"; {pickles[0]} could run code, so it is not read" if pickles else ""
            raise CheckpointError(f"{path} does not exist{instead}")
        try:
            file = safetensors.safe_open(path, framework="pt")
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())[:100]
            raise CheckpointError(f"{path} is damaged or cut short: {reason}") from None
        for name in shapes:
            self.files[name] = path.name, file
        self.shapes |= shapes

    def read(self, name: str) -> Tensor:
        file, opened = self.files[name]
        weight = opened.get_tensor(name)
        if weight.dtype not in FLOATS:
            kind = str(weight.dtype).removeprefix("torch.")
            raise CheckpointError(f"{file}: {name} is {kind}; quantized weights are not read")
        return weight.float()


def tokenizer_of(folder: Path, config: Settings) -> Settings:
    """The tokenizer as Tokenizer.to_meta describes it. DataError where there is none to use."""
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file():
        instead = "save it with transformers' AutoTokenizer, which writes one"
        raise DataError(f"{path} does not exist; {instead}")
    described = read_json(path)
    end = (read_json(settings) if settings.is_file() else {}).get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    text = json.dumps(described, ensure_ascii=False)
    try:
        return tokenizer.from_json(text, end if isinstance(end, str) else None).to_meta()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
