"""Training: the same steps whatever interrupts, divides or watches them."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import fingerprint, losses, merged, rows, run, stop_at
from transformers import get_cosine_schedule_with_warmup

import configs
import data
import data.prepare
import train
from data.training_positions import TRAIN_POSITIONS
from evaluation.scoring import HeldOut
from model import GPT, GPTConfig
from positions import POSITIONS
from runtime import checkpoint
from runtime.checkpoint import CheckpointError
from runtime.setup import make_optimizers, optimizer_groups, setup, split_batch


def test_a_run_learns_and_leaves_what_it_says(flags):
    folder = run(flags, "--max_iters=60", "--learning_rate=0.01", "--log_interval=20")
    assert {p.name for p in folder.iterdir()} == {
        *("ckpt.pt", "ckpt.prev.pt", "config.json", "metrics.jsonl", "status.json")
    }
    found = rows(folder)
    assert found[-1]["iter"] == 60
    assert found[-1]["val/loss"] < found[0]["val/loss"] - 0.3
    assert {"train/loss", "val/loss", "val/loss_2x", "val/loss_4x", "lr"} <= found[-1].keys()
    assert json.loads((folder / "config.json").read_text())["n_embd"] == 16
    model, info = checkpoint.load(folder)
    assert info["iter"] == 60
    assert info["run"]["max_iters"] == 60
    # The value logged is that of the saved weights, by an explicit loop over the same windows.
    dataset = data.load("small", Path(info["run"]["data_dir"]))
    starts, total = data.spans(dataset.documents("val"), 64, 256 // 64), []
    for first in starts:
        for at in range(first, first + 64, 16):
            ids = torch.tensor(dataset.val[at : at + 17].astype(np.int64))
            logp = model(ids[None, :-1])[0].log_softmax(-1)
            total += [-logp[t, ids[t + 1]].item() for t in range(16)]
    assert found[-1]["val/loss"] == pytest.approx(sum(total) / len(total), abs=1e-5)


@pytest.mark.parametrize("pos", POSITIONS)
def test_every_encoding_trains_and_is_evaluated_as_far_as_it_extrapolates(flags, pos):
    last = rows(run(flags, f"--pos={pos}"))[-1]
    assert math.isfinite(last["val/loss"])
    assert ("val/loss_4x" in last) == (pos != "learned")


def test_the_same_tokens_at_every_length(corpus):
    dataset = data.load("small", corpus)
    model = GPT(GPTConfig(block_size=16, vocab_size=50, n_layer=1, n_head=1, n_embd=4, pos="none"))
    held = HeldOut(model, dataset, 512)
    targets = {
        r: sorted(map(tuple, t[:, 1:].reshape(-1, 16).tolist())) for r, t in held.rows.items()
    }
    assert held.rows.keys() == {1, 2, 4}
    assert targets[1] == targets[2] == targets[4]
    assert len(targets[1]) * 16 == 512
    # An encoding that ends at the trained length is evaluated there, on the same targets.
    other = HeldOut(GPT(replace(model.config, pos="learned")), dataset, 512)
    assert other.rows.keys() == {1}
    assert torch.equal(other.rows[1], held.rows[1])


@pytest.mark.parametrize(
    "more", [[], ["--gradient_accumulation_steps=3"], ["--optimizer=muon"]], ids=str
)
def test_a_run_that_sigterm_stopped_and_the_resumed_one_are_one(flags, tmp_path, more):
    settings = ["--dropout=0.1", "--max_iters=6", *more]
    whole = run(flags, *settings, folder=tmp_path / "whole")
    for stop in (1, 2, 4, 5):
        part = tmp_path / f"part{stop}"
        stop_at(stop, flags, *settings, f"--out_dir={part}")
        run(flags, *settings, "--resume", folder=part)
        assert fingerprint(part) == fingerprint(whole)
        assert [x.hex() for x in losses(part)] == [x.hex() for x in losses(whole)]
        assert rows(part)[-1]["val/loss"] == rows(whole)[-1]["val/loss"]


def test_accumulation_is_a_larger_batch_of_the_same_windows(flags, tmp_path):
    one = run(flags, "--batch_size=8", folder=tmp_path / "one")
    two = run(flags, "--batch_size=4", "--gradient_accumulation_steps=2", folder=tmp_path / "two")
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)


@pytest.mark.parametrize(("steps", "size", "world"), [(4, 3, 2), (1, 4, 2), (6, 1, 3), (1, 1, 1)])
def test_processes_share_a_step_without_changing_its_windows(steps, size, world):
    flags = [f"--gradient_accumulation_steps={steps}", f"--batch_size={size}"]
    micro, share = split_batch(configs.load(flags), world)
    tokens = np.arange(1000, dtype=np.uint16)
    parts = [data.batch(tokens, share, 8, 1, 5, m)[0] for m in range(world * micro)]
    whole = data.batch(tokens, steps * size, 8, 1, 5)[0]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_step_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="gradient_accumulation_steps 3 is not divisible by 2"):
        split_batch(configs.load(["--gradient_accumulation_steps=3"]), 2)
    with pytest.raises(ValueError, match="nor is batch_size 5"):
        split_batch(configs.load(["--batch_size=5"]), 2)


def test_the_schedule_is_a_warmup_and_a_cosine():
    flags = ["--max_iters=50", "--warmup_iters=10", "--learning_rate=1", "--min_lr=0"]
    config = configs.load(flags)
    ours = [train.learning_rate(config, step) for step in range(51)]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 10, 50).lr_lambdas[0]
    assert ours[10:] == pytest.approx([theirs(step) for step in range(10, 51)], abs=1e-12)
    assert ours[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    floor = configs.load([*flags[:-1], "--min_lr=0.1", "--lr_decay_iters=40"])
    assert [train.learning_rate(floor, step) for step in (40, 49)] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("pos", POSITIONS)
def test_optimizer_groups_hold_every_parameter_once(pos):
    model = GPT(GPTConfig(vocab_size=9, n_layer=2, n_head=2, n_embd=8, bias=True, pos=pos))
    groups = optimizer_groups(model, 0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    names = {id(p): name for name, p in model.named_parameters()}
    undecayed = {names[id(p)] for p in groups[1]["params"]}
    assert undecayed == {
        name
        for name, p in model.named_parameters()
        if p.dim() < 2 or ".attn.position." in name  # biases, norms, the layers' own encodings
    }


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    config = configs.load(["--optimizer=muon", "--vocab_size=9", "--pos=learned", "--bias"])
    model = GPT(config.gpt)
    adamw, muon = make_optimizers(config, model, torch.device("cpu"))
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = [
        [names[id(p)] for group in o.param_groups for p in group["params"]] for o in (adamw, muon)
    ]
    assert len(names) == len(kinds[0]) + len(kinds[1])
    assert set(kinds[0]) | set(kinds[1]) == set(names.values())
    assert {name.split(".", 2)[2] for name in kinds[1]} == {
        *("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    }
    assert len(make_optimizers(configs.load(["--vocab_size=9"]), model, torch.device("cpu"))) == 1


def test_another_optimizers_state_is_refused(flags):
    folder = run(flags)
    with pytest.raises(CheckpointError, match="holds the state of an optimizer other than muon"):
        run(flags, "--resume", "--optimizer=muon", "--max_iters=9", folder=folder)


def test_resuming_needs_the_same_data(flags):
    folder = run(flags)
    state = checkpoint.read_file(folder / "ckpt.pt")
    checkpoint.save(folder, state | {"data": state["data"] | {"train": "0" * 64}})
    with pytest.raises(data.DataError, match=r"train.bin changed since the checkpoint"):
        run(flags, "--resume")


def test_fine_tuning_to_a_longer_context_scales_from_the_first_length(flags, tmp_path):
    first = run(flags, folder=tmp_path / "first")
    longer = ["--block_size=64", "--rope_scaling=yarn", "--eval_tokens=512"]
    second = run(flags, f"--init_from={first}", *longer, folder=tmp_path / "second")
    config = checkpoint.load(second)[0].config
    assert (config.rope_train_len, config.block_size, config.factor) == (16, 64, 4.0)
    longer[0] = "--block_size=128"
    third = run(flags, f"--init_from={second}", *longer, folder=tmp_path / "third")
    config = checkpoint.load(third)[0].config
    assert (config.rope_train_len, config.block_size, config.factor) == (16, 128, 8.0)
    layered = ["--pos=none", "--global_pos=rope", "--layers=LG", "--max_iters=1"]
    first_layered = run(flags, *layered, folder=tmp_path / "layered")
    dynamic = [f"--init_from={first_layered}", "--block_size=64", "--rope_scaling=dynamic_yarn"]
    second = run(flags, *layered, *dynamic, "--eval_tokens=512", folder=tmp_path / "dynamic")
    assert checkpoint.load(second)[0].config.rope_train_len == 16
    zero = ["--learning_rate=0", "--min_lr=0", "--weight_decay=0", "--max_iters=1"]
    same = run(flags, f"--init_from={first}", *longer, *zero, folder=tmp_path / "same")
    for name, weight in checkpoint.load(first)[0].state_dict().items():
        assert torch.equal(weight, checkpoint.load(same)[0].state_dict()[name])
    with pytest.raises(ValueError, match=r"n_embd is 32; it must be 16, as .* was trained with"):
        run(flags, f"--init_from={first}", "--n_embd=32", folder=tmp_path / "other")


def test_the_lines_fit_a_narrow_terminal_and_tell_the_time_left(flags, capsys):
    run(flags)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(len(line) < 80 for line in lines)
    assert re.fullmatch(
        r"3/6 train \d\.\d{3} val \d\.\d{3} 2x \d\.\d{3} 4x \d\.\d{3} "
        r"\d+\.\dk tok/s \d+ ms eta \d+:\d\d",
        lines[2],
    )


def test_a_missing_corpus_is_prepared_and_an_unknown_one_named(flags, tmp_path, monkeypatch):
    asked = []

    def prepare(name, root):
        asked.append((name, root))
        (root / name).symlink_to(Path(flags[-2].partition("=")[2]) / "small")

    monkeypatch.setattr(data.prepare, "prepare", prepare)
    (tmp_path / "data").mkdir()
    run(flags, "--dataset=books-bpe", f"--data_dir={tmp_path / 'data'}")
    assert asked == [("books-bpe", tmp_path / "data")]
    with pytest.raises(
        data.DataError, match=r"data\.prepare mine --input FILE --data_dir=.*` makes it"
    ):
        run(flags, "--dataset=mine", "--overwrite")


def test_a_scaling_that_would_do_nothing_is_refused(flags):
    with pytest.raises(ValueError, match="rope_scaling 'yarn' changes nothing here"):
        run(flags, "--rope_scaling=yarn")
    run(flags, "--rope_scaling=dynamic_yarn")


def test_another_model_is_not_taken_for_the_same_shape(flags, tmp_path):
    first = run(flags, folder=tmp_path / "first")
    other = [f"--init_from={first}", "--max_iters=1"]
    for change in ("--rope_layout=interleaved", "--n_head=4", "--rope_fraction=0.5"):
        with pytest.raises(ValueError, match=r"it must be .*was trained with"):
            run(flags, *other, change, folder=tmp_path / "other")


NO_STEP = ["--learning_rate=0", "--min_lr=0", "--weight_decay=0", "--max_iters=1"]


def test_drope_starts_from_the_weights_of_rope_and_goes_on_without_positions(
    flags, tmp_path, capsys
):
    first = run(flags, "--rope_theta=500", "--rope_fraction=0.5", folder=tmp_path / "first")
    drope = merged(flags, "--pos=none", f"--init_from={first}", "--dropout=0.1")
    capsys.readouterr()
    same = run(drope, *NO_STEP, folder=tmp_path / "same")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"pos rope of {first / 'ckpt.pt'} becomes none"
    assert "rope_theta" not in "".join(lines)  # nothing reads it any more
    model, weights = checkpoint.load(same)[0], checkpoint.load(first)[0].state_dict()
    assert model.config.pos == "none"
    assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
    # Without positions, a model cannot tell in which order earlier tokens stand.
    idx = torch.tensor([[3, 1, 2, 5], [1, 3, 2, 5]])
    one = GPT(replace(model.config, n_layer=1)).eval()
    torch.testing.assert_close(*one(idx)[:, -1], rtol=0, atol=1e-6)
    whole = run(drope, folder=tmp_path / "whole")
    stop_at(2, drope, f"--out_dir={tmp_path / 'part'}")
    part = run(drope, "--resume", folder=tmp_path / "part")
    assert fingerprint(part) == fingerprint(whole)
    assert losses(part) == losses(whole)
    assert fingerprint(whole) != fingerprint(same)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("--pos=none", "--pos=rope --rope_layout=interleaved"),
        ("--pos=alibi", "--pos=rope"),
        ("--pos=rope", "--pos=rope --layers=LG --window=4 --global_pos=none"),
        ("--pos=alibi --layers=LG --window=4", "--pos=alibi"),
    ],
)
def test_encodings_without_weights_change_into_one_another(flags, tmp_path, capsys, before, after):
    first = run(flags, *before.split(), folder=tmp_path / "first")
    capsys.readouterr()
    changed = [*NO_STEP, *after.split(), f"--init_from={first}"]
    second = run(flags, *changed, folder=tmp_path / "second")
    were, are = (checkpoint.load(folder)[0] for folder in (first, second))
    said = capsys.readouterr().err
    for name in ("pos", "layers", "window", "global_pos"):
        old, new = getattr(were.config, name), getattr(are.config, name)
        assert (f"{name} {old} of {first / 'ckpt.pt'} becomes {new}\n" in said) == (old != new)
    assert all(torch.equal(w, are.state_dict()[name]) for name, w in were.state_dict().items())


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("--pos=learned", "--pos=none", "pos is none; it must be learned, as"),
        ("--pos=rope", "--pos=learned", "pos is learned; it must be rope, as"),
        ("--pos=learned", "--pos=rope --block_size=8", "pos is rope; it must be learned, as"),
        ("--pos=rope", "--pos=none --n_embd=32", "n_embd is 32; it must be 16, as"),
        ("--pos=rope", "--pos=none --rope_theta=500", "rope_theta is 500.0; it must be left out"),
        (
            "--pos=rope",
            "--pos=rope --layers=LG --global_pos=none --rope_layout=interleaved",
            "rope_layout is interleaved; it must be half, as",
        ),
    ],
)
def test_an_encoding_whose_weights_do_not_fit_is_refused(flags, tmp_path, before, after, words):
    first = run(flags, "--max_iters=1", *before.split(), folder=tmp_path / "first")
    with pytest.raises(ValueError, match=f"^{words}"):
        run(flags, f"--init_from={first}", *after.split(), folder=tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_vocabulary_of_another_size_is_named_beside_a_new_encoding(flags, tmp_path):
    first = run(flags, "--max_iters=1", folder=tmp_path / "first")
    other = [f"--init_from={first}", "--pos=none", "--vocab_size=99"]
    with pytest.raises(CheckpointError, match=r"does not fit: wte.weight is \(19, 16\)"):
        run(flags, *other, folder=tmp_path / "second")


def test_settings_of_the_optimizer_follow_the_resumed_config(flags, capsys):
    run(flags, "--max_iters=3")
    folder = run(flags, "--resume", "--weight_decay=0.5", "--beta1=0.8")
    groups = checkpoint.read(folder)["optimizers"][0]["param_groups"]
    assert [(g["weight_decay"], g["betas"][0]) for g in groups] == [(0.5, 0.8), (0.0, 0.8)]
    assert "weight_decay was 0.1, is 0.5" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is at step 6 already; raise max_iters"):
        run(flags, "--resume", "--weight_decay=0.5", "--beta1=0.8")


def test_torn_or_missing_rows_do_not_stop_a_resumed_run(flags, capsys):
    folder = run(flags, "--max_iters=3")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"iter": 3, "train/lo')
    run(flags, "--resume", "--max_iters=4")
    assert [row["iter"] for row in rows(folder)] == [1, 2, 3, 4]
    assert "a torn row was left out" in capsys.readouterr().err
    (folder / "metrics.jsonl").unlink()
    run(flags, "--resume", "--max_iters=5")
    assert [row["iter"] for row in rows(folder)] == [5]


def test_a_run_goes_on_when_nobody_reads_its_lines(flags, monkeypatch):
    class Closed:
        def write(self, _):
            raise BrokenPipeError

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdout", Closed())
    folder = run(flags)
    sys.stdout.close()
    assert checkpoint.read(folder)["iter"] == 6


def test_a_status_line_stands_on_a_terminal_only(flags, capsys, monkeypatch):
    run(flags, "--log_interval=3")
    assert "\r" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run(flags, "--log_interval=3", "--overwrite")
    shown = capsys.readouterr().out
    assert shown.startswith("\r1/6\r2/6\r\033[K3/6 train")


def test_a_run_of_the_old_setting_slide_is_resumed(flags, capsys):
    folder = run(flags, "--max_iters=3", "--lr_decay_iters=6")
    state = checkpoint.read(folder)
    for settings in (state["config"], state["run"]):
        settings["beyond"] = "slide"
    checkpoint.save(folder, state)
    capsys.readouterr()
    run(flags, "--resume", "--lr_decay_iters=6")
    assert "beyond" not in capsys.readouterr().err
    state = checkpoint.read(folder)
    assert (state["iter"], state["config"]["beyond"], state["window"]) == (6, "extend", 16)


def test_a_setting_newer_than_a_checkpoint_has_its_default(flags, capsys):
    folder = run(flags, "--max_iters=3")
    state = checkpoint.read(folder)
    for name in ("train_positions", "position_range"):
        del state["run"][name]
    del state["config"]["truncate"]  # as if the model had got it later
    checkpoint.save(folder, state)
    capsys.readouterr()
    run(flags, "--resume", "--train_positions=sequential")
    said = capsys.readouterr().err
    assert "train_positions" not in said
    assert "truncate" not in said


# ---- positions of training windows -------------------------------------------------------------


class Placed(GPT):
    """Keeps the positions that it is given, and encodes 0 to T - 1 all the same."""

    seen: ClassVar[list] = []

    def forward(self, idx, targets=None, positions=None):
        if self.training:
            self.seen.append(None if positions is None else positions.numpy().copy())
        return super().forward(idx, targets)


@pytest.fixture
def placed(monkeypatch):
    """Train a model that keeps its positions: placed(flags) returns them, a micro-step each."""

    def positions(argv: list[str]) -> list:
        Placed.seen.clear()
        assert train.main(argv, Placed) == 0
        return list(Placed.seen)

    return positions


def test_positions_are_drawn_from_a_stream_of_their_own(flags, placed, tmp_path):
    flags = merged(flags, "--dropout=0.1")
    random = merged(flags, "--train_positions=random", "--position_range=40", folder=tmp_path / "a")
    drawn = placed(random)
    assert len(drawn) == 6
    assert all(rows.shape == (4, 16) and rows.dtype == np.int64 for rows in drawn)
    assert all((np.diff(rows) > 0).all() for rows in drawn)
    assert max(rows.max() for rows in drawn) == 39
    assert len({rows.tobytes() for rows in drawn}) == 6
    assert placed(merged(flags, folder=tmp_path / "b")) == [None] * 6
    # This model does not use them: its windows, dropout and losses are those of a plain run.
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


@pytest.mark.parametrize("method", ["random", "pose"])
def test_positions_of_a_resumed_run_are_those_of_one_run(flags, placed, tmp_path, method):
    flags = merged(flags, f"--train_positions={method}", "--gradient_accumulation_steps=2")
    flags = merged(flags, "--lr_decay_iters=6")
    whole = placed(merged(flags, folder=tmp_path / "whole"))
    part = placed(merged(flags, "--max_iters=2", folder=tmp_path / "part"))
    part += placed(merged(flags, "--resume", folder=tmp_path / "part"))
    assert len(whole) == len(part) == 12
    assert all(map(np.array_equal, whole, part))


@pytest.mark.parametrize("method", ["random", "pose"])
@pytest.mark.parametrize(("steps", "size"), [(4, 3), (2, 4), (1, 4)])
def test_processes_share_positions_as_they_share_windows(flags, steps, size, method):
    flags = merged(flags, f"--train_positions={method}", f"--gradient_accumulation_steps={steps}")
    one = setup(configs.load(merged(flags, f"--batch_size={size}")))
    one.iter = 5
    whole = [train.training_positions(one, micro, size) for micro in range(steps)]
    shared = []
    for rank in range(2):
        part = replace(one, rank=rank, world=2)
        micros, share = split_batch(part.config, 2)
        first = rank * micros
        shared += [train.training_positions(part, m, share) for m in range(first, first + micros)]
    assert torch.equal(torch.cat(shared), torch.cat(whole))


def test_a_new_way_to_draw_positions_is_usable_by_its_name(flags, placed, monkeypatch):
    def shifted(draw, B, T, position_range):
        starts = draw.integers(position_range - T + 1, size=(B, 1))
        return starts + np.arange(T)

    monkeypatch.setitem(TRAIN_POSITIONS, "shifted", shifted)
    drawn = placed(merged(flags, "--train_positions=shifted", "--position_range=99"))
    assert all((np.diff(rows) == 1).all() for rows in drawn)
    assert len({int(first) for rows in drawn for first in rows[:, 0]}) > 12
    assert checkpoint.read(configs.load(flags).folder)["run"]["train_positions"] == "shifted"


def test_pose_fine_tunes_at_the_trained_length_for_a_longer_one(flags, tmp_path):
    first = run(flags, folder=tmp_path / "first")
    longer = ["--train_positions=pose", "--rope_scaling=yarn", "--rope_factor=4", "--dropout=0.1"]
    pose = merged(flags, f"--init_from={first}", *longer)
    whole = run(pose, folder=tmp_path / "whole")
    config = checkpoint.load(whole)[0].config
    assert (config.block_size, config.rope_train_len, config.factor) == (16, 16, 4.0)
    stop_at(2, pose, f"--out_dir={tmp_path / 'part'}")
    part = run(pose, "--resume", folder=tmp_path / "part")
    assert fingerprint(part) == fingerprint(whole)
    plain = run(pose, "--train_positions=sequential", folder=tmp_path / "plain")
    assert fingerprint(plain) != fingerprint(whole)


def test_positions_that_an_encoding_cannot_place_are_refused_before_a_run_is_replaced(flags):
    folder = run(flags, "--pos=learned")
    before = (folder / "ckpt.pt").read_bytes()
    with pytest.raises(
        ValueError, match="position_range is None; it must be at most 16, the positions"
    ):
        run(flags, "--pos=learned", "--train_positions=random", "--overwrite")
    assert (folder / "ckpt.pt").read_bytes() == before


@pytest.mark.soak  # half a minute of C++ compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_run_learns_the_same(flags, tmp_path):
    plain = run(flags, folder=tmp_path / "plain")
    compiled = run(flags, "--compile", folder=tmp_path / "compiled")
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-4)
