"""On CUDA: the same numbers as on a CPU, and all that only a GPU does (`pytest -m gpu`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fingerprint, losses, merged, rows, run, stop_at

import evaluate
import sample
from model import GPT, GPTConfig, KVCache
from positions import POSITIONS
from runtime import checkpoint, errors
from train import main

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
SIZE = {"block_size": 64, "vocab_size": 50, "n_layer": 2, "n_head": 4, "n_embd": 64}
LAYERED = {"pos": "rope", "layers": "LG", "window": 16, "global_pos": "none"}
MODELS = [
    *({"pos": pos} for pos in POSITIONS),
    LAYERED,
    {"pos": "rope", "n_kv_head": 2},
    {"pos": "rope", "logit_scaling": "logn"},
    {"pos": "rope", "rope_scaling": "dynamic_yarn"},
]


def pair(settings: dict) -> tuple[GPT, GPT]:
    """The same model in float64, on the CPU and on CUDA."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZE | settings)).double().eval()
    twin = GPT(model.config).double().eval()
    twin.load_state_dict(model.state_dict())
    return model, twin.cuda()


def mean(scores: list) -> float:
    """Of the numbers of a row, in lists of lists."""
    return float(np.concatenate([np.ravel(part) for part in scores]).mean())


def ids(length: int) -> torch.Tensor:
    return torch.randint(SIZE["vocab_size"], (2, length), generator=torch.manual_seed(1))


@pytest.mark.parametrize("settings", MODELS, ids=str)
def test_logits_and_gradients_are_those_of_a_cpu(settings):
    model, twin = pair(settings)
    for length in (1, 64, min(300, model.max_length)):
        x = ids(int(length))
        ours, theirs = twin(x.cuda()).cpu(), model(x)
        assert (ours - theirs).abs().max() < 1e-10
    x, y = ids(64), ids(64).roll(1, 1)
    twin(x.cuda(), y.cuda()).backward()
    model(x, y).backward()
    for (name, ours), theirs in zip(twin.named_parameters(), model.parameters(), strict=True):
        assert (ours.grad.cpu() - theirs.grad).abs().max() < 1e-10, name


@pytest.mark.parametrize("settings", MODELS, ids=str)
@torch.no_grad()
def test_cached_logits_are_full_ones(settings):
    _, twin = pair(settings)
    length = int(min(150, twin.max_length))
    x, cache = ids(length).cuda(), KVCache(length)
    if settings.get("rope_scaling"):
        pytest.skip("its cache is filled again at every new factor: see the next test")
    parts = [twin.hidden(x[:, t : t + 1], cache) for t in range(length)]
    assert (torch.cat(parts, 1) - twin.hidden(x)).abs().max() < 1e-10


@pytest.mark.parametrize("settings", MODELS, ids=str)
def test_the_likeliest_tokens_are_those_of_a_cpu(settings):
    model, twin = pair(settings)
    prompt = ids(10)
    theirs = torch.stack(list(model.generate(prompt, 50, temperature=0)))
    ours = torch.stack(list(twin.generate(prompt.cuda(), 50, temperature=0)))
    assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("settings", MODELS, ids=str)
def test_half_precision_is_near_float32(settings):
    """bfloat16 keeps 8 bits: losses of an untrained model agree within a hundredth."""
    _, twin = pair(settings)
    twin, x, y = twin.float(), ids(64).cuda(), ids(64).roll(1, 1).cuda()
    exact = twin(x, y)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype):
            assert abs(twin(x, y) - exact) < 0.01


def test_a_run_has_the_losses_of_a_cpu(flags, tmp_path):
    on_cpu = run(flags, "--device=cpu", folder=tmp_path / "cpu")
    on_gpu = run(flags, "--device=cuda", folder=tmp_path / "gpu")
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), abs=2e-3)  # TF32
    last_cpu, last_gpu = rows(on_cpu)[-1], rows(on_gpu)[-1]
    for name in ("val/loss", "val/loss_2x", "val/loss_4x"):
        assert last_gpu[name] == pytest.approx(last_cpu[name], abs=2e-3)


@pytest.mark.parametrize(
    "more",
    [
        ["--dtype=auto"],
        ["--dtype=bfloat16", "--compile=True"],
        ["--dtype=float16"],
        ["--dtype=bfloat16", "--optimizer=muon"],
        ["--dtype=bfloat16", "--pos=alibi", "--dropout=0.1"],
        ["--dtype=bfloat16", "--layers=LG", "--window=8", "--global_pos=none"],
        ["--dtype=bfloat16", "--layers=LG", "--window=8", "--compile=True"],
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the compiler's
def test_runs_learn_in_every_precision(flags, more):
    folder = run(
        flags, "--device=cuda", "--max_iters=60", "--learning_rate=0.01", "--log_interval=20", *more
    )
    found = rows(folder)
    assert found[-1]["val/loss"] < found[0]["val/loss"] - 0.3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_goes_on_where_it_stopped(flags, tmp_path, dtype):
    common = ["--device=cuda", f"--dtype={dtype}"]
    whole = losses(run(flags, *common, folder=tmp_path / "whole"))
    stop_at(3, flags, *common)
    assert losses(run(flags, *common, "--resume")) == pytest.approx(whole, abs=1e-5)


def test_a_checkpoint_of_a_gpu_is_read_on_a_cpu(flags, tmp_path, capsys):
    folder = run(flags, "--device=cuda")
    texts, found = [], []
    for device in ("cpu", "cuda"):
        capsys.readouterr()
        sample.main([f"--out_dir={folder}", "--max_len=4x", f"--device={device}"])
        texts.append(capsys.readouterr().out)
        table = tmp_path / f"{device}.jsonl"
        common = "--tokens=64 --window_tokens=1024 --lengths=1x,4x --rope_scaling=none,yarn".split()
        evaluate.main(
            [str(folder), *common, f"--json={table}", "--wandb=disabled", f"--device={device}"]
        )
        found.append([mean(json.loads(line)["scores"]) for line in table.read_text().splitlines()])
    assert texts[0][:40] == texts[1][:40]  # later, TF32 may turn one draw
    assert found[0] == pytest.approx(found[1], abs=2e-3)
    model, _ = checkpoint.load(folder)
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_that_is_not_finite_ends_the_run_and_spoils_no_checkpoint(flags, dtype):
    common = ["--device=cuda", f"--dtype={dtype}"]
    folder = run(flags, *common)
    good = fingerprint(folder)
    worse = ["--resume", "--max_iters=20", "--learning_rate=1e38", "--min_lr=1e38"]
    with pytest.raises(errors.DivergedError, match="finite"):
        main(merged(flags, *common, *worse, "--eval_interval=20", "--grad_clip=0"))
    assert fingerprint(folder) == good


def test_too_large_a_batch_is_one_sentence(flags, capfd):
    # 2^19 windows of 16 characters, 4096 channels wide: 128 GiB for one activation.
    huge = ["--device=cuda", "--batch_size=524288", "--n_embd=4096", "--eval_tokens=64"]
    with pytest.raises(ValueError, match="out of memory at batch_size 524288 x block_size 16"):
        main(merged(flags, *huge))
    torch.cuda.empty_cache()


def test_torchrun_trains_one_process_through_nccl(flags, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    command += ["train.py", *merged(flags, "--device=cuda")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == errors.DONE, done.stderr
    alone = run(flags, "--device=cuda", folder=tmp_path / "alone")
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-4)
