"""Speed on a GPU beside nanoGPT and transformers, at GPT-2's size (124 M parameters).

    python -m experiments.bench_gpu --nanogpt CLONE [--rounds N]

As bench.py: works alternate in one process, ratios compare two runs of one round, numbers are
medians with least and most. MFU is the share of the GPU's own best matrix product in bfloat16.
"""

import contextlib
import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from experiments import baselines, bench
from experiments.timing import Row, interleaved, line, rows, spread
from model import GPT
from runtime import errors
from runtime.device import commit
from train import train_step

ROOT = Path(__file__).parent.parent
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "batch_size": 12}
COMMON = GPT2 | {"vocab_size": 50304, "device": "cuda", "dtype": "bfloat16"}
STEPS = 10  # in one measurement
COUNT = 256  # tokens to sample
HYBRID = {"layers": "LLLG", "window": 256, "global_pos": "none"}
EAGER = {"rope": {}, "alibi": {"pos": "alibi"}, "nope": {"pos": "none"}, "hybrid": HYBRID}


def waiting(work: Callable[[], object]) -> Callable[[], None]:
    """A work that ends when the GPU has done it."""

    def done() -> None:
        work()
        torch.cuda.synchronize()

    return done


def best_product(rounds: int) -> tuple[float, Row]:
    """The GPU's best matrix product in bfloat16: operations a second."""
    n = 8192
    a, b = torch.randn(2, n, n, device="cuda").bfloat16()
    times = interleaved({"ours": waiting(partial(torch.mm, a, b))}, 4 * rounds)
    (row,) = rows("limit: bfloat16 matrix product", times, "TFLOP/s", 2 * n**3 / 1e12)
    return 1e12 * row.ours[2], row


def many(step: Callable[[], object]) -> Callable[[], None]:
    return waiting(lambda: [step() for _ in range(STEPS)])


def nanogpt_steps(args: Namespace, config, tokens, compiled: bool) -> Callable[[], None]:
    """nanoGPT's training step on a GPU: bfloat16, fused AdamW, pinned batches of slices."""
    model = baselines.nanogpt(args.nanogpt, config).cuda()
    forward = torch.compile(model) if compiled else model
    return many(baselines.nanogpt_step(model, tokens, GPT2["batch_size"], forward))


def training(args: Namespace, folder: str) -> Iterator[Row]:
    """Steps of GPT-2's size: compiled beside nanoGPT compiled, and each encoding as it is."""
    best, row = best_product(args.rounds)
    yield row
    tokens = STEPS * GPT2["batch_size"] * GPT2["block_size"]
    for compiled in (True, False):
        how = "compiled" if compiled else "not compiled"
        name = f"training, 12 x 12 x 768, batch 12 x 1,024, {how}"
        run = bench.new_run(folder, **COMMON, compile=compiled)
        works = {"ours": many(partial(train_step, run))}
        if args.nanogpt:
            works["nanoGPT"] = nanogpt_steps(args, run.config, run.data.train, compiled)
        times = interleaved(works, args.rounds)
        yield from rows(name, times, "tokens/s", tokens)
        at_best = STEPS * bench.operations(run) / best
        yield Row(f"MFU, {how}", "%", spread([100 * at_best / s for s in times["ours"]]))
        del run, works
        torch.cuda.empty_cache()
    for encoding, settings in EAGER.items():
        run = bench.new_run(folder, **COMMON, **settings)
        times = interleaved({"ours": many(partial(train_step, run))}, args.rounds)
        yield from rows(f"training, {encoding}, not compiled", times, "tokens/s", tokens)
        del run
        torch.cuda.empty_cache()


def memory(args: Namespace, folder: str) -> Row:
    """The most memory that tensors take in three steps, compiled, megabytes."""
    config = bench.new_run(folder, **COMMON)
    peaks = {}
    for name in ("ours", "nanoGPT") if args.nanogpt else ("ours",):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        if name == "ours":
            run = bench.new_run(folder, **COMMON, compile=True)
            steps = many(partial(train_step, run))
        else:
            del run
            steps = nanogpt_steps(args, config.config, config.data.train, compiled=True)
        steps()
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 1e6
        del steps
    work = "peak memory of training, 12 x 12 x 768, compiled"
    if len(peaks) == 1:
        return Row(work, "MB", (peaks["ours"],))
    ratio = peaks["nanoGPT"] / peaks["ours"]
    return Row(work, "MB", (peaks["ours"],), "nanoGPT", (peaks["nanoGPT"],), (ratio,))


def decoding(args: Namespace, folder: str) -> list[Row]:
    """Sampling at this size; the values of the weights do not matter."""
    config = bench.new_run(folder, **COMMON).config.gpt
    model, prompt = GPT(config).eval(), torch.zeros(1, 1, dtype=torch.int64, device="cuda")
    neox = baselines.gpt_neox(model).cuda()
    model = model.cuda()
    works: dict[str, Callable] = {"ours": lambda: list(model.generate(prompt, COUNT))}
    mask, limit = torch.ones_like(prompt), {"max_new_tokens": COUNT, "min_new_tokens": COUNT}
    generate = partial(neox.generate, prompt, attention_mask=mask, **limit)
    works["transformers"] = partial(generate, do_sample=True, top_k=0)
    if args.nanogpt:
        theirs: nn.Module = baselines.nanogpt(args.nanogpt, config).cuda().eval()
        works["nanoGPT"] = partial(theirs.generate, prompt, COUNT)
    works = {name: autocast(waiting(work)) for name, work in works.items()}
    times = interleaved(works, min(args.rounds, 3))
    return rows(f"sampling {COUNT} tokens, 12 x 12 x 768, bfloat16", times, "tokens/s", COUNT)


def autocast(work: Callable[[], None]) -> Callable[[], None]:
    def done() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            work()

    return done


def main(argv: list[str]) -> None:
    parser = errors.Parser(
        prog="python -m experiments.bench_gpu", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--nanogpt", help="a clone of nanoGPT, to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: 5)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device here; bench.py measures a CPU")
    table = []
    print("| work | unit | ours | peer | theirs | ratio |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack():
        bench.prepare(folder, None)
        for part in (training, memory, decoding):
            found = part(args, folder)
            for row in [found] if isinstance(found, Row) else found:
                print(line(row), flush=True)
                table.append(asdict(row))
    results = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "commit": commit(),
        "rows": table,
    }
    path = ROOT / "results/bench_gpu.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
