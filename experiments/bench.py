"""Speed beside other people's code, at the same work on the same machine.

    python -m experiments.bench train|sample|rope|eval|all [--nanogpt CLONE] [--text FILE]

Works alternate in one process, A B A B, so that a slow moment of the machine affects all of them.
A ratio compares two runs of one round, theirs / ours in seconds. Numbers are medians, with least
and most.

Letters: B batch, T time, H heads, D head_dim.
"""

import contextlib
import json
import multiprocessing
import string
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

import configs
import data.prepare
import rope
from evaluation.scoring import token_losses
from experiments import baselines
from experiments.timing import Row, Times, cpu, interleaved, limits, line, peak_memory, rows, spread
from model import GPT, GPTConfig, KVCache
from runtime import errors, setup
from runtime.device import commit
from train import train_step

ROOT = Path(__file__).parent.parent
CHARACTERS = (string.ascii_letters + string.punctuation)[:64] + " "  # 65, as tinyshakespeare has
LARGE = {"n_layer": 6, "n_head": 6, "n_embd": 192, "block_size": 256, "batch_size": 16}
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12}
COUNT = 1024  # tokens to sample
SAMPLES = 4  # rows of the batch that is sampled at once
ROTATED = ((16, 6, 256, 32), (4, 12, 1024, 64))  # shapes (B, H, T, D) of queries and of keys
DEPTHS = (256, 1024, 4096, 16384, 65536, 131072)  # positions at which the cost of a token is shown
GOAL = 1.91  # validation loss in nats: that of nanoGPT's CPU demo after DEMO steps
DEMO = 2000
SEEDS = (1337, 1, 2)


# ---- data and models


def prepare(folder: str, text: str | None) -> None:
    """The dataset `bench` in a folder: a text, or random characters of as many kinds."""
    path = Path(text) if text else Path(folder) / "random.txt"
    if not text:
        characters = np.random.default_rng(0).choice(list(CHARACTERS), 2**20)
        path.write_text("".join(characters))
    with contextlib.redirect_stdout(sys.stderr):
        data.prepare.prepare("bench", [path], root=Path(folder))


def new_run(folder: str, *argv: str, **settings) -> setup.Run:
    """A run on the dataset `bench` before its first step."""
    settings = {"dataset": "bench", "data_dir": folder, "wandb": "disabled"} | settings
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return setup.setup(configs.load([*argv, *flags]))


def operations(run: setup.Run) -> float:
    """Floating point operations of one step: 6 a weight and token, and attention's products."""
    c = run.config
    weights = sum(p.numel() for p in run.model.parameters())
    attention = 12 * c.n_layer * c.n_embd * c.block_size  # a token, as if nothing were masked
    return c.tokens_per_step * (6 * weights + attention)


# ---- training


def train(args: Namespace, folder: str) -> Iterator[Row]:
    best, table = limits(args.rounds)
    yield from table
    for shape in (LARGE, SMALL):
        yield from step_rows(args, folder, shape, best)
    yield memory(args, folder)
    if args.text and args.nanogpt:
        yield from to_goal(args, folder)


def step_rows(args: Namespace, folder: str, shape: dict, best: dict[str, float]) -> Iterator[Row]:
    """A training step of this shape, and its share of the machine's best matrix product."""
    ours, float32 = new_run(folder, **shape), new_run(folder, **shape, dtype="float32")
    steps = {"ours": partial(train_step, ours), "ours, float32": partial(train_step, float32)}
    if args.nanogpt:
        theirs = baselines.nanogpt(args.nanogpt, ours.config)
        steps["nanoGPT"] = baselines.nanogpt_step(theirs, ours.data.train, shape["batch_size"])
    times = interleaved(steps, args.rounds)
    name = "training step, {n_layer} x {n_head} x {n_embd}, batch {batch_size} x {block_size}"
    yield from rows(name.format(**shape), times)
    at_best = operations(ours) / best[str(ours.dtype).removeprefix("torch.")]  # seconds
    share = spread([100 * at_best / seconds for seconds in times["ours"]])
    yield Row("share of the best matrix product", "%", share)


def memory(args: Namespace, folder: str) -> Row:
    """Memory that training adds at its peak, each in a process of its own, megabytes."""
    work = "peak memory of training, 6 x 6 x 192, batch 16 x 256"
    ours = in_new_process(training_memory, folder)
    if not args.nanogpt:
        return Row(work, "MB", (ours,))
    theirs = in_new_process(training_memory, folder, args.nanogpt)
    return Row(work, "MB", (ours,), "nanoGPT", (theirs,), (theirs / ours,))


def in_new_process(work: Callable, *arguments):
    """What `work` returns in a fresh interpreter."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def training_memory(folder: str, nanogpt: str | None = None) -> float:
    before, run = peak_memory(), new_run(folder, **LARGE)
    step = partial(train_step, run)
    if nanogpt:
        theirs = baselines.nanogpt(nanogpt, run.config)
        step = baselines.nanogpt_step(theirs, run.data.train, run.config.batch_size)
    for _ in range(3):
        step()
    return peak_memory() - before


def to_goal(args: Namespace, folder: str) -> list[Row]:
    """Training to GOAL, beside the DEMO steps of nanoGPT: a tenth of them runs, times ten."""
    times: Times = {"ours": [], "nanoGPT": []}
    for seed in SEEDS:
        run = new_run(folder, str(ROOT / "configs/quick.py"), seed=seed)
        model = baselines.nanogpt(args.nanogpt, run.config)
        step = baselines.nanogpt_step(model, run.data.train, SMALL["batch_size"])
        times["ours"].append(seconds_of(partial(train_step, run), run.config.max_iters))
        times["nanoGPT"].append(10 * seconds_of(step, DEMO // 10))
        with run.autocast:
            loss = run.held_out.losses(run.model)["val/loss"]
        print(f"configs/quick.py, seed {seed}: val/loss {loss:.3f}", file=sys.stderr)
        if loss > GOAL:
            raise ValueError(f"validation loss is {loss:.3f} with seed {seed}; need {GOAL}")
    return rows(f"training to validation loss {GOAL}, 3 seeds", times)


def seconds_of(work: Callable, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - start


# ---- sampling and evaluation


def sample(args: Namespace, folder: str) -> Iterator[Row]:
    """Sampling from a model trained at 256; the values of its weights do not matter."""
    config = new_run(folder, **LARGE).config.gpt
    model, prompt = GPT(config).eval(), torch.zeros(1, 1, dtype=torch.int64)
    works = {"ours": lambda: list(model.generate(prompt, COUNT))}
    mask, limit = torch.ones_like(prompt), {"max_new_tokens": COUNT, "min_new_tokens": COUNT}
    generate = partial(baselines.gpt_neox(model).generate, prompt, attention_mask=mask, **limit)
    works["transformers"] = partial(generate, do_sample=True, top_k=0)
    if args.nanogpt:
        works["nanoGPT"] = partial(baselines.nanogpt(args.nanogpt, config).generate, prompt, COUNT)
    rounds = min(args.rounds, 3)  # seconds each
    times = interleaved(works, rounds)
    yield from rows(f"sampling {COUNT:,} tokens, 6 x 6 x 192", times, "tokens/s", COUNT)
    yield from batch_rows(model, rounds)
    for position in DEPTHS:
        times = interleaved({"ours": token_at(position)}, 15)
        yield from rows(f"a token at position {position:,}", times, "tokens/s", 1)


def batch_rows(model: GPT, rounds: int) -> list[Row]:
    """Several samples as one batch, against the same samples one after another."""
    prompts = torch.zeros(SAMPLES, 1, dtype=torch.int64)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(SAMPLES)]

    def one_batch() -> None:
        list(model.generate(prompts, COUNT, generators=generators()))

    def one_after_another() -> None:
        for generator in generators():
            list(model.generate(prompts[:1], COUNT, generators=[generator]))

    times = interleaved({"ours": one_batch, "ours, one at a time": one_after_another}, rounds)
    work = f"sampling {SAMPLES} x {COUNT:,} tokens as one batch, 6 x 6 x 192"
    return rows(work, times, "tokens/s", SAMPLES * COUNT)


@torch.no_grad()
def token_at(position: int) -> Callable[[], None]:
    """One token of a small model, behind a cache of random keys and values."""
    config = GPTConfig(vocab_size=65, n_layer=2, n_head=4, n_embd=64)
    model, token = GPT(config).eval(), torch.zeros(1, 1, dtype=torch.int64)
    cache = KVCache(position)
    model.hidden(token, cache)
    for keys, values in cache.layers.values():
        keys.normal_()
        values.normal_()

    @torch.no_grad()
    def step() -> None:
        cache.length = position - 1
        model.logits(model.hidden(token, cache))

    return step


def evaluate(args: Namespace, folder: str) -> list[Row]:
    """Losses of held-out windows at the trained length, as train.py evaluates."""
    run = new_run(folder, **LARGE)
    windows = torch.from_numpy(run.data.val[: 64 * 257].astype(np.int64)).view(64, 257)
    x, y = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def ours() -> None:
        with run.autocast:
            token_losses(run.model, x, y)

    works = {"ours": ours}
    if args.nanogpt:
        theirs = baselines.nanogpt(args.nanogpt, run.config).eval()
        batches = list(zip(x.split(16), y.split(16), strict=True))
        works["nanoGPT"] = torch.no_grad()(lambda: [theirs(*batch) for batch in batches])
    times = interleaved(works, args.rounds)
    return rows("evaluation, 6 x 6 x 192, 64 x 256", times, "tokens/s", x.numel())


# ---- rotation


def rotation(args: Namespace, folder: str) -> Iterator[Row]:
    """The rotation of queries and keys, forward and backward, in everyone's own code."""
    for shape in ROTATED:
        cos, sin = rope.rotation_table(torch.arange(shape[2]), rope.frequencies(shape[3])[0])
        for dtype in (torch.float32, torch.bfloat16):
            wide = [torch.cat((part, part), -1).to(dtype) for part in (cos, sin)]
            rotations = {
                "ours": partial(rope.rotate, cos=cos, sin=sin),
                "LLaMA, complex": partial(baselines.complex_rotation, cis=torch.complex(cos, sin)),
                "transformers": partial(baselines.rotate_half, cos=wide[0], sin=wide[1]),
            }
            q, k, dq, dk = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(4))
            works = {}
            for name, rotate in rotations.items():
                works[name] = partial(forward_backward, rotate, (q, k), (dq, dk))
            work = f"rotation, {shape}, {str(dtype).removeprefix('torch.')}"
            yield from rows(work, interleaved(works, 4 * args.rounds))


def forward_backward(rotate: Callable, inputs: tuple, upstream: tuple) -> None:
    torch.autograd.grad([rotate(x) for x in inputs], inputs, upstream)


# ---- the command


def parse(argv: list[str], parts: list[str]) -> Namespace:
    description = __doc__.partition("\n")[0]
    parser = errors.Parser(prog="python -m experiments.bench", description=description)
    parser.add_argument("part", choices=[*parts, "all"])
    parser.add_argument("--nanogpt", help="a clone of nanoGPT, to compare with")
    parser.add_argument("--text", help="tinyshakespeare's input.txt, for the time to a loss")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each (default: 9)")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        raise ValueError(f"rounds is {args.rounds}; it must be at least 1")
    if args.nanogpt:
        baselines.load_nanogpt(args.nanogpt)  # refused now, not after minutes
    return args


def main(argv: list[str]) -> None:
    parts = {"train": train, "sample": sample, "rope": rotation, "eval": evaluate}
    args, table = parse(argv, list(parts)), []
    print("| work | unit | ours | peer | theirs | ratio |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder, args.text)
        for name in parts if args.part == "all" else [args.part]:
            for row in parts[name](args, folder):
                print(line(row), flush=True)
                table.append(asdict(row))
    if args.part == "all":
        write(table)


def write(table: list[dict]) -> None:
    """results/bench.json: the rows, and the machine they belong to."""
    results = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "commit": commit(),
        "rows": table,
    }
    (ROOT / "results/bench.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main)
