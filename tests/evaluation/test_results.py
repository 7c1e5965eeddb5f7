"""The files of rows: appended, checked, and read with damaged lines in them."""

import json
from pathlib import Path

import pytest
from conftest import forked
from rows import flat, row

from evaluation import results


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "made.jsonl"


def fill(path, *rows):
    for one in rows:
        results.append(path, one)


def wait(child):
    import os  # noqa: PLC0415

    assert os.waitpid(child, 0)[1] == 0


def test_a_row_is_one_line_and_comes_back_as_it_was(path):
    fill(path, row(flat(0)), row(flat(1), length=32))
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == results.read(path)
    assert results.read(path) == [row(flat(0)), row(flat(1), length=32)]


def test_the_last_row_of_a_cell_counts_and_the_file_only_grows(path):
    fill(path, row(flat(0)), row(flat(1), length=32), row(flat(2)))
    assert [(r["length"], r["scores"]) for r in results.read(path)] == [
        (32, row(flat(1))["scores"]),
        (16, row(flat(2))["scores"]),
    ]
    assert len(path.read_text().splitlines()) == 3


def test_other_targets_are_a_cell_of_their_own(path):
    fill(path, row(flat(0)), row(flat(1), target_set="deeper"))
    assert [r["target_set"] for r in results.read(path)] == ["s", "deeper"]


def test_rows_of_earlier_weights_of_a_run_and_seed_do_not_count(path):
    fill(path, row(flat(0)), row(flat(1), length=32), row(flat(2), seed=2))
    fill(path, row(flat(4), length=64, checkpoint_sha="new"))
    assert [(r["seed"], r["length"]) for r in results.read(path)] == [(2, 16), (1, 64)]


@pytest.mark.parametrize("bad", ["{", '{"run": 1}', "[1]", "{}", '"a"', "\x00", '{"a": NaN'])
def test_a_bad_line_is_named_and_the_rest_counts(path, bad, capsys):
    fill(path, row(flat(0)))
    with path.open("a") as file:
        file.write(bad + "\n")
    fill(path, row(flat(1), length=32))
    assert [r["length"] for r in results.read(path)] == [16, 32]
    assert f"{path}:2: skipped a bad line: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"seed": None},
        {"folder": 1},
        {"length": "16"},
        {"scores": [[]]},
        {"scores": [1.0]},
        {"scores": [["a"]]},
        {"scores": [[float("nan")]]},
        {"scores": [[float("inf")]]},
        {"metric": 1},
        {"higher_is_better": 0},
    ],
)
def test_a_row_is_checked_before_it_is_stored_and_when_it_is_read(path, change, capsys):
    with pytest.raises(ValueError, match=next(iter(change))):
        results.append(path, row(flat(0)) | change)
    assert not path.exists()
    fill(path, row(flat(0)))
    with path.open("a") as file:
        file.write(json.dumps(row(flat(0), length=32) | change) + "\n")
    assert len(results.read(path)) == 1
    assert f":2: skipped a bad line: {next(iter(change))}" in capsys.readouterr().err


def test_a_row_of_the_first_release_has_no_folder(path):
    path.parent.mkdir()
    old = {name: value for name, value in row(flat(0)).items() if name != "folder"}
    path.write_text(json.dumps(old) + "\n", encoding="utf-8")
    assert results.read(path) == [old | {"folder": None}]


def test_a_line_without_its_end_does_not_swallow_the_next_row(path, capsys):
    fill(path, row(flat(0)), row(flat(1), length=32))
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 9):  # only the line break, and some of the row
        path.write_bytes(whole[:cut])
        fill(path, row(flat(2), length=64))
        lengths = [16, 32, 64] if cut == len(whole) - 1 else [16, 64]
        assert [r["length"] for r in results.read(path)] == lengths


def test_two_processes_append_at_once_and_no_row_is_lost(path):
    def work(seed):
        fill(path, *(row(flat(0), seed=seed, length=n) for n in range(1, 101)))

    for child in [forked(lambda s=s: work(s)) for s in (1, 2)]:
        wait(child)
    rows = results.read(path)
    assert len(rows) == len(path.read_text().splitlines()) == 200
    for seed in (1, 2):
        assert [r["length"] for r in rows if r["seed"] == seed] == list(range(1, 101))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[\n{}\n]\n", r"made\.jsonl is a JSON array, which earlier versions wrote"),
        ("[]", r"made\.jsonl is a JSON array, which earlier versions wrote"),
        ("# a title\n", r"made\.jsonl does not hold rows of evaluate\.py; name a different --json"),
    ],
)
def test_a_file_of_a_different_kind_is_refused_and_left_alone(path, text, message):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        results.read(path)
    with pytest.raises(ValueError, match=message):
        results.append(path, row(flat(0)))
    assert path.read_text() == text


def test_no_file_holds_no_rows(path):
    assert results.read(path) == []


@pytest.mark.parametrize("name", ["prose", "passkey", "claims/prose", "claims/keys"])
def test_the_committed_rows_are_sound(name, capsys):
    rows = results.read(Path(__file__).parents[2] / f"results/{name}.jsonl")
    assert len(rows) > 100
    assert capsys.readouterr().err == ""
