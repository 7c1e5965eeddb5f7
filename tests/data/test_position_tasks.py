"""The tasks that ask for position, against solvers that read nothing but the text."""

import re

import numpy as np
import pytest

from data import load, tasks
from data.prepare import prepare
from data.tokenizer import from_meta

PARTS = tasks.PARTS
ASKED = [name for name in PARTS if name != "passkey"]
LENGTHS = (128, 256, 512, 1024)


def after_key(text, query):
    """What stands behind a key in the facts."""
    facts, _ = text.split("?")
    (value,) = re.findall(rf"<{query}:(\d{{4}})>", facts)
    return value


def multikey(text):
    return after_key(text, re.search(r"\?<(\w\w):\d*$", text)[1])


def assigned(facts):
    """(name, value) of every assignment, in the order of the text."""
    return re.findall(r"([a-z])=([a-z0-9]);", facts)


def values_of(facts):
    values = {}
    for name, value in assigned(facts):
        values[name] = values.get(value, value)  # a digit, or that of an earlier name
    return values


def last_value(text):
    """Of overwrite and of hops: the text ends in the name and a question mark."""
    return values_of(text[:-2])[text[-2]]


def copy(text):
    original, repeated = text.lstrip("abcdefghijklmnopqrstuvwxyz").split("?")
    return (original[: len(repeated) + 1])[-16:]


def locate(text):
    symbols = [int(c) for c in text[1:].replace("?", "")]
    kind, length = text[0], len(symbols) + 1
    made = symbols[:12]
    while len(made) < length:
        i = len(made)
        far = {"r": i - 12, "a": 0, "g": i // 2}[kind]
        made.append((made[far] + made[i - 1]) % 5)
    assert made[:-1] == symbols
    return "".join(map(str, made[-16:]))


SOLVERS = {"multikey": multikey, "overwrite": last_value, "hops": last_value, "copy": copy}
SOLVERS |= dict.fromkeys(("locate-recurrent", "locate-absolute", "locate-growing"), locate)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ASKED)
def test_a_question_has_the_answer_that_its_text_determines(name, length):
    asked = PARTS[name].questions(length, 50, seed=0)
    assert len({question.text for question in asked}) == 50
    for question in asked:
        assert len(question.text) == length
        assert question.answer == SOLVERS[name](question.text)
        assert question.text.endswith(question.answer[:-1])
        assert 0 <= question.depth <= 1
    assert [q.depth for q in asked] == sorted(q.depth for q in asked)
    assert PARTS[name].questions(length, 50, seed=0) == asked
    assert PARTS[name].questions(length, 50, seed=1) != asked


@pytest.mark.parametrize("name", ["multikey", "overwrite", "hops"])
def test_evidence_lies_at_all_depths_and_ends_where_it_says(name):
    asked = PARTS[name].questions(1024, 100, seed=0)
    depths = [question.depth for question in asked]
    assert min(depths) < 0.2
    assert max(depths) > 0.8
    assert sum(question.last < 1024 - 128 for question in asked) > 60
    for question in asked:
        close = {"multikey": ">"}.get(name, ";")
        assert question.text[question.last] == close


@pytest.mark.parametrize("name", ["overwrite", "hops"])
def test_the_load_stays_and_the_distance_grows(name):
    for length in LENGTHS:
        counts = {len(assigned(q.text)) for q in PARTS[name].questions(length, 20, seed=0)}
        assert counts == {{"overwrite": 10, "hops": 9}[name]}


def test_overwritten_keys_have_another_value_first():
    for question in PARTS["overwrite"].questions(256, 50, seed=0):
        values = [value for name, value in assigned(question.text) if name == question.text[-2]]
        assert len(values) == len(set(values)) == 2


def test_questions_have_one_and_two_hops():
    steps = []
    for question in PARTS["hops"].questions(256, 100, seed=0):
        values, name, hops_of = dict(assigned(question.text)), question.text[-2], 0
        while values[name].isalpha():
            name, hops_of = values[name], hops_of + 1
        steps.append(hops_of)
    assert set(steps) == {1, 2}
    assert 0.3 < steps.count(2) / 100 < 0.7


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    prepare("mixture", root=root)
    return load("mixture", root)


def documents(dataset, split, count):
    tokens, decode = getattr(dataset, split), from_meta(dataset.meta["tokenizer"]).decode
    spans = dataset.documents(split)
    for start, end in spans[:: max(1, len(spans) // count)]:
        yield tokens[start:end].astype(np.int64), decode(tokens[start:end].tolist())


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_loss_counts_exactly_what_the_text_determines(mixture, split):
    """Each scored character is that of the solver, and no determined one is left out."""
    seen = set()
    for tokens, text in documents(mixture, split, 400):
        assert len(text) == 129
        scored = np.flatnonzero(mixture.mask_targets(tokens[None, 1:])[0] >= 0) + 1
        if "[" in text:  # passkey has tests of its own
            seen.add("passkey")
            continue
        digits = [i for i, c in enumerate(text) if c.isdigit() and i > text.index("?")]
        if "=" in text:
            digits = [i for i in digits if text[i - 1] == "?"]
        assert scored.tolist() == digits
        seen.add(check_document(text))
    assert seen == {"passkey", "<", "=", "copy", "r", "a", "g"}


def check_document(text):
    """Solve every answer of a training document; returns which kind it is."""
    if "=" in text:
        for answer in re.finditer(r"([a-z])\?(\d)", text):
            assert values_of(text[: answer.start()])[answer[1]] == answer[2]
        return "="
    facts, answers = text.split("?")
    if text[0] in "rag" and text[1:90].isdigit():
        assert 96 <= len(facts) <= 112
        assert locate(text[:-1])[-1] == text[-1]
        return text[0]
    if "<" in facts:
        for key, value in re.findall(r"<(\w\w):(\d{4})>", answers):
            assert after_key(f"{facts}?", key) == value
        return "<"
    assert answers == facts.lstrip("abcdefghijklmnopqrstuvwxyz")
    assert 16 <= len(answers) <= 64
    return "copy"


def test_no_question_begins_or_goes_on_as_a_training_document(mixture):
    """Of the part that differs: the facts, which are random, and the first symbols of locate."""
    train = {text[:14] for _, text in documents(mixture, "train", 10**6)}
    for name in ASKED:
        for question in PARTS[name].questions(128, 100, seed=2026):
            assert question.text[:14] not in train


def test_a_mixture_has_equal_shares_and_teaches_its_parts(mixture):
    counts = {}
    for _, text in documents(mixture, "train", 10**6):
        kind = "[" if "[" in text else "<" if "<" in text else "=" if "=" in text else text[0]
        kind = kind if kind in "[<=" or text[1:90].isdigit() else "copy"
        counts[kind] = counts.get(kind, 0) + 1
    assert counts["="] == 2 * counts["["]  # overwrite and hops
    assert {counts[kind] for kind in "[<rag"} == {10077}
    whole = tasks.TASKS["mixture"]
    assert all(whole.teaches(part) for part in PARTS.values())
    assert not whole.teaches(None)
    assert not PARTS["locate-absolute"].teaches(PARTS["locate-growing"])
    assert tasks.TASKS["passkey-4x"].teaches(PARTS["passkey"])


@pytest.mark.parametrize(
    ("name", "length", "words"),
    [
        ("multikey", 12, r"4 characters hold 0 keys; from 1 to 676 can differ"),
        ("multikey", 9999, r"9991 characters hold 1110 keys; from 1 to 676"),
        ("overwrite", 20, r"the facts need 40 characters; there is room for 18"),
        ("copy", 3, r"length 3 is too short for a question: it needs 4"),
        ("locate-growing", 20, r"length 20 is too short for a question: it needs 29"),
        ("mixture", 128, r"a mixture has no questions of its own; name one of its tasks"),
    ],
)
def test_a_length_that_cannot_be_is_refused(name, length, words):
    with pytest.raises(ValueError, match=words):
        tasks.TASKS[name].questions(length, 1, seed=0)
