"""Train a GPT: `python train.py configs/rope.py`, or under torchrun on many processes.

A step is a pure function of (config, weights, optimizer, step number): batches and dropout are
drawn from (seed, step, micro-step), so that resuming is exact, and so is sharing the micro-steps
among processes.

Letters: B batch, T block_size.
"""

import math
import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import chain

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import configs
import data
from configs import Config
from model import GPT
from runtime import checkpoint, errors
from runtime.config import describe
from runtime.device import Stop, place, processes
from runtime.log import Log, note, noted
from runtime.setup import (
    Run,
    claim_folder,
    enter_folder,
    leave_folder,
    numerics,
    split_batch,
    start,
)

USAGE = """python train.py [CONFIG.py] [--key=value | --key value | --switch ...]

Trains a GPT and leaves ckpt.pt, config.json and metrics.jsonl in out/<name>.
A config file holds `key = value` lines; flags go over it.
--debug shows the traceback of an error. On two processes:
  torchrun --standalone --nproc_per_node=2 train.py CONFIG.py"""

MAX_SKIPPED = 50  # steps in a row that float16 may overflow
UNTOUCHED = "the last checkpoint is untouched. Lower learning_rate"


class TooLargeError(ValueError):
    """A step does not fit into memory."""

    exit_code = errors.RESOURCES


class DivergedError(ValueError):
    """The loss or its gradient is not finite."""

    exit_code = errors.DIVERGED


def learning_rate(config: Config, step: int) -> float:
    """Linear warmup, then a cosine to min_lr: a function of the step alone."""
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    end = config.lr_decay_iters or config.max_iters
    share = min(1.0, (step - config.warmup_iters) / max(1, end - config.warmup_iters))
    wave = 0.5 * (1 + math.cos(math.pi * share))
    return config.min_lr + wave * (config.learning_rate - config.min_lr)


def train_step(run: Run) -> tuple[Tensor, Tensor]:
    """One optimizer step. Returns this process's mean loss and the gradient's norm."""
    config = run.config
    for group in chain.from_iterable(o.param_groups for o in run.optimizers):
        group["lr"] = learning_rate(config, run.iter)
    steps, size = split_batch(config, run.world)
    total = torch.zeros((), device=run.device)
    for i in range(steps):
        micro = run.rank * steps + i
        where = config.block_size, config.seed, run.iter, micro, run.data.every
        x, y = data.batch(run.data.train, size, *where)
        x, y = (place(ids, run.device) for ids in (x, run.data.targets(y)))
        torch.manual_seed(dropout_seed(config.seed, run.iter, micro))
        waits = i < steps - 1 and run.world > 1
        with run.forward.no_sync() if waits else nullcontext():
            with run.autocast:
                loss = run.forward(x, y) / steps
            run.scaler.scale(loss).backward()
        total += loss.detach()
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), config.grad_clip or math.inf)
    check_finite(run, total, norm)
    for optimizer in run.optimizers:
        if not run.skipped:  # all of them or none
            run.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    run.scaler.update()
    run.iter += 1
    return total, norm


def dropout_seed(seed: int, step: int, micro: int) -> int:
    return int(np.random.SeedSequence([seed, step, micro]).generate_state(1)[0])


def check_finite(run: Run, loss: Tensor, norm: Tensor) -> None:
    """Stop before a step that would spoil the weights; float16 may skip a few."""
    finite = bool(norm.isfinite())  # of the whole step, so that all processes agree
    run.skipped = 0 if finite else run.skipped + 1
    if finite or (run.scaler.is_enabled() and run.skipped <= MAX_SKIPPED):
        return
    lr = learning_rate(run.config, run.iter)
    values = f"loss {loss:.3g}, grad norm {norm:.3g}, lr {lr:.3g}"
    raise DivergedError(f"non-finite loss at step {run.iter} ({values}); {UNTOUCHED}")


def save(run: Run, asked: int) -> None:
    """Write a checkpoint. Where that fails, SaveError only when the run ends with it."""
    for name, weight in run.model.named_parameters():
        if not weight.isfinite().all():
            raise DivergedError(f"{name} is not finite at step {run.iter}; {UNTOUCHED}")
    state = checkpoint.describe(run.model) | numerics(run.device, run.dtype)
    state |= {
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "scaler": run.scaler.state_dict(),
        "iter": run.iter,
        "skipped": run.skipped,
        "row": run.row,
        "run": asdict(run.config),
        "config_sha256": run.config.sha256,
        "run_id": run.run_id,
        "data": run.data.fingerprint,
        "tokenizer": run.data.meta["tokenizer"],
    }
    try:
        checkpoint.save(run.config.folder, state)
        note(run.config.folder, iter=run.iter)
    except checkpoint.SaveError as error:
        if asked or run.iter == run.config.max_iters:
            raise
        print(f"{error}; going on, and trying again at the next checkpoint", file=sys.stderr)


def loop(run: Run, log: Log | None, stop: Stop) -> int:
    """Steps, rows and checkpoints until max_iters or a signal. Returns the exit code."""
    config, losses = run.config, []
    asked = conclude(run, log, stop) if run.row else 0
    began = time.monotonic()
    while run.iter < config.max_iters and not asked:
        loss, norm = train_step(run)
        losses.append(loss)
        asked = stop.asked(run.device)
        due = run.iter % config.eval_interval == 0 or run.iter == config.max_iters
        if not (due or asked or run.iter % config.log_interval == 0):
            if log is not None:
                log.status(run.iter)
            continue
        row = measure(run, losses, norm, time.monotonic() - began)
        if due:
            run.row = row
            asked = conclude(run, log, stop)
        elif log is not None:
            log.row(row)
            if asked:
                save(run, asked)
        losses, began = [], time.monotonic()
    return Stop.EXIT.get(asked, errors.DONE)


def conclude(run: Run, log: Log | None, stop: Stop) -> int:
    """Evaluate, write the row and save. Returns the signal that came before the end, or 0.

    It breaks the evaluation off; the row then waits in the checkpoint for the resumed run.
    """
    found = {}
    if log is not None:
        with run.autocast:
            found = run.held_out.losses(run.model, lambda: stop.signal)
        if not math.isfinite(found.get("val/loss", 0.0)):
            raise DivergedError(f"non-finite val/loss at step {run.iter}; {UNTOUCHED}")
    asked = stop.asked(run.device)  # the others have waited here for the first
    row, run.row = run.row | found, run.row if asked else {}
    if log is not None:
        if not asked:
            log.row(row)
        save(run, asked)
    return asked


def measure(run: Run, losses: list[Tensor], norm: Tensor, seconds: float) -> dict:
    """The row of the steps since the last one; the loss is their mean over all processes."""
    loss = torch.stack(losses).mean()
    if run.world > 1:
        dist.all_reduce(loss, dist.ReduceOp.SUM)
        loss /= run.world
    return {
        "iter": run.iter,
        "train/loss": loss.item(),
        "lr": learning_rate(run.config, run.iter - 1),
        "grad_norm": norm.item(),
        "tokens_per_s": run.config.tokens_per_step * len(losses) / seconds,
        "ms_per_step": 1000 * seconds / len(losses),
    }


def main(argv: list[str], make: type[GPT] = GPT) -> int:
    """Train as the command line says; `make` is the model, where it is another than GPT."""
    if "--help" in argv or "-h" in argv:
        print(describe(USAGE))
        return errors.DONE
    config = configs.load(argv)
    with processes() as (rank, world, local_rank):
        config = restarted(config)
        with claim_folder(config) if rank == 0 else nullcontext():
            return train(start(config, rank, world, local_rank, make))


def restarted(config: Config) -> Config:
    """The config to go on with where torchrun has started the processes of a job anew: the run
    that the job itself began is resumed, any other is not touched."""
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    began = noted(config.folder).get("launcher") == os.getppid()
    ours = [again and began and checkpoint.exists(config.folder)]
    if dist.is_initialized():
        dist.broadcast_object_list(ours)  # as the first process sees it
    return replace(config, resume=True, overwrite=False) if ours[0] else config


def train(run: Run) -> int:
    """Everything from the first step to the last line. Returns the exit code."""
    if run.iter >= run.config.max_iters and not run.row:
        raise ValueError(f"{run.config.folder} is at step {run.iter} already; raise max_iters")
    stop, log = Stop(), None
    if run.rank == 0:
        enter_folder(run.config)
        print(introduce(run), file=sys.stderr)
        log = Log(run.config.folder, asdict(run.config), run.iter - bool(run.row), run.run_id)
    try:
        code = loop(run, log, stop)
    except BaseException as error:
        code = errors.exit_code(error)
        if not errors.out_of_memory(error):
            raise
        raise TooLargeError(f"out of memory at batch_size {run.config.batch_size} x block_size "
                            f"{run.config.block_size}; lower batch_size and raise "
                            "gradient_accumulation_steps") from error  # fmt: skip
    finally:
        if log is not None:
            log.close(code)
            leave_folder(run.config, code)
        stop.release()
    if run.rank == 0:
        print(farewell(run, code), file=sys.stderr)
    return code


def introduce(run: Run) -> str:
    weights = sum(p.numel() for p in run.model.parameters())
    threads = torch.get_num_threads() if run.device.type == "cpu" else ""
    return (
        f"{run.config.folder}: pos {run.config.pos}, {weights / 1e6:.2f} M parameters, "
        f"{run.config.tokens_per_step} tokens a step, {run.world} x {run.device} "
        f"{f'({threads} threads) ' if threads else ''}{str(run.dtype).removeprefix('torch.')}"
    )


def farewell(run: Run, code: int) -> str:
    folder, done = run.config.folder, f"step {run.iter} of {run.config.max_iters}"
    if code == errors.DONE:
        length = "4x" if run.model.max_length == math.inf else "1x"
        return f"saved {folder} at {done}; python sample.py --out_dir {folder} --max_len {length}"
    name = signal.Signals(code - 128).name
    return f"stopped by {name} at {done}, saved {folder}; add --resume to go on"


if __name__ == "__main__":
    errors.end(main)
