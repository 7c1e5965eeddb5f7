"""The figure of `reproduce.sh quick`, and the costs of encodings, on made-up or tiny numbers."""

import re

import pytest
import torch
from rows import retrieval, row

from evaluation import results
from experiments import quick
from experiments.claims import cost


@pytest.fixture
def folder(tmp_path):
    """Prose, and two tasks of models trained on the mixture."""
    for run, loss in (("rope", 2.0), ("hybrid", 1.6)):
        for length in (16, 32, 64):
            losses = [loss * length / 16] * 8
            results.append(tmp_path / "prose.jsonl", row(losses, run=run, length=length))
            for task in ("passkey", "multikey"):
                cell = {"run": run, "length": length, "protocol": task}
                results.append(tmp_path / f"{task}.jsonl", retrieval([1, 0, 1, 1], **cell))
    return tmp_path


def test_a_panel_a_task_prose_first_and_one_look_a_run(folder):
    figure = quick.draw(folder)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["prose, loss in nats", "multikey, accuracy", "passkey, accuracy"]
    looks = [{line.get_label(): line.get_color() for line in a.get_lines()} for a in figure.axes]
    assert looks[0]["rope"] == looks[1]["rope"] == looks[2]["rope"] != looks[0]["hybrid"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert lines["rope"].get_ydata().tolist() == [2, 4, 8]
    assert lines["rope"].get_xdata().tolist() == [16, 32, 64]


def test_the_command_writes_the_figure(folder, capsys):
    path = folder / "quick.svg"
    quick.main([str(folder), str(path)])
    assert re.search("<svg.*prose, loss in nats", path.read_text(), re.DOTALL)
    assert f"drew {path}" in capsys.readouterr().err


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no results; experiments/reproduce\.sh quick"):
        quick.draw(tmp_path)


def test_costs_are_ratios_to_rope(monkeypatch):
    monkeypatch.setattr(cost, "ROUNDS", 1)
    monkeypatch.setattr(cost, "MODELS", {"rope": {"pos": "rope"}, "learned": {"pos": "learned"}})
    threads = torch.get_num_threads()
    measured = cost.measure()
    torch.set_num_threads(threads)
    assert measured["step"]["rope"] == measured["token"]["rope"] == [1, 1, 1]
    assert measured["parameters"]["learned"] - measured["parameters"]["rope"] == 256 * 128
    assert measured["step"]["learned"][0] > 0
    assert "learned" not in measured["token"]  # 512 tokens are past its table


@torch.no_grad()
def test_decoding_again_gives_the_same_token():
    model = cost.build({"pos": "fox", "block_size": 32, "n_layer": 1}).eval()
    idx = torch.randint(65, (1, 40))
    again = cost.decoder(model, idx)
    cache = again.args[1]
    again()
    again()
    assert cache.length == 40
    whole = model(idx)[:, -1]
    cache.length = 39
    torch.testing.assert_close(model.logits(model.hidden(idx[:, -1:], cache))[:, -1], whole)
