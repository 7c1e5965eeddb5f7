"""Train a GPT: `python train.py configs/rope.py`, or under torchrun on many processes.

A step is a pure function of (config, weights, optimizer state, step number): windows, their
positions and dropout are drawn from (seed, step, micro-step). So a resumed run equals an
uninterrupted one bit for bit, and processes can share the micro-steps of a step.

Letters: B batch, T block_size.
"""

if __name__ == "__main__":
    import runtime.start  # noqa: F401 - before torch

import math
import shlex
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import configs
import data
from configs import Config
from data.training_positions import draw_positions
from model import GPT
from runtime import checkpoint, errors, folder
from runtime.device import Later, Stop, processes, threads_in_use, to_device
from runtime.errors import DivergedError, TooLargeError
from runtime.folder import claim_folder, enter_folder, leave_folder, resume_if_restarted
from runtime.help import describe
from runtime.log import Log, NoLog
from runtime.setup import Run, setup, split_batch

USAGE = """python train.py [CONFIG.py ...] [--key=value | --key value | --switch ...]

Trains a GPT and leaves ckpt.pt, config.json and metrics.jsonl in out/<name>.
A config file holds `key = value` lines; a later file goes over an earlier one, flags over files.
--debug shows the traceback of an error. On two processes:
  torchrun --standalone --nproc_per_node=2 train.py CONFIG.py"""

MAX_SKIPPED = 50  # steps in a row that float16 may overflow


def main(argv: list[str], make: type[GPT] = GPT) -> int:
    """Train as the command line says. `make` is the model's class. Returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(describe(USAGE))
        return errors.DONE
    config = configs.load(argv)
    with processes() as process:
        config = resume_if_restarted(config)
        # One process locks the folder and writes to it; all train and evaluate.
        with claim_folder(config) if process.rank == 0 else nullcontext():
            return train(setup(config, process, make))


def train(run: Run) -> int:
    """All steps of a run, between its first line and its last. Returns the exit code."""
    if run.iter >= run.config.max_iters and not run.evaluation_due:
        raise ValueError(f"{run.config.folder} is at step {run.iter} already; raise max_iters")
    stop, log = Stop(), NoLog()
    try:
        log = start_log(run)
        stop_signal = loop(run, log, stop)
        code = errors.DONE if stop_signal is None else 128 + stop_signal
    except BaseException as error:
        code = errors.exit_code(error)
        if errors.out_of_memory(error):
            raise too_large(run.config) from error
        raise
    finally:
        # However the run ends, its rows are on disk and status.json says how it ended.
        log.close(code)
        if run.rank == 0:
            leave_folder(run.config, code)
        stop.release()
    if run.rank == 0:
        print(end_line(run, stop_signal), file=sys.stderr)
    return code


def start_log(run: Run) -> Log | NoLog:
    """Enter the run's folder and open its log; processes other than the first do neither."""
    if run.rank > 0:
        return NoLog()
    enter_folder(run.config)
    print(start_line(run), file=sys.stderr)
    # Rows of later steps are dropped: a run that was killed wrote them after its last checkpoint.
    # The row of a step whose evaluation is due has not been written yet.
    last_row = run.iter - 1 if run.evaluation_due else run.iter
    return Log(run.config, last_row, run.run_id)


def loop(run: Run, log: Log | NoLog, stop: Stop) -> signal.Signals | None:
    """Steps, rows and checkpoints until max_iters or a signal, which is returned."""
    config, losses, stop_signal = run.config, [], None
    if run.evaluation_due:
        # A signal ended the run within this evaluation, and the checkpoint holds the step's row
        # without it. Evaluated now, rows and weights are those of a run that was never stopped.
        stop_signal = evaluate_and_save(run, log, stop)
    since = time.monotonic()
    while run.iter < config.max_iters and stop_signal is None:
        loss, norm = train_step(run)
        losses.append(loss)
        # Asked after every step, of all processes: they must all stop after the same one.
        stop_signal = stop.on_any_process(run.device)
        evaluates = run.iter % config.eval_interval == 0 or run.iter == config.max_iters
        if not (evaluates or stop_signal or run.iter % config.log_interval == 0):
            # Losses are averaged where a row is due.
            log.status(run.iter)
            continue
        row = training_row(run, losses, norm, time.monotonic() - since)
        if evaluates:
            run.row = row  # from here on the evaluation is due
            stop_signal = evaluate_and_save(run, log, stop)
        else:
            log.row(row)
            if stop_signal:
                save(run, ends=True)
        # The clock starts after evaluation and save, so that a row has the speed of steps alone.
        losses, since = [], time.monotonic()
    return stop_signal


def train_step(run: Run) -> tuple[Tensor, Tensor]:
    """One optimizer step. Returns this process's mean loss and the gradient's norm."""
    set_learning_rate(run)
    steps, size = split_batch(run.config, run.world)
    total = torch.zeros((), device=run.device)
    for i in range(steps):
        # Micro-steps are numbered over all processes, so that each draws its own windows.
        micro = run.rank * steps + i
        # Gradients add up over micro-steps; processes exchange them once, in the last one.
        with exchange(run, now=i == steps - 1):
            loss = micro_step_loss(run, micro, size) / steps
            run.scaler.scale(loss).backward()
        total += loss.detach()
    norm = clip_gradients(run)
    check_finite(run, total, norm)
    apply_gradients(run)
    run.iter += 1
    return total, norm


def set_learning_rate(run: Run) -> None:
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.config, run.iter)


def learning_rate(config: Config, step: int) -> float:
    """Linear warmup, then a cosine to min_lr: a function of the step alone."""
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    end = config.lr_decay_iters or config.max_iters
    progress = min(1.0, (step - config.warmup_iters) / max(1, end - config.warmup_iters))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))  # from 1 to 0
    return config.min_lr + cosine * (config.learning_rate - config.min_lr)


def exchange(run: Run, now: bool) -> AbstractContextManager:
    """Average gradients over the processes in this backward pass, or (`now` False) not yet."""
    return nullcontext() if now or run.world == 1 else run.forward.no_sync()


def micro_step_loss(run: Run, micro: int, size: int) -> Tensor:
    """The loss of a micro-step of `size` windows."""
    T, seed = run.config.block_size, run.config.seed
    x, y = data.batch(run.data.train, size, T, seed, run.iter, micro, run.data.window_stride)
    x = to_device(x, run.device)  # (B, T)
    y = to_device(run.data.mask_targets(y), run.device)  # (B, T), -1 where the loss skips it
    positions = training_positions(run, micro, size)
    # Dropout is a function of the micro-step too: nothing of the generator need be saved.
    torch.manual_seed(dropout_seed(seed, run.iter, micro))
    with run.autocast:
        return run.forward(x, y) if positions is None else run.forward(x, y, positions)


def training_positions(run: Run, micro: int, size: int) -> Tensor | None:
    """Positions (B, T) of the windows of a micro-step; None: 0 to T - 1 in each."""
    config = run.config
    if config.train_positions == "sequential":
        return None
    # Where processes share one micro-step, all of its positions are drawn, and this process takes
    # those of its own windows.
    whole, first = divmod(micro * size, config.batch_size)
    positions = draw_positions(
        config.train_positions,
        config.batch_size,
        config.block_size,
        config.largest_position + 1,
        config.seed,
        run.iter,
        whole,
    )
    if positions is None:
        return None
    return to_device(positions[first : first + size], run.device)


def dropout_seed(seed: int, step: int, micro: int) -> int:
    return int(np.random.SeedSequence([seed, step, micro]).generate_state(1)[0])


def clip_gradients(run: Run) -> Tensor:
    """Scale the whole gradient down to grad_clip, and return its norm before that."""
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    return nn.utils.clip_grad_norm_(run.model.parameters(), run.config.grad_clip or math.inf)


def check_finite(run: Run, loss: Tensor, norm: Tensor) -> None:
    """Stop before a step that would spoil the weights; float16 may skip a few."""
    # The norm is that of the whole step, so that all processes decide alike.
    finite = norm.isfinite()
    if norm.is_cuda and not run.scaler.is_enabled():
        # Read one step later, so that the GPU need not wait for the CPU. What such a step spoils
        # is never saved: `save` looks at the weights themselves.
        run.finite, finite = Later(finite), run.finite
    finite = bool(finite)
    run.skipped = 0 if finite else run.skipped + 1
    if finite or (run.scaler.is_enabled() and run.skipped <= MAX_SKIPPED):
        return
    lr = learning_rate(run.config, run.iter)
    values = f"loss {loss:.3g}, grad norm {norm:.3g}, lr {lr:.3g}"
    raise diverged(run, f"non-finite loss at step {run.iter} ({values})")


def diverged(run: Run, what: str) -> DivergedError:
    kept = "the last checkpoint is untouched" if run.saved else "nothing was saved yet"
    return DivergedError(f"{what}; {kept}. Lower learning_rate")


def apply_gradients(run: Run) -> None:
    for optimizer in run.optimizers:
        # The scaler looks at each optimizer's gradients alone; after an overflow in one of them
        # none may step.
        if not run.skipped:
            run.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    run.model.clamp_encodings()
    run.scaler.update()


def training_row(run: Run, losses: list[Tensor], norm: Tensor, seconds: float) -> dict:
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


def evaluate_and_save(run: Run, log: Log | NoLog, stop: Stop) -> signal.Signals | None:
    """Complete the row of this step, write it and save. Returns the signal that cut in, if any.

    Then the evaluation stays due: its row goes into the checkpoint instead of the log.
    """
    held_out = held_out_losses(run, stop)
    stop_signal = stop.on_any_process(run.device)
    if stop_signal is None:
        row, run.row = run.row | held_out, {}
        log.row(row)
    # After the row: a run killed between the two drops the row and writes it again.
    save(run, ends=stop_signal is not None or run.iter == run.config.max_iters)
    return stop_signal


def held_out_losses(run: Run, stop: Stop) -> dict[str, float]:
    """{"val/loss": ..., "val/loss_2x": ..., ...}, or {} where a signal cuts the evaluation off."""
    # Processes share the evaluation, and all leave it before the same batch.
    with run.autocast:
        losses = run.held_out.losses(run.model, lambda: stop.on_any_process(run.device))
    if not math.isfinite(losses.get("val/loss", 0.0)):
        raise diverged(run, f"non-finite val/loss at step {run.iter}")
    return losses


def save(run: Run, ends: bool) -> None:
    """Write a checkpoint. A full disk ends the run only where the run `ends` with this save."""
    if run.rank > 0:
        return
    # A checkpoint that cannot be used must not take the place of a good one.
    for name, weight in run.model.named_parameters():
        if not weight.isfinite().all():
            raise diverged(run, f"{name} is not finite at step {run.iter}")
    try:
        folder.save(run.config, run.state(), first=not run.saved)
        run.saved = True
    except checkpoint.SaveError as error:
        if ends:
            raise
        print(f"{error}; training continues and saves again later", file=sys.stderr)


def too_large(config: Config) -> TooLargeError:
    sizes = f"batch_size {config.batch_size} x block_size {config.block_size}"
    return TooLargeError(
        f"out of memory at {sizes}; lower batch_size and raise gradient_accumulation_steps"
    )


def start_line(run: Run) -> str:
    weights = sum(parameter.numel() for parameter in run.model.parameters())
    threads = f" ({threads_in_use()})" if run.device.type == "cpu" else ""
    return (
        f"{run.config.folder}: pos {run.config.pos}, {weights / 1e6:.2f} M parameters, "
        f"{run.config.tokens_per_step} tokens a step, {run.world} x {run.device}{threads} "
        f"{str(run.dtype).removeprefix('torch.')}"
    )


def end_line(run: Run, stop_signal: signal.Signals | None) -> str:
    folder, done = run.config.folder, f"step {run.iter} of {run.config.max_iters}"
    where = f"--out_dir {shlex.quote(str(folder))}"
    if stop_signal is not None:
        stopped = f"stopped by {stop_signal.name} at {done}, saved {folder}"
        return f"{stopped}; python train.py --resume {where} continues it"
    longest = "4x" if run.model.max_length == math.inf else "1x"
    return f"saved {folder} at {done}; python sample.py {where} --max_len {longest}"


if __name__ == "__main__":
    errors.run(main)
