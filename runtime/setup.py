"""From a Config to a Run: machine, data, weights and optimizers in place for the first step."""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
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
from positions import require
from runtime import checkpoint
from runtime.config import Config, with_defaults
from runtime.device import (
    Process,
    check_same_on_all_ranks,
    multiplies_bfloat16,
    pick_device,
    pick_dtype,
)
from runtime.finetuning import config_for_finetuning
from runtime.wandb_mirror import new_id

ALONE = Process(rank=0, world=1, local_rank=0)
RESUMABLE = {"run", "data", "optimizers", "scaler", "iter", "skipped", "run_id"}


@dataclass
class Run:
    """All that a step needs, and how far the run is."""

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
    skipped: int = 0  # how many of the last steps had no effect, because float16 overflowed
    finite: object = True  # whether the last step's gradient was, on a GPU
    row: dict = field(default_factory=dict)  # of step `iter`, while its evaluation is due
    window: int | None = None  # tokens that sample.py shows the model (see checkpoint.read)
    saved: bool = False  # whether there is a checkpoint of this run

    @property
    def evaluation_due(self) -> bool:
        """Whether step `iter` must still be evaluated: a signal may cut an evaluation off."""
        return bool(self.row)

    @property
    def autocast(self) -> AbstractContextManager:
        mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype) if mixed else nullcontext()

    def state(self) -> dict:
        """What a checkpoint holds: the weights, and all that a resumed run goes on from."""
        window = {} if self.window is None else {"window": self.window}
        return {
            **checkpoint.describe(self.model),
            **numerics(self.config, self.device, self.dtype),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "iter": self.iter,
            "skipped": self.skipped,
            "row": self.row,
            "run": asdict(self.config),
            "config_sha256": self.config.sha256,
            "run_id": self.run_id,
            "data": self.data.fingerprint,
            "tokenizer": self.data.meta["tokenizer"],
            **window,
        }

    def restore(self, state: dict) -> None:
        """Take over from a checkpoint all but the weights."""
        if len(state["optimizers"]) != len(self.optimizers):
            raise checkpoint.CheckpointError(
                f"{state['path']} holds the state of an optimizer other than "
                f"{self.config.optimizer}; set optimizer to the one it was trained with"
            )
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            # The moments come from the checkpoint, weight decay and betas from the config.
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict(saved | {"param_groups": groups})
        self.scaler.load_state_dict(state["scaler"])
        self.iter, self.skipped, self.run_id = state["iter"], state["skipped"], state["run_id"]
        self.row = state.get("row", {})  # the first checkpoints of format 1 lack it
        self.window = state.get("window")
        self.saved = True


def setup(config: Config, process: Process = ALONE, make: type[GPT] = GPT) -> Run:
    """Everything in place for the first step: from nothing, from weights, or from a checkpoint.

    `make` is the model's class. ValueError where the config does not fit data, machine or
    checkpoint; nothing is written before this returns, except a corpus that is prepared.
    """
    device, dtype = choose_machine(config, process)
    dataset = open_data(config, process)
    config, state = settle_config(config, dataset)
    check_all_ranks_agree(config, dataset, state)
    model = build_model(config, state, device, make)
    run = Run(
        config=config,
        data=dataset,
        device=device,
        dtype=dtype,
        rank=process.rank,
        world=process.world,
        model=model,
        forward=wrap(model, config, process),
        optimizers=make_optimizers(config, model, device),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        held_out=HeldOut(model, dataset, config.eval_tokens, process.rank, process.world),
        run_id=new_id(config.folder.name),
    )
    if config.resume:
        run.restore(state)
        warn_if_not_bit_exact(run, state)
    return run


# ---- 1. the machine ------------------------------------------------------------------------------


def choose_machine(config: Config, process: Process) -> tuple[torch.device, torch.dtype]:
    split_batch(config, process.world)  # refused before anything is loaded
    device = pick_device(config.device, process.local_rank)
    dtype = pick_dtype(config.dtype, device)
    slow = device.type == "cpu" and dtype != torch.float32 and not multiplies_bfloat16(device)
    if slow and process.rank == 0:
        print(f"this CPU emulates {config.dtype}: float32 is faster here", file=sys.stderr)
    return device, dtype


def split_batch(config: Config, world: int) -> tuple[int, int]:
    """(micro-steps, windows in each) of one process. The step's windows stay the same."""
    steps, size = config.gradient_accumulation_steps, config.batch_size
    if steps % world == 0:
        return steps // world, size
    if steps == 1 and size % world == 0:
        return 1, size // world
    nor = f", nor is batch_size {size}" if steps == 1 else ""
    raise ValueError(
        f"gradient_accumulation_steps {steps} is not divisible by {world} processes{nor}"
    )


def numerics(config: Config, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """What the last digits of a run's numbers depend on, apart from the settings it is known by."""
    return {
        "compile": config.compile,
        "torch": str(torch.__version__),  # a class of its own otherwise
        "threads": torch.get_num_threads(),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }


def warn_if_not_bit_exact(run: Run, state: dict) -> None:
    """Say where the last digits of a resumed run will differ from those of an uninterrupted one."""
    changes = []
    for name, value in numerics(run.config, run.device, run.dtype).items():
        saved = state.get(name, value)  # older checkpoints lack some
        if saved != value:
            changes.append(f"{name} {saved} -> {value}")
    if changes and run.rank == 0:
        print(f"not bit-exact from here on: {', '.join(changes)}", file=sys.stderr)


# ---- 2. data -------------------------------------------------------------------------------------


def data_root(config: Config) -> Path:
    return data.root_of(config.data_dir)


def open_data(config: Config, process: Process) -> data.Dataset:
    """The dataset; a built-in corpus that is missing is prepared first, by one process."""
    root = data_root(config)
    if process.rank == 0 and not data.folder_of(config.dataset, root).exists():
        if config.dataset not in data.prepare.KNOWN:
            raise data.DataError(
                f"dataset {config.dataset!r} is not in {root}; "
                f"{data.command(config.dataset, root)} makes it, and these are made when "
                f"missing: {', '.join(data.prepare.KNOWN)}"
            )
        print(f"preparing {config.dataset} ...", file=sys.stderr)
        data.prepare.prepare(config.dataset, root=root)
    if process.world > 1:
        dist.barrier()
    return data.load(config.dataset, root)


def fit_vocabulary(config: Config, dataset: data.Dataset) -> Config:
    """With the vocabulary of the dataset, unless the config asks for a larger one."""
    if config.vocab_size is None:
        return replace(config, vocab_size=dataset.vocab_size)
    rule = f"at least {dataset.vocab_size}, the vocabulary of {config.dataset}"
    require(config.vocab_size >= dataset.vocab_size, config, "vocab_size", rule)
    return config


def check_windows(config: Config, dataset: data.Dataset) -> None:
    """Refuse a block_size for which the data has no window, or not one of its task's."""
    stride = dataset.window_stride
    if stride not in (1, config.block_size + 1):
        rule = f"{stride - 1}, the length of the windows that {config.dataset} is made of"
        raise ValueError(f"block_size is {config.block_size}; it must be {rule}")
    data.batch(dataset.train, 1, config.block_size, config.seed, 0)


# ---- 3. the config, and the checkpoint to start from ---------------------------------------------


def settle_config(config: Config, dataset: data.Dataset) -> tuple[Config, dict | None]:
    """(the final config, the checkpoint's state); the state is None for a run from nothing."""
    state = None
    if config.resume:
        state = checkpoint.read(config.folder)
        config = config_for_resuming(config, dataset, state)
    config = fit_vocabulary(config, dataset)
    check_windows(config, dataset)
    if config.init_from and not config.resume:
        state = checkpoint.read(config.init_from)
        check_tokenizer(config, dataset, state)
        config = config_for_finetuning(config, state)
    checkpoint.check_factor(config)
    return config, state


def config_for_resuming(config: Config, dataset: data.Dataset, state: dict) -> Config:
    """The config to go on with. Refuses weights alone, a different model, and different data."""
    path = state["path"]
    if not state.keys() >= RESUMABLE:
        raise checkpoint.CheckpointError(
            f"{path} holds weights but no run to resume; start from them with --init_from"
        )
    check_data_unchanged(config, dataset, state)
    check_tokenizer(config, dataset, state)  # an imported model has read no data
    if config.init_from != with_defaults(state["run"])["init_from"]:
        raise ValueError("init_from does nothing beside resume; leave it out")
    saved = asdict(checkpoint.config_of(state))
    changes = []
    for name, value in asdict(config.gpt).items():
        if value is not None and value != saved[name]:
            changes.append(f"{name}: checkpoint {saved[name]}, config {value}")
    if changes:
        raise checkpoint.CheckpointError(
            f"{path} holds a different model ({'; '.join(changes)}); leave these settings out"
        )
    config = replace(config, **saved)
    warn_of_changes(config, state)
    return config


def check_data_unchanged(config: Config, dataset: data.Dataset, state: dict) -> None:
    for split, digest in state["data"].items():
        if dataset.fingerprint[split] != digest:
            file = data_root(config) / config.dataset / f"{split}.bin"
            raise data.DataError(
                f"{file} changed since the checkpoint (its sha256 differs); put the old file "
                "back, or start a new run with --init_from"
            )


def warn_of_changes(config: Config, state: dict) -> None:
    saved = with_defaults(state["run"])
    for name, value in config.determining.items():
        if saved[name] != value:
            print(
                f"{name} was {saved[name]}, is {value}: not the run it would have been",
                file=sys.stderr,
            )


def check_tokenizer(config: Config, dataset: data.Dataset, state: dict) -> None:
    if state["tokenizer"] != dataset.meta["tokenizer"]:
        folder = data_root(config) / config.dataset
        raise data.DataError(
            f"{state['path']} was trained with a different tokenizer than {folder} was prepared "
            "with; prepare the dataset with that tokenizer"
        )


# ---- 4. all processes alike ----------------------------------------------------------------------


def check_all_ranks_agree(config: Config, dataset: data.Dataset, state: dict | None) -> None:
    values = asdict(config)
    values["data_dir"] = None  # machines may keep the same files in different places
    for split, digest in dataset.fingerprint.items():
        values[f"{split}.bin"] = digest
    values["checkpoint"] = state["sha256"] if state else None
    check_same_on_all_ranks(values)


# ---- 5. the model and its optimizers -------------------------------------------------------------


def build_model(
    config: Config, state: dict | None, device: torch.device, make: type[GPT] = GPT
) -> GPT:
    """A model in training mode on the device: with seeded weights, or those of a checkpoint."""
    torch.manual_seed(config.seed)
    model = checkpoint.build(state, config.gpt, make) if state else make(config.gpt)
    largest = config.largest_position
    rule = f"at most {model.max_length}, the positions of pos {config.pos!r}"
    require(largest < model.max_length, config, "position_range", rule)
    return model.to(device).train()


def wrap(model: GPT, config: Config, process: Process) -> nn.Module:
    """The model as a step calls it: compiled, and with gradients averaged over processes."""
    forward = torch.compile(model) if config.compile else model
    return DistributedDataParallel(forward) if process.world > 1 else forward


def encoding_parameters(model: GPT) -> set[int]:
    """The id of each parameter of the layers' own encodings: no weight decay, no Muon."""
    own = [block.attn.position for block in model.h if block.attn.position.per_layer]
    return {id(parameter) for position in own for parameter in position.parameters()}


def optimizer_groups(model: GPT, weight_decay: float, without: Iterable = ()) -> list[dict]:
    """All parameters but some, once: matrices decay; biases, norms and the layers' own encodings
    do not."""
    excluded = {id(parameter) for parameter in without}
    of_encodings = encoding_parameters(model)
    matrices, vectors = [], []
    for parameter in model.parameters():
        if id(parameter) not in excluded:
            decays = parameter.dim() >= 2 and id(parameter) not in of_encodings
            group = matrices if decays else vectors
            group.append(parameter)
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def make_optimizers(
    config: Config, model: GPT, device: torch.device
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; with optimizer=muon, Muon for the matrices of the blocks, at steps
    of AdamW's size (arXiv:2502.16982), and AdamW for the embeddings and norms."""
    matrices = []
    if config.optimizer == "muon":
        of_encodings = encoding_parameters(model)
        inside = [p for p in model.h.parameters() if id(p) not in of_encodings]
        matrices = [p for p in inside if p.dim() == 2]
    adamw = torch.optim.AdamW(
        optimizer_groups(model, config.weight_decay, without=matrices),
        betas=(config.beta1, config.beta2),
        fused=device.type in ("cpu", "cuda"),
    )
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(
        matrices, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw, muon]
