"""Everything in place for the first step: data, folder, weights, optimizer."""

import errno
import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import data
import data.prepare
from evaluation.scoring import HeldOut
from model import GPT
from positions import check_factor
from runtime import checkpoint, errors
from runtime.config import Config
from runtime.device import agree, pick_device, pick_dtype
from runtime.log import note, noted

FIXED = ("pos", "n_head", "kv_heads", "rope_layout", "rope_fraction")  # shapes do not show these


class BusyError(ValueError):
    """Another run holds the folder."""

    exit_code = errors.BUSY


@dataclass
class Run:
    """All that a step needs."""

    config: Config
    data: data.Dataset
    device: torch.device
    dtype: torch.dtype
    rank: int
    world: int
    model: GPT
    forward: nn.Module  # the model, compiled and synchronised
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    held_out: HeldOut
    run_id: str  # readable, since wandb names folders by it
    iter: int = 0  # optimizer steps done
    skipped: int = 0  # the last ones of them that float16 overflow left without effect
    row: dict = field(default_factory=dict)  # of `iter`, where its evaluation is still to come

    @property
    def autocast(self):
        mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype) if mixed else nullcontext()


def split_batch(config: Config, world: int) -> tuple[int, int]:
    """(micro-steps, windows in each) of one process. The step's windows stay the same."""
    steps, size = config.gradient_accumulation_steps, config.batch_size
    if steps % world == 0:
        return steps // world, size
    if steps == 1 and size % world == 0:
        return 1, size // world
    raise ValueError(
        f"gradient_accumulation_steps {steps} is not divisible by {world} processes"
        + (f", nor is batch_size {size}" if steps == 1 else "")
    )


def data_root(config: Config) -> Path:
    return Path(config.data_dir) if config.data_dir else data.DATA


def open_data(config: Config, rank: int, world: int) -> data.Dataset:
    """The dataset; a known corpus that is missing is prepared first, by one process."""
    root = data_root(config)
    if rank == 0 and not data.folder_of(config.dataset, root).exists():
        if config.dataset not in data.prepare.KNOWN:
            known = ", ".join(data.prepare.KNOWN)
            raise data.DataError(f"dataset {config.dataset!r} is not in {root}; `python -m "
                                 f"data.prepare {config.dataset} --input FILE` makes it, and these "
                                 f"are made when missing: {known}")  # fmt: skip
        print(f"preparing {config.dataset} ...", file=sys.stderr)
        data.prepare.prepare(config.dataset, root=root)
    if world > 1:
        dist.barrier()
    return data.load(config.dataset, root)


def fit_vocabulary(config: Config, dataset: data.Dataset) -> Config:
    if config.vocab_size is not None and config.vocab_size < dataset.vocab_size:
        rule = f"at least {dataset.vocab_size}, the vocabulary of {config.dataset}"
        raise ValueError(f"vocab_size is {config.vocab_size}; it must be {rule}")
    return replace(config, vocab_size=config.vocab_size or dataset.vocab_size)


def optimizer_groups(model: nn.Module, weight_decay: float, without: Iterable = ()) -> list[dict]:
    """All parameters but some, once: matrices decay, vectors (biases and norms) do not."""
    others = {id(parameter) for parameter in without}
    kept = [p for p in model.parameters() if id(p) not in others]
    return [
        {"params": [p for p in kept if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in kept if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimizers(
    config: Config, model: GPT, device: torch.device
) -> list[torch.optim.Optimizer]:
    """AdamW; with optimizer=muon it is left the embeddings and norms, and Muon takes the matrices
    of the blocks, at steps of AdamW's size (arXiv:2502.16982)."""
    hidden = [p for p in model.h.parameters() if p.dim() == 2 and config.optimizer == "muon"]
    adamw = torch.optim.AdamW(
        optimizer_groups(model, config.weight_decay, without=hidden),
        betas=(config.beta1, config.beta2),
        fused=device.type in ("cpu", "cuda"),
    )
    settings = {"weight_decay": config.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return [adamw, torch.optim.Muon(hidden, **settings)] if hidden else [adamw]


def carry_over(config: Config, dataset: data.Dataset, state: dict) -> Config:
    """The config of a run that starts from another's weights (init_from).

    What is scaled still counts its frequencies from the length they were first trained at.
    """
    if state["tokenizer"] != dataset.meta["tokenizer"]:
        raise data.DataError(f"{state['path']} was trained with another tokenizer than "
                             f"{data_root(config) / config.dataset} is made with")  # fmt: skip
    source = checkpoint.config_of(state)
    for name in FIXED:
        was, wanted = getattr(source, name), getattr(config, name)
        if was != wanted:
            raise ValueError(f"{name} is {wanted}; {state['path']} was trained with {was}")
    for name in ("rope_scaling", "rope_theta"):
        was, wanted = getattr(source, name), getattr(config, name)
        if was != wanted:
            print(f"{name} {was} of {state['path']} becomes {wanted}", file=sys.stderr)
    scaled = {source.rope_scaling, config.rope_scaling} != {"none"} or source.rope_train_len
    if config.pos == "rope" and config.rope_train_len is None and scaled:
        config = replace(config, rope_train_len=source.train_len)
    return config


def check_resume(config: Config, dataset: data.Dataset, state: dict) -> Config:
    """The config to go on with. Refuses weights alone, another model, and other data."""
    if not state.keys() >= {"run", "data", "optimizers", "scaler", "iter", "skipped", "run_id"}:
        raise checkpoint.CheckpointError(f"{state['path']} holds weights but no run to resume; "
                                         "start from them with --init_from")  # fmt: skip
    asked = {name: value for name, value in asdict(config.gpt).items() if value is not None}
    differs = [f"{name}: checkpoint {state['config'].get(name)}, config {value}"
               for name, value in asked.items() if state["config"].get(name) != value]  # fmt: skip
    if differs:
        raise checkpoint.CheckpointError(f"{state['path']} is another model; {'; '.join(differs)}. "
                                         "Leave these settings out")  # fmt: skip
    for split, digest in state["data"].items():
        if dataset.fingerprint[split] != digest:
            name = data_root(config) / config.dataset / f"{split}.bin"
            raise data.DataError(f"{name} changed since the checkpoint (its sha256 differs); put "
                                 "the old file back, or start anew with --init_from")  # fmt: skip
    config = replace(config, **state["config"])
    for name, value in config.deciding.items():
        if state["run"].get(name) != value:
            print(f"{name} was {state['run'].get(name)}, is {value}: not the run it would have "
                  "been", file=sys.stderr)  # fmt: skip
    return config


def numerics(device: torch.device, dtype: torch.dtype) -> dict[str, str | int]:
    """What the last digits of a run's numbers depend on, beside its settings."""
    return {
        "torch": str(torch.__version__),  # a class of its own otherwise
        "threads": torch.get_num_threads(),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }


def check_numerics(state: dict, device: torch.device, dtype: torch.dtype) -> None:
    """Say so where a resumed run will not be what it would have been, to the last digit."""
    here = numerics(device, dtype).items()
    # The first checkpoints of format 1 lack device and dtype.
    new = [f"{name} {state[name]} -> {now}" for name, now in here if state.get(name, now) != now]
    if new:
        print(f"not bit-exact from here on: {', '.join(new)}", file=sys.stderr)


def check_windows(config: Config, dataset: data.Dataset) -> None:
    """Is there a window at all, and is it one of the task's?"""
    if dataset.every not in (1, config.block_size + 1):
        rule = f"{dataset.every - 1}, the length of the windows that {config.dataset} is made of"
        raise ValueError(f"block_size is {config.block_size}; it must be {rule}")
    data.batch(dataset.train, 1, config.block_size, config.seed, 0)


@contextmanager
def claim_folder(config: Config) -> Iterator[None]:
    """Make the run's folder and hold it; refuse one that holds another run, or is in use."""
    folder = config.folder
    if checkpoint.exists(folder) and not (config.resume or config.overwrite):
        raise ValueError(f"{folder} holds a run already (step {checkpoint.last_good(folder)}): "
                         "--resume continues it, --overwrite starts anew, --name or --out_dir "
                         "leaves it alone")  # fmt: skip
    if config.resume and not checkpoint.exists(folder):
        raise checkpoint.CheckpointError(f"{folder} holds no checkpoint to resume from; "
                                         "leave out --resume to start there")  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "it is not writable")
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OSError(error.errno, f"out_dir cannot be used, {error.strerror}", folder) from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however it ends
        note(folder, pid=os.getpid())
        yield
    except BlockingIOError:
        raise BusyError(f"{folder} is in use by another run (pid {noted(folder).get('pid')}); "
                        "choose another out_dir") from None  # fmt: skip
    finally:
        os.close(held)


def enter_folder(config: Config) -> None:
    """Data, model and windows are there: now an overwritten run may go, and config.json comes."""
    if not config.resume:
        checkpoint.remove(config.folder)
    text = json.dumps(asdict(config), indent=1)
    (config.folder / "config.json").write_text(text + "\n")
    note(config.folder, state="running", exit_code=None, launcher=os.getppid())


def leave_folder(config: Config, code: int) -> None:
    states = {errors.DONE: "done", errors.INTERRUPTED: "stopped", errors.TERMINATED: "stopped"}
    note(config.folder, state=states.get(code, "failed"), exit_code=code)


def restore(run: Run, state: dict) -> None:
    """What a checkpoint holds beside the weights."""
    if len(state.get("optimizers", ())) != len(run.optimizers):
        raise checkpoint.CheckpointError(f"{state['path']} holds the state of another "
                                         f"optimizer than {run.config.optimizer}")  # fmt: skip
    for optimizer, kept in zip(run.optimizers, state["optimizers"], strict=True):
        # The moments of the checkpoint, the settings of the config.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict(kept | {"param_groups": groups})
    run.scaler.load_state_dict(state["scaler"])
    run.iter, run.skipped, run.run_id = state["iter"], state["skipped"], state["run_id"]
    run.row = state.get("row", {})  # the first checkpoints of format 1 lack it


def start(config: Config, rank: int, world: int, local_rank: int, make: type[GPT] = GPT) -> Run:
    """Everything in place for the first step: from nothing, from weights, or from a checkpoint."""
    split_batch(config, world)
    device = pick_device(config.device, local_rank)
    dtype = pick_dtype(config.dtype, device)
    dataset, state = open_data(config, rank, world), None
    config = fit_vocabulary(config, dataset)
    check_windows(config, dataset)
    if config.resume:
        state = checkpoint.read(config.folder)
        config = check_resume(config, dataset, state)
        if rank == 0:
            check_numerics(state, device, dtype)
    elif config.init_from:
        state = checkpoint.read(config.init_from)
        config = carry_over(config, dataset, state)
    check_factor(config)
    same = asdict(config) | {f"{split}.bin": sha for split, sha in dataset.fingerprint.items()}
    agree(same | {"data_dir": None, "checkpoint": state and state["sha256"]})
    torch.manual_seed(config.seed)
    model = checkpoint.build(state, config.gpt, make) if state else make(config.gpt)
    model.to(device).train()
    forward = torch.compile(model) if config.compile else model
    forward = DistributedDataParallel(forward) if world > 1 else forward
    optimizers = make_optimizers(config, model, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    run_id = f"{re.sub(r'[^a-zA-Z0-9._-]', '-', config.folder.name)}-{time.strftime('%m%d-%H%M%S')}"
    machine = device, dtype, rank, world
    held_out = HeldOut(model, dataset, config.eval_tokens)
    run = Run(config, dataset, *machine, model, forward, optimizers, scaler, held_out, run_id)
    if config.resume:
        restore(run, state)
    return run
