"""The tasks that ask for position, against solvers that read nothing but the text."""

import re

import numpy as np
import pytest

from data import load, tasks
from data.prepare import prepare
from data.tokenizer import from_meta

PARTS = tasks.PARTS
ASKED = [name for name in PARTS if name != "passkey"]
NAMED = ["multikey", "overwrite", "hops"]
LENGTHS = (128, 256, 512, 1024)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def facts_of(text):
    """(name, value or earlier name) of every fact, in the order of the text."""
    return re.findall(r"=([A-F])(\d{4}|[A-F])", text)


def values_of(text):
    values = {}
    for name, value in facts_of(text):
        values[name] = values.get(value, value)
    return values


def last_value(text):
    """Of multikey, overwrite and hops: a question ends in the name and all digits but one."""
    name = re.search(r"\?([A-F])\d{3}$", text)[1]
    return values_of(text)[name]


def copy(text):
    original, repeated = text.lstrip(LETTERS).split("?")
    return (original[: len(repeated) + 1])[-16:]


def place(text):
    return text["ABCDEF".index(text[-1])]


def number(symbol):
    return int(symbol) if symbol.isdigit() else "abcde".index(symbol)


def series(far):
    def solve(text):
        symbols = [number(c) for c in text if c != "?"]
        return str((symbols[far(len(symbols))] + symbols[-1]) % 5)

    return solve


SOLVERS = dict.fromkeys(NAMED, last_value) | {
    "copy": copy,
    "locate-absolute": place,
    "locate-recurrent": series(lambda i: i - 13),
    "locate-growing": series(lambda i: i // 2),
}


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


@pytest.mark.parametrize("name", NAMED)
def test_evidence_lies_at_all_depths_and_ends_where_it_says(name):
    asked = PARTS[name].questions(1024, 100, seed=0)
    depths = [question.depth for question in asked]
    assert min(depths) < 0.2
    assert max(depths) > 0.8
    assert sum(question.last < 1024 - 128 for question in asked) > 60
    for question in asked:
        fact = facts_of(question.text[: question.last + 1])[-1]
        assert fact[0] == question.text[-4]
        assert question.text[: question.last + 1].endswith("=" + "".join(fact))


@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("name", ["copy", "locate-absolute", "locate-recurrent", "locate-growing"])
def test_another_symbol_at_the_end_of_the_evidence_changes_the_answer(name, length):
    for question in PARTS[name].questions(length, 20, seed=0):
        before, changed = question.text[: question.last], question.text[question.last]
        others = "abcde" if changed.isalpha() else "01234"
        other = others[(number(changed) + 1) % 5]
        text = before + other + question.text[question.last + 1 :]
        assert SOLVERS[name](text) != question.answer


@pytest.mark.parametrize(("name", "count"), [("multikey", 4), ("overwrite", 6), ("hops", 6)])
def test_the_load_stays_and_the_distance_grows(name, count):
    for length in LENGTHS:
        for question in PARTS[name].questions(length, 20, seed=0):
            found = facts_of(question.text)
            values = [value for _, value in found if value.isdigit()]
            assert len(found) == count
            assert len(set(values)) == len(values)  # one alone is right
            others = len(values) if name != "hops" else 2
            assert PARTS[name].chance == pytest.approx(1 / others)


def test_overwritten_keys_have_another_value_first():
    for question in PARTS["overwrite"].questions(256, 50, seed=0):
        values = [value for name, value in facts_of(question.text) if name == question.text[-4]]
        assert len(values) == len(set(values)) == 2
        assert question.answer == values[1]


def test_questions_have_one_and_two_hops():
    steps = []
    for question in PARTS["hops"].questions(256, 100, seed=0):
        values, name, hops_of = dict(facts_of(question.text)), question.text[-4], 0
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


def kind_of(text):
    """Which task a training document is of."""
    if "[" in text:
        return "passkey"
    if "=" in text:
        names = [name for name, _ in facts_of(text)]
        if any(value.isalpha() for _, value in facts_of(text)):
            return "hops"
        return "lookup" if len(names) == len(set(names)) else "overwrite"
    if re.match(r"\d{6}([a-z]|\?[A-F])", text):
        return "locate-absolute"
    if re.match(r"([a-e]\d){7}\?", text):
        return "locate-recurrent"
    return "locate-growing" if re.match(r"[a-e]\d\?[a-e]", text) else "copy"


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_loss_counts_exactly_what_the_text_determines(mixture, split):
    """Each scored character is that of the solver, and no determined one is left out."""
    seen = set()
    for tokens, text in documents(mixture, split, 400):
        assert len(text) == 129
        kind = kind_of(text)
        seen.add(kind)
        if kind == "passkey":  # it has tests of its own
            continue
        scored = np.flatnonzero(mixture.mask_targets(tokens[None, 1:])[0] >= 0) + 1
        digits = [i for i, c in enumerate(text) if c.isdigit() and "?" in text[:i]]
        digits = [i for i in digits if text[:i].rfind("?") > text[:i].rfind("=")]
        assert scored.tolist() == digits
        check_document(kind, text)
    assert seen == {*PARTS} - {"multikey"} | {"lookup"}


def check_document(kind, text):
    """Solve every answer of a training document."""
    if kind in ("hops", "overwrite", "lookup"):
        for answer in re.finditer(r"\?([A-F])(\d{4})", text):
            assert values_of(text[: answer.start()])[answer[1]] == answer[2]
    elif kind == "locate-absolute":
        answers = re.findall(r"\?([A-F])(\d)", text)
        assert sorted(name for name, _ in answers) == list("ABCDEF")
        assert all(place(text[:6] + name) == digit for name, digit in answers)
    elif kind == "copy":
        facts, answers = text.split("?")
        assert answers == facts.lstrip(LETTERS)
        assert 16 <= len(answers) <= 64
    else:
        start = text.index("?") + 1
        for i in range(start + (start % 2 == 0), len(text)):
            if text[i].isdigit():
                assert SOLVERS[kind](text[:i]) == text[i]


def random_part(name, text):
    """What is drawn in a text: its facts in order, or its first symbols."""
    if name in NAMED:
        return tuple(facts_of(text))
    return {"copy": text.lstrip(LETTERS)[:16], "locate-absolute": text[:24]}.get(name, text[:48])


@pytest.mark.parametrize("name", ASKED)
def test_no_question_is_in_the_training_documents(name):
    """Of any length: compared is what is drawn, not the letters around it.

    Of locate-absolute also some letters: 10,000 headers of six digits hold some of 100 others.
    """
    train = [document.text for document in PARTS[name].corpus()["train"]]
    drawn = {random_part(name, text) for text in train}
    assert len(drawn) > 0.99 * len(train)
    for length in LENGTHS:
        asked = PARTS[name].questions(length, 100, seed=2026)
        assert not drawn & {random_part(name, question.text) for question in asked}


def test_a_mixture_has_equal_shares_and_teaches_its_parts(mixture):
    counts = dict.fromkeys([*PARTS, "lookup"], 0)
    for _, text in documents(mixture, "train", 10**6):
        counts[kind_of(text)] += 1
    assert {counts[kind] for kind in ("passkey", "copy")} == {10077}
    assert {counts[f"locate-{kind}"] for kind in ("recurrent", "absolute", "growing")} == {10077}
    assert counts["lookup"] + counts["overwrite"] + counts["hops"] == 3 * 10077
    whole = tasks.TASKS["mixture"]
    assert all(whole.teaches(part) for part in PARTS.values())
    assert not whole.teaches(None)
    assert not PARTS["locate-recurrent"].teaches(PARTS["locate-growing"])
    assert not PARTS["multikey"].teaches(PARTS["overwrite"])
    assert tasks.TASKS["passkey-4x"].teaches(PARTS["passkey"])


@pytest.mark.parametrize(
    ("name", "length", "words"),
    [
        ("multikey", 20, r"the facts need 24 characters; there is room for 15"),
        ("overwrite", 20, r"the facts need 36 characters; there is room for 15"),
        ("copy", 3, r"length 3 is too short for a question: it needs 4"),
        ("locate-absolute", 7, r"6 digits and a question do not fit into 5"),
        ("locate-growing", 129, r"length 129 does not fit locate-growing: it must be even"),
        ("locate-recurrent", 14, r"length 14 does not fit .*: it must be even, and at least 16"),
        ("mixture", 128, r"a mixture has no questions of its own; name one of its tasks"),
    ],
)
def test_a_length_that_cannot_be_is_refused(name, length, words):
    with pytest.raises(ValueError, match=words):
        tasks.TASKS[name].questions(length, 1, seed=0)
