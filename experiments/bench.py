"""How fast, beside others at the same work on the same machine.

    python -m experiments.bench train|sample|rope|eval|all [--nanogpt CLONE] [--text FILE]

Peers take turns with us in one process, A B A B, so that a slow moment of the machine meets both; a
ratio is of two turns of one round, theirs / ours in seconds. Medians, with least and most.

Letters: B batch, T time, H heads, D head_dim.
"""

import contextlib
import json
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

import configs
import data.prepare
import rope
from data.tokenizer import train_bpe
from evaluation.scoring import token_losses
from experiments import baselines
from experiments.timing import Row, Took, cpu, high_water, in_turn, limits, line, rows, spread
from model import GPT, GPTConfig, KVCache
from runtime import errors
from runtime import setup as runs
from runtime.device import commit
from train import train_step

HERE = Path(__file__).parent.parent
CHARACTERS = (string.ascii_letters + string.punctuation)[:64] + " "  # 65, as tinyshakespeare has
LARGE = {"n_layer": 6, "n_head": 6, "n_embd": 192, "block_size": 256, "batch_size": 16}
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12}
COUNT = 1024  # tokens to sample
ROTATED = ((16, 6, 256, 32), (4, 12, 1024, 64))  # (B, H, T, D) of queries and of keys
DEPTHS = (256, 1024, 4096, 16384, 65536, 131072)  # where the cost of a token is looked at
GOAL = 1.91  # nats, validation: where nanoGPT's CPU demo ends after DEMO steps
DEMO = 2000
SEEDS = (1337, 1, 2)


# ---- what to work on


def prepare(root: str, text: str | None) -> None:
    """The dataset `bench` in root: the text, or random characters of an equal number of kinds."""
    path = Path(text) if text else Path(root) / "random.txt"
    if not text:
        draw = np.random.default_rng(0).choice(list(CHARACTERS), 2**20)
        path.write_text("".join(draw))
    with contextlib.redirect_stdout(sys.stderr):
        data.prepare.prepare("bench", [path], root=Path(root))


def begin(root: str, *argv: str, **settings) -> runs.Run:
    """A run that has not taken a step yet."""
    fixed = {"dataset": "bench", "data_dir": root, "wandb": "disabled"}
    flags = [f"--{name}={value}" for name, value in (fixed | settings).items()]
    return runs.setup(configs.load([*argv, *flags]))


def trained_work(run: runs.Run) -> float:
    """Floating point operations of one step: 6 a weight and token, and attention's products."""
    c = run.config
    weights = sum(p.numel() for p in run.model.parameters())
    attention = 12 * c.n_layer * c.n_embd * c.block_size  # a token, as if nothing were masked
    return c.tokens_per_step * (6 * weights + attention)


# ---- training


def train(args, root: str) -> Iterator[Row]:
    best, found = limits(args.rounds)
    yield from found
    for shape in (LARGE, SMALL):
        name = "training step, {n_layer} x {n_head} x {n_embd}, batch {batch_size} x {block_size}"
        ours, plain = begin(root, **shape), begin(root, **shape, dtype="float32")
        steps = {"ours": partial(train_step, ours), "ours, float32": partial(train_step, plain)}
        if args.nanogpt:
            theirs = baselines.nanogpt(args.nanogpt, ours.config)
            steps["nanoGPT"] = baselines.nanogpt_step(theirs, ours.data.train, shape["batch_size"])
        took = in_turn(steps, args.rounds)
        yield from rows(name.format(**shape), took)
        rate = trained_work(ours) / best[str(ours.dtype).removeprefix("torch.")]
        share = spread([100 * rate / seconds for seconds in took["ours"]])
        yield Row("share of the best matrix product", "%", share)
        yield stall(ours, took["ours"])
    yield memory(args, root)
    if args.text and args.nanogpt:
        yield from to_goal(args, root)
    yield from beginnings(root)
    yield from byte_pairs(Path(args.text or HERE / "README.md").read_text())


def stall(run: runs.Run, step: list[float]) -> Row:
    """The share of a step that it waits for its batch."""
    c = run.config
    draw = partial(data.batch, run.data.train, c.batch_size, c.block_size, c.seed)
    took = in_turn({"ours": lambda: draw(run.iter)}, len(step))["ours"]
    shares = [100 * a / b for a, b in zip(took, step, strict=True)]
    return Row("share of a step spent on its batch", "%", spread(shares))


def memory(args, root: str) -> Row:
    """Memory that training adds at its peak, each in a process of its own, megabytes."""
    ours, theirs = float(child("peak", root=root)), ()
    if args.nanogpt:
        theirs = (float(child("peak", "--nanogpt", args.nanogpt, root=root)),)
    ratio = tuple(size / ours for size in theirs)
    work = "peak memory of training, 6 x 6 x 192, batch 16 x 256"
    return Row(work, "MB", (ours,), "nanoGPT" if theirs else "", theirs, ratio)


def child(*argv: str, root: str) -> str:
    command = [sys.executable, "-m", "experiments.bench", *argv, "--root", root]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE).stdout


def peak(args, root: str) -> None:
    before, run = high_water(), begin(root, **LARGE)
    step = partial(train_step, run)
    if args.nanogpt:
        theirs = baselines.nanogpt(args.nanogpt, run.config)
        step = baselines.nanogpt_step(theirs, run.data.train, run.config.batch_size)
    for _ in range(3):
        step()
    print(high_water() - before)


def to_goal(args, root: str) -> list[Row]:
    """Training to GOAL beside nanoGPT's DEMO steps, of which a tenth is run and counts tenfold."""
    took: Took = {"ours": [], "nanoGPT": []}
    for seed in SEEDS:
        run = begin(root, str(HERE / "configs/quick.py"), seed=seed)
        model = baselines.nanogpt(args.nanogpt, run.config)
        step = baselines.nanogpt_step(model, run.data.train, SMALL["batch_size"])
        turns = {"ours": (partial(train_step, run), run.config.max_iters)}
        for name, (work, times) in (turns | {"nanoGPT": (step, DEMO // 10)}).items():
            began = time.perf_counter()
            for _ in range(times):
                work()
            took[name].append(time.perf_counter() - began)
        took["nanoGPT"][-1] *= 10
        with run.autocast:
            loss = run.held_out.losses(run.model)["val/loss"]
        print(f"configs/quick.py, seed {seed}: val/loss {loss:.3f}", file=sys.stderr)
        if loss > GOAL:
            raise ValueError(f"validation loss is {loss:.3f} with seed {seed}; need {GOAL}")
    return rows(f"training to validation loss {GOAL}, 3 seeds", took)


def beginnings(root: str, rounds: int = 3) -> Iterator[Row]:
    """Starting up, beyond importing torch."""
    flags = [f"--data_dir={root}", f"--out_dir={root}/out", "--dataset=bench", "--max_iters=1"]
    flags += ["--overwrite", "--wandb=disabled", "--eval_tokens=1024"]
    commands = {"torch": ["-c", "import torch"], "train.py --help": [HERE / "train.py", "--help"]}
    commands["train.py --max_iters=1, checkpoint and all"] = [HERE / "train.py", *flags]
    start = partial(subprocess.run, capture_output=True, check=True)
    took = in_turn({k: partial(start, [sys.executable, *v]) for k, v in commands.items()}, rounds)
    for name in list(took)[1:]:
        beyond = [a - b for a, b in zip(took[name], took["torch"], strict=True)]
        yield from rows(f"{name}, beyond importing torch", {"ours": beyond})


def byte_pairs(text: str, size: int = 5 * 2**20) -> list[Row]:
    encode, text = train_bpe([text[: 2**20]], 4096).encode, (text * (size // len(text) + 1))[:size]
    return rows("encoding 5 MB of text, bpe", in_turn({"ours": lambda: encode(text)}, 3))


# ---- sampling and evaluation


def sample(args, root: str) -> Iterator[Row]:
    """One token after another, from a model trained at 256; the weights do not matter."""
    config = begin(root, **LARGE).config.gpt
    model, prompt = GPT(config).eval(), torch.zeros(1, 1, dtype=torch.int64)
    turns = {"ours": lambda: list(model.generate(prompt, COUNT))}
    twin = baselines.gpt_neox(model)
    mask = torch.ones_like(prompt)
    generate = partial(twin.generate, prompt, attention_mask=mask, do_sample=True, top_k=0)
    turns["transformers"] = partial(generate, max_new_tokens=COUNT, min_new_tokens=COUNT)
    if args.nanogpt:
        turns["nanoGPT"] = partial(baselines.nanogpt(args.nanogpt, config).generate, prompt, COUNT)
    yield from rows(f"sampling {COUNT:,} tokens, 6 x 6 x 192", in_turn(turns, 3), "tokens/s", COUNT)
    for position in DEPTHS:
        yield from rows(f"a token at position {position:,}", at_depth(position), "tokens/s", 1)


@torch.no_grad()
def at_depth(position: int, rounds: int = 15) -> Took:
    """One token of a small model behind a cache of so many."""
    config = GPTConfig(vocab_size=65, n_layer=2, n_head=4, n_embd=64)
    model, token = GPT(config).eval(), torch.zeros(1, 1, dtype=torch.int64)
    cache = KVCache(position)
    model.hidden(token, cache)
    for store in cache.layers.values():
        for part in store:
            part.normal_()

    def step() -> None:
        cache.length = position - 1
        model.logits(model.hidden(token, cache))

    return in_turn({"ours": step}, rounds)


def evaluate(args, root: str) -> Iterator[Row]:
    """Losses of held-out windows at the trained length, as train.py's evaluations."""
    run = begin(root, **LARGE)
    windows = torch.from_numpy(run.data.val[: 64 * 257].astype(np.int64)).view(64, 257)
    x, y = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def ours() -> None:
        with run.autocast:
            token_losses(run.model, x, y)

    turns = {"ours": ours}
    if args.nanogpt:
        theirs = baselines.nanogpt(args.nanogpt, run.config).eval()
        pieces = list(zip(x.split(16), y.split(16), strict=True))
        turns["nanoGPT"] = torch.no_grad()(lambda: [theirs(*piece) for piece in pieces])
    took = in_turn(turns, args.rounds)
    yield from rows("evaluation, 6 x 6 x 192, 64 x 256", took, "tokens/s", x.numel())


# ---- rotation


def rotation(args, root: str) -> Iterator[Row]:
    """Queries and keys turned, forward and backward, by everyone's own code."""
    for shape in ROTATED:
        cos, sin = rope.rotation_table(torch.arange(shape[2]), rope.frequencies(shape[3])[0])
        for dtype in (torch.float32, torch.bfloat16):
            wide = [torch.cat((part, part), -1).to(dtype) for part in (cos, sin)]
            q, k, g, h = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(4))
            ways = {
                "ours": partial(rope.rotate, cos=cos, sin=sin),
                "LLaMA, complex": partial(baselines.complex_rotation, cis=torch.complex(cos, sin)),
                "halves": partial(baselines.half_split, cos=cos, sin=sin),
                "transformers": partial(baselines.rotate_half, cos=wide[0], sin=wide[1]),
            }
            if shutil.which("g++"):
                ways["halves, compiled"] = torch.compile(ways["halves"])
            turns = {name: partial(both_ways, way, (q, k), (g, h)) for name, way in ways.items()}
            turns["a copy"] = lambda tensors=(q, k, g, h): [t.detach().clone() for t in tensors]
            name = f"rotation, {shape}, {str(dtype).removeprefix('torch.')}"
            yield from rows(name, in_turn(turns, 4 * args.rounds))


def both_ways(way: Callable, inputs: tuple, upstream: tuple) -> None:
    torch.autograd.grad([way(x) for x in inputs], inputs, upstream)


# ---- all of it


def main(argv: list[str]) -> None:
    works = {"train": train, "sample": sample, "rope": rotation, "eval": evaluate}
    parser = errors.Parser(
        prog="python -m experiments.bench", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("what", choices=[*works, "all", "peak"])
    parser.add_argument("--nanogpt", help="a clone of nanoGPT to run beside")
    parser.add_argument("--text", help="tinyshakespeare's input.txt, for the time to a loss")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each")
    parser.add_argument("--root", help="folder of a dataset `bench` that is there already")
    args = parser.parse_args(argv)
    if args.nanogpt:
        baselines.load_nanogpt(args.nanogpt)  # refused now, not after minutes
    if args.what == "peak":
        return peak(args, args.root)
    found = []
    print("| work | unit | ours | peer | theirs | ratio |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        prepare(root, args.text)
        for name in works if args.what == "all" else [args.what]:
            for row in works[name](args, root):
                print(line(row), flush=True)
                found.append(asdict(row))
    if args.what == "all":
        about = {
            "date": time.strftime("%Y-%m-%d"),
            "cpu": cpu(),
            "threads": torch.get_num_threads(),
        }
        about |= {"torch": str(torch.__version__), "commit": commit(), "rows": found}
        (HERE / "results/bench.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main)
