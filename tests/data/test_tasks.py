"""The retrieval task: what teaches it, what asks for it, and a loss on the digits alone."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import configs
import data
import train
from data import DataError, Dataset, batch, load, tasks
from data.prepare import prepare
from data.tokenizer import from_meta
from runtime import checkpoint, errors
from runtime.device import processes
from runtime.setup import setup

ANY_KEY = re.compile(r"\[[0-9]{4}\]")
LETTER = r"[a-z]"
PASSKEY = tasks.TASKS["passkey"]


@pytest.fixture(scope="module")
def split():
    return PASSKEY.corpus()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder that holds `passkey`, as the command line makes it."""
    root = tmp_path_factory.mktemp("data")
    prepare("passkey", root=root)
    return root


def starts(text: str) -> np.ndarray:
    return np.array([match.start() for match in ANY_KEY.finditer(text)])


# Questions


@pytest.mark.parametrize("length", [10, 11, 64, 128, 1024])
def test_a_question_is_letters_one_key_and_three_digits_of_its_repeat(length):
    for question in PASSKEY.questions(length, 50, seed=0):
        form = rf"{LETTER}*\[([0-9]{{4}})\]{LETTER}*\[([0-9]{{3}})"
        key, repeat = re.fullmatch(form, question.text).groups()
        assert len(question.text) == length
        assert question.answer == key
        assert key.startswith(repeat)
        assert question.last == question.text.index("]")


def test_depths_are_spread_evenly_and_follow_no_grid():
    places = 128 - 4 - 6 + 1
    asked = PASSKEY.questions(128, 400, seed=0)
    at = np.array([starts(question.text)[0] for question in asked])
    assert [question.depth for question in asked] == (at / (places - 1)).tolist()
    for part in range(10):  # each tenth of the depths has its tenth of the questions
        inside = at[part * 40 : part * 40 + 40]
        assert part * places / 10 - 1 <= inside.min()
        assert inside.max() < (part + 1) * places / 10
    assert set(at.tolist()) >= {0, places - 1}  # from the very beginning to just before the repeat
    for grid in range(2, 17):
        counts = np.bincount(at % grid, minlength=grid)
        assert counts.min() > 400 / grid / 2
        assert counts.max() < 400 / grid * 2


def test_answers_are_spread_evenly():
    digits = "".join(question.answer for question in PASSKEY.questions(32, 2500, seed=0))
    counts = np.array([digits.count(digit) for digit in "0123456789"])
    assert (abs(counts - 1000) < 5 * np.sqrt(900)).all()


def test_questions_depend_on_length_and_seed_alone():
    asked = PASSKEY.questions(64, 20, seed=3)
    assert PASSKEY.questions(64, 20, seed=3) == asked
    answers = [question.answer for question in asked]
    for other in (PASSKEY.questions(64, 20, seed=4), PASSKEY.questions(65, 20, seed=3)):
        assert [question.answer for question in other] != answers


@pytest.mark.parametrize("length", [-1, 0, 9])
def test_a_length_without_room_for_a_question_is_refused(length):
    with pytest.raises(ValueError, match=f"length {length} is too short .* need 10 characters"):
        PASSKEY.questions(length, 1, seed=0)


# Documents


@pytest.mark.parametrize("name", ["passkey", "passkey-4x"])
def test_a_training_document_is_a_window_of_letters_and_one_key(name, split):
    documents = (split if name == "passkey" else tasks.TASKS[name].corpus())["train"]
    for document in documents[::50]:
        assert len(document.text) == tasks.TASKS[name].window + 1
        assert re.fullmatch(r"[a-z]+", ANY_KEY.sub("", document.text))
        assert len(set(ANY_KEY.findall(document.text))) == 1
        assert 2 <= len(ANY_KEY.findall(document.text)) <= 8


def test_held_out_documents_are_long_and_have_one_key_too(split):
    for document in split["val"]:
        assert len(document.text) == 128 * 128
        assert len(set(ANY_KEY.findall(document.text))) == 1


def test_documents_are_always_the_same_and_never_twice(split):
    again = PASSKEY.corpus()
    assert again == split
    texts = [document.text for documents in split.values() for document in documents]
    assert len(set(texts)) == len(texts)


def test_nothing_held_out_and_nothing_asked_was_trained_on(split):
    """Eight letters in a row that also stand in training are rarer than one in 80,000."""
    seen = {d.text[i : i + 8] for d in split["train"] for i in range(122)}
    others = [d.text[:2000] for d in split["val"]]
    others += [question.text for question in PASSKEY.questions(1024, 100, seed=0)]
    pieces = [text[i : i + 8] for text in others for i in range(len(text) - 7)]
    known = sum(piece.isalpha() and piece in seen for piece in pieces)
    assert known < 5 * len(pieces) * len(seen) / 26**8 + 5


def test_a_window_holds_two_to_eight_occurrences_at_all_distances(split):
    at = [starts(document.text) for document in split["train"]]
    counts = np.bincount([len(places) for places in at], minlength=10)
    assert counts[:2].sum() == counts[9:].sum() == 0
    assert counts[2:9].min() > len(at) / 7 * 0.9
    nearest = {distance for places in at for distance in np.diff(places).tolist()}
    assert nearest >= set(range(6, 119))


def test_occurrences_follow_no_grid(split):
    """Keys at multiples of seven once taught a model multiples of seven, and nothing else."""
    at = np.concatenate([starts(document.text) for document in split["train"]])
    for grid in range(2, 17):
        share = np.bincount(at % grid, minlength=grid) / len(at)
        even = np.bincount(np.arange(124) % grid, minlength=grid) / 124
        assert abs(share / even - 1).max() < 0.1


def test_keys_are_spread_evenly(split):
    """The fourth digit cannot be guessed from the first three: no key is known beforehand."""
    keys = [ANY_KEY.search(document.text).group() for document in split["train"]]
    assert len(set(keys)) > 0.8 * 10**4  # of 20,000 draws
    counts = np.array([sum(key.count(digit) for key in keys) for digit in "0123456789"])
    assert (abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean())).all()


# The dataset


def test_targets_that_do_not_count_become_minus_one():
    meta = {"vocab_size": 5, "task": {"every": 3, "scored": [1, 3], "after": 4}}
    y = np.array([[0, 1, 4, 1, 0, 3, 4], [3, 4, 1, 1, 2, 2, 2], [0, 1, 2, 3, 1, 0, 4]])
    kept = [[-1, -1, -1, 1, -1, 3, -1], [-1, -1, 1, 1, -1, -1, -1], [-1] * 7]
    before = y.tolist()
    dataset = Dataset("toy", meta, None, None)
    found = dataset.mask_targets(y)
    assert found.dtype == y.dtype
    assert found.tolist() == kept
    assert y.tolist() == before
    assert dataset.window_stride == 3
    assert Dataset("toy", {"vocab_size": 5}, None, None).window_stride == 1
    assert Dataset("toy", {"vocab_size": 5}, None, None).mask_targets(y) is y


def test_windows_start_at_documents(root):
    dataset = load("passkey", root)
    tokenizer, borders = from_meta(dataset.meta["tokenizer"]), dict(dataset.documents("train"))
    for step in range(5):
        x, y = batch(dataset.train, 8, 128, 0, step, window_stride=dataset.window_stride)
        for window in np.concatenate([x, y[:, -1:]], 1):
            keys = ANY_KEY.findall(tokenizer.decode(window))
            assert len(keys) >= 2
            assert len(set(keys)) == 1
    # The last document can be drawn, and nothing beyond it.
    tiny, drawn = np.arange(20), set()
    for step in range(200):
        drawn |= set(batch(tiny, 2, 4, 0, step, window_stride=5)[0][:, 0].tolist())
    assert drawn == {0, 5, 10, 15}
    assert set(np.diff([*borders, len(dataset.train)]).tolist()) == {129}


def test_prepared_documents_come_back_and_digits_are_scored(root, split):
    dataset = load("passkey", root)
    tokenizer = from_meta(dataset.meta["tokenizer"])
    assert tokenizer.characters == "0123456789[]abcdefghijklmnopqrstuvwxyz"
    task = dataset.meta["task"]
    assert tokenizer.decode([*task["scored"], task["after"]]) == "0123456789]"
    for name in ("train", "val"):
        tokens, bounds = getattr(dataset, name), dataset.documents(name)
        assert len(bounds) == len(split[name])
        for (begin, end), document in list(zip(bounds, split[name], strict=True))[::60]:
            assert tokenizer.decode(tokens[begin:end]) == document.text
    _, y = batch(dataset.train, 8, 128, 0, 0, window_stride=dataset.window_stride)
    for row, kept in zip(y, dataset.mask_targets(y), strict=True):
        text = tokenizer.decode(row)
        told = text.index("]")
        counts = [i for i, character in enumerate(text) if character.isdigit() and i > told]
        assert counts == np.flatnonzero(kept >= 0).tolist()
        assert len(counts) % 4 == 0


def test_a_second_call_does_nothing(root, capsys):
    made = {p.name: p.stat().st_mtime_ns for p in (root / "passkey").iterdir()}
    assert prepare("passkey", root=root) == root / "passkey"
    assert {p.name: p.stat().st_mtime_ns for p in (root / "passkey").iterdir()} == made
    assert capsys.readouterr().out.endswith("passkey is there already: nothing to do\n")


def test_documents_of_another_version_are_not_taken_for_these(root, monkeypatch):
    monkeypatch.setattr(tasks.Passkey, "version", 2)
    with pytest.raises(DataError, match="was prepared with a different source: remove"):
        prepare("passkey", root=root)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("passkey", {"tokenizer": "bpe"}, "passkey means tokenizer char, not bpe"),
        ("passkey", {"tokenizer": "gpt2"}, "passkey means tokenizer char, not gpt2"),
        ("passkey", {"vocab_size": 300}, "vocab_size 300 has no effect on tokenizer char"),
        ("passkey-bpe", {}, "'passkey-bpe' is an unknown corpus: choose one of"),
    ],
)
def test_other_tokens_are_refused(tmp_path, name, settings, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        prepare(name, root=tmp_path, **settings)
    assert errors.exit_code(caught.value) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        *({"scored": bad} for bad in ([], [38], [-1], [1.0], [True], ["1"], "1", 1, None, {})),
        *({"after": bad} for bad in (38, -1, "]", None)),
        *({"every": bad} for bad in (0, -1, 1.5, "129", None)),
    ],
)
def test_a_damaged_task_is_refused(root, tmp_path, damage):
    folder = tmp_path / "passkey"
    folder.mkdir()
    for file in ("train.bin", "val.bin"):
        (folder / file).symlink_to(root / "passkey" / file)
    meta = json.loads((root / "passkey" / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"task": meta["task"] | damage}))
    with pytest.raises(DataError, match=r"meta\.json is damaged: remove"):
        load("passkey", tmp_path)


# Training


@pytest.fixture
def on_passkey(flags, root):
    """Flags of a small run on the task."""
    other = ("--dataset", "--data_dir", "--block_size", "--batch_size", "--max_iters")
    sizes = ["--block_size=128", "--batch_size=8", "--max_iters=2"]
    kept = [flag for flag in flags if not flag.startswith(other)]
    return [*kept, *sizes, "--dataset=passkey", f"--data_dir={root}"]


def test_the_loss_of_training_counts_repeated_digits_alone(on_passkey):
    config = configs.load(on_passkey)
    with processes() as process:
        run = setup(config, process)
        x, y = batch(run.data.train, 8, 128, config.seed, 0, window_stride=129)
        with torch.no_grad():
            nats = -F.log_softmax(run.model(torch.from_numpy(x)), -1)
        text = [from_meta(run.data.meta["tokenizer"]).decode(row) for row in y]
        spots = [(b, t) for b in range(8) for t in range(128) if t > text[b].index("]")]
        losses = [nats[b, t, y[b, t]].item() for b, t in spots if text[b][t].isdigit()]
        loss, _ = train.train_step(run)
    assert 8 * 4 <= len(losses) <= 8 * 28
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_window_of_another_length_is_refused(on_passkey):
    with pytest.raises(ValueError, match="block_size is 64; it must be 128, the length of the"):
        train.main([flag.replace("size=128", "size=64") for flag in on_passkey])


def test_a_run_on_the_task_prepares_it_first(on_passkey, tmp_path):
    assert train.main([*on_passkey[:-1], f"--data_dir={tmp_path / 'data'}"]) == 0
    model, _ = checkpoint.load(tmp_path / "run")
    assert model.config.vocab_size == 38
    assert load("passkey", tmp_path / "data").window_stride == 129


@pytest.mark.parametrize("scaling", ["yarn", "ntk", "linear", "none"])
def test_fine_tuning_keeps_the_tokens_of_a_step(scaling):
    folder = data.DATA.parent / "configs"
    files = [str(folder / f"{stem}.py") for stem in ("passkey", "rope", "finetune_passkey")]
    tuned, base = configs.load([*files, f"--rope_scaling={scaling}"]), configs.load(files[:2])
    assert (tuned.train_len, tuned.factor) == (base.block_size, 4)
    assert tuned.tokens_per_step == base.tokens_per_step
