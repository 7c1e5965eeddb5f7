"""Scoring against models of known loss, and against one forward pass a target."""

import math
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data import Dataset
from evaluation import scoring
from evaluation.scoring import Prose, token_losses
from model import GPT, GPTConfig

V, L = 11, 16
SMALL = {"block_size": L, "vocab_size": V, "n_layer": 2, "n_head": 2, "n_embd": 8}
LENGTHS = (4, 8, 16, 32, 64)
DOCUMENTS = (300, 90, 411)  # the second one is too short for 64 before a span, and takes one block


@pytest.fixture(scope="module")
def dataset():
    draw = np.random.default_rng(0)
    starts = np.cumsum((0, *DOCUMENTS[:-1])).tolist()
    splits = {"val": {"documents": starts, "tokens": sum(DOCUMENTS), "sha256": "a"}}
    splits["train"] = splits["val"]
    tokens = draw.integers(V, size=sum(DOCUMENTS)).astype("<u2")
    return Dataset("made", {"vocab_size": V, "splits": splits}, tokens, tokens)


@pytest.fixture(scope="module")
def prose(dataset):
    return Prose(dataset, 64, (192, 704))


@pytest.fixture
def model():
    return make()


def make(**settings):
    torch.manual_seed(1)
    model = GPT(GPTConfig(**SMALL | settings)).eval()
    with torch.no_grad():  # far from the start, where all is uniform
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


def flat(score):
    return np.concatenate(score.scores)


class Uniform(GPT):
    def logits(self, x):
        return super().logits(x) * 0


class Bigram(GPT):
    """Knows the token before, and a table of what follows it."""

    table = torch.randn(V, V, generator=torch.Generator().manual_seed(3)).double()

    def hidden(self, idx, cache=None, last=None):
        return idx[:, -(last or 0) :, None].double()

    def logits(self, x):
        return self.table[x[..., 0].long()]


def bigram_loss(tokens, at):
    return float(-Bigram.table[int(tokens[at - 1])].log_softmax(0)[int(tokens[at])])


@pytest.mark.parametrize("length", LENGTHS)
def test_uniform_logits_lose_log_v_in_every_protocol(prose, length):
    model = Uniform(GPTConfig(**SMALL)).eval()
    for protocol in (prose.matched, prose.windows, prose.position):
        assert flat(protocol(model, length)) == pytest.approx(math.log(V), abs=1e-5)
    bins = prose.position(model, length).details["bins"]
    assert [loss for _, _, loss in bins] == pytest.approx([math.log(V)] * len(bins), abs=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_bigram_loses_what_its_table_says_and_the_same_at_every_length(dataset, prose, length):
    model = Bigram(GPTConfig(**SMALL)).eval()
    deep = [bigram_loss(dataset.val, s + i) for s in prose.spans for i in range(1, 33)]
    assert flat(prose.matched(model, length)).mean() == pytest.approx(np.mean(deep), abs=1e-5)
    wide = [bigram_loss(dataset.val, s + i) for s in prose.blocks(64)[0] for i in range(1, 65)]
    for protocol in (prose.windows, prose.position):
        assert flat(protocol(model, length)).mean() == pytest.approx(np.mean(wide), abs=1e-5)


def test_targets_lie_deep_inside_documents_and_none_twice(dataset, prose):
    borders = [0, *np.cumsum(DOCUMENTS)]
    for s in prose.spans:  # its targets are s + 1 to s + 32
        inside = [(a, b) for a, b in pairwise(borders) if a <= s < b]
        ((a, b),) = inside
        assert s + 1 - a >= 64
        assert s + 32 < b
    for starts, span in ((prose.spans, 32), prose.blocks(64)):
        targets = [s + i for s in starts for i in range(1, span + 1)]
        assert len(set(targets)) == len(targets)
    assert len(prose.spans) == 6
    assert len(prose.matched(make(), 4).scores) == 2  # documents
    assert list(map(len, prose.windows(make(), 4).scores)) == [4, 1, 6]


def alone(model, context, target):
    """The loss of one target after a context, by one forward pass."""
    ids = torch.from_numpy(np.asarray(context).astype(np.int64))
    return float(-model(ids[None])[0, -1].log_softmax(-1)[int(target)])


VARIANTS = [
    *({"rope_scaling": f"dynamic_{name}"} for name in ("linear", "ntk", "yarn")),
    {"rope_scaling": "yarn", "rope_factor": 4.0},
    *({"pos": pos} for pos in ("rope", "sinusoidal", "alibi", "none")),
    *({"pos": pos, "beyond": "interpolate"} for pos in ("learned", "sinusoidal")),
    *({"pos": pos, "window": L} for pos in ("learned", "rope")),
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(map(str, s.values())))
@torch.no_grad()
def test_matched_is_one_forward_pass_a_target_with_that_much_before_it(dataset, prose, settings):
    window = settings.get("window")
    model = make(**{name: value for name, value in settings.items() if name != "window"})
    for length in (4, 16, 32):
        slow = []
        for s in prose.spans:
            for at in range(s + 1, s + 33):
                seen = min(length, window or length)
                slow.append(alone(model, dataset.val[at - seen : at], dataset.val[at]))
        slow = np.reshape(slow, (-1, 32)).mean(1)
        assert flat(prose.matched(model, length, window)) == pytest.approx(slow, abs=1e-5)


@pytest.mark.parametrize("settings", VARIANTS[:10], ids=lambda s: "-".join(map(str, s.values())))
@torch.no_grad()
def test_windows_and_positions_are_one_forward_pass_a_target(dataset, prose, settings):
    model, length = make(**settings), 64
    starts, _ = prose.blocks(length)
    slow = np.empty((len(starts), length))
    for b, s in enumerate(starts):
        for i in range(length):
            # A dynamic factor follows the window, so that all of the window must be read.
            ids = torch.from_numpy(dataset.val[s : s + length].astype(np.int64))
            slow[b, i] = -model(ids[None])[0, i].log_softmax(-1)[int(dataset.val[s + i + 1])]
    assert flat(prose.windows(model, length)) == pytest.approx(slow.mean(1), abs=1e-5)
    bins = prose.position(model, length).details["bins"]
    assert [(a, b) for a, b, _ in bins][:5] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 5)]
    assert bins[-1][1] == length - 1
    assert sum(b - a + 1 for a, b, _ in bins) == length
    for a, b, loss in bins:
        assert loss == pytest.approx(slow[:, a : b + 1].mean(), abs=1e-5)


@torch.no_grad()
def test_matched_at_1x_is_what_cropping_to_the_block_size_gives(dataset, prose, model):
    """As nanoGPT's generate reads: all there is before the target, cropped to block_size."""
    losses = []
    for s in prose.spans:
        document = max(a for a, _ in dataset.documents("val") if a <= s)
        for at in range(s + 1, s + 33):
            context = dataset.val[document:at]
            cropped = context if len(context) <= L else context[-L:]
            losses.append(alone(model, cropped, dataset.val[at]))
    assert flat(prose.matched(model, L)).mean() == pytest.approx(np.mean(losses), abs=1e-5)


@torch.no_grad()
def test_past_the_trained_length_a_target_has_at_most_a_64th_less(dataset, model, monkeypatch):
    monkeypatch.setattr(scoring, "FINE", 8)  # so that 64 is read in strides of 8
    prose, losses = Prose(dataset, 64, (192, 704)), []
    for s in prose.spans:
        for first in range(s + 1, s + 33, 8):
            window = dataset.val[first + 7 - 64 : first + 7].astype(np.int64)
            logp = model(torch.from_numpy(window)[None])[0].log_softmax(-1)
            targets = dataset.val[first : first + 8].astype(int)
            losses += [-logp[56 + i, t].item() for i, t in enumerate(targets)]
    assert flat(prose.matched(model, 64)).mean() == pytest.approx(np.mean(losses), abs=1e-5)


def test_what_cannot_read_further_says_so(prose):
    learned = make(pos="learned")
    assert prose.matched(learned, 16).scores
    assert prose.matched(learned, 17).scores is None
    assert prose.windows(learned, 32).scores is None
    assert prose.position(learned, 64).details["bins"] is None


def test_a_sliding_window_scores_the_same_at_every_length_beyond(prose):
    model = make(pos="learned")
    at_1x = flat(prose.matched(model, 16)).tolist()
    assert flat(prose.score(model, "matched", 16, L)).tolist() == at_1x
    assert flat(prose.score(model, "matched", 64, L)).tolist() == at_1x
    for protocol in ("windows", "position"):
        assert prose.score(model, protocol, 16, L).scores
        assert prose.score(model, protocol, 64, L).scores is None


def test_equal_digests_mean_equal_targets(dataset, prose, model):
    digests = [prose.matched(model, length).targets for length in LENGTHS]
    assert len(set(digests)) == 1
    assert prose.windows(model, 16).targets == prose.windows(model, 64).targets
    assert prose.windows(model, 48).targets != prose.windows(model, 64).targets  # 48 of each 64
    assert Prose(dataset, 64, (96, 704)).matched(model, 16).targets != digests[0]


def test_lengths_are_scored_as_far_as_the_targets_leave_room(prose):
    assert prose.problem(64) == ""
    assert prose.problem(65) == "targets of made have 64 tokens before them (see --longest)"


def documents(*sizes):
    """(start, end) of documents of so many tokens before and after a span."""
    ends = np.cumsum([size + scoring.SPAN + 1 for size in sizes]).tolist()
    return list(zip([0, *ends], ends, strict=False))


@pytest.mark.parametrize(
    ("sizes", "trained", "limit", "room"),
    [
        ((153204, 159500, 174634, 177481), 256, 16384, 16384),  # 64x, of the corpus of the README
        ((153204, 159500, 174634, 177481), 256, 10**6, 131072),
        ((9000, 9000, 5000, 4095, 80), 32, 16384, 2048),  # four documents hold it, and not 4096
        ((9000, 9000, 5000, 4096, 80), 32, 16384, 4096),
        ((9000, 9000, 80, 80), 256, 16384, 8192),  # two hold 1x: as much as those two do
        ((9000, 300, 80, 80), 256, 16384, 256),
        ((310,) * 3 + (305,), 300, 16384, 300),  # no power of two from 300 to 305
        ((100, 90), 300, 16384, 64),  # none holds 1x: the longest one
        ((9000, 9000, 9000), 32, 16384, 8192),  # all there are
        ((25000,) * 4, 20000, 16384, 20000),  # never less than 1x
    ],
)
def test_the_room_before_the_targets_follows_from_the_documents(sizes, trained, limit, room):
    assert scoring.room_before_targets(documents(*sizes), trained, limit) == room


def test_documents_without_a_target_are_refused():
    with pytest.raises(ValueError, match="no held-out document is longer than 33 tokens"):
        scoring.room_before_targets(documents(0, 0), 16, 16384)


def opened(dataset, trained=L, **counts):
    defaults = {name: default for name, (default, _) in Prose.counts.items()}
    request = scoring.Request("prose", None, lambda: dataset, trained, defaults | counts)
    return Prose.open(request)


def test_models_of_any_trained_length_have_the_same_targets(dataset):
    """All three documents hold 32 tokens and a span."""
    sets = {opened(dataset, trained).target_set for trained in (4, L, 32)}
    assert len(sets) == 1
    assert opened(dataset).longest == 32
    assert opened(dataset, trained=100).longest == 256  # which two documents alone hold
    assert opened(dataset, longest=8).longest == L


def test_blocks_are_the_same_for_all_lengths_that_they_hold(dataset, monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 32)
    prose = Prose(dataset, 64, (192, 704))
    starts = [prose.blocks(length)[0].tolist() for length in (4, 16, 32)]
    assert starts[0] == starts[1] == starts[2]
    wide, covered = prose.blocks(64)  # a window that is longer than a block is its own
    assert covered == 64
    assert len(wide) == 11
    assert prose.windows(make(), 64).scores


def test_logits_in_pieces_and_windows_in_batches_change_nothing(model, monkeypatch):
    ids = torch.randint(V, (5, 33))
    whole = token_losses(model, ids[:, :-1], ids[:, -7:])
    monkeypatch.setattr(scoring, "LOGITS", 4 * V)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 70)
    assert torch.allclose(token_losses(model, ids[:, :-1], ids[:, -7:]), whole, atol=1e-6)
    assert whole.shape == (5, 7)


def test_what_is_not_scored_has_no_loss_and_the_mode_stays(model):
    model.train()
    ids = torch.randint(V, (2, 9))
    y = ids[:, 1:].clone()
    y[:, ::2] = -1
    losses = token_losses(model, ids[:, :-1], y)
    assert model.training
    assert (losses[:, ::2] == 0).all()
    assert (losses[:, 1::2] > 0).all()


def test_held_out_loss_is_a_mean_over_what_is_scored(dataset, model):
    task = {"scored": [1, 2, 3], "after": 4, "every": 1}
    dataset = Dataset("made", dataset.meta | {"task": task}, dataset.train, dataset.val)
    held = scoring.HeldOut(model, dataset, 128)
    found = held.losses(model)
    for ratio, name in {1: "val/loss", 2: "val/loss_2x", 4: "val/loss_4x"}.items():
        losses = []
        for row in held.rows[ratio]:
            y = row[1:].tolist()
            logp = model(row[None, :-1])[0].log_softmax(-1)
            counts = [t for t in range(len(y)) if y[t] in (1, 2, 3) and 4 in y[:t]]
            losses += [-logp[t, y[t]].item() for t in counts]
        assert found[name] == pytest.approx(np.mean(losses), abs=1e-5)


class Codes:
    """Characters as their ASCII codes."""

    kind = "char"

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)


class Reader(GPT):
    """Predicts the key that followed `[` at its first occurrence, if it is shown."""

    def hidden(self, idx, cache=None, last=None):
        scores = torch.zeros(*idx.shape, 128)
        for b, row in enumerate(idx.tolist()):
            text = bytes(row).decode()
            key = text[text.index("[") + 1 :][:4] if text.count("[") == 2 else "none"
            for i, digit in enumerate(key):
                scores[b, len(row) - 4 + i, ord(digit)] = 1
        return scores[:, -(last or 0) :]

    def logits(self, x):
        return x


def test_a_length_without_room_for_a_question_is_named():
    keys = scoring.Retrieval(Codes(), 40)
    assert keys.problem(10) == ""
    assert keys.problem(9).startswith("length 9 is too short for a question")


@torch.no_grad()
def test_answers_of_logits_that_are_not_finite_are_not_wrong_but_missing():
    model = make()
    x, y = torch.randint(V, (3, 9)), torch.randint(V, (3, 4))
    whole = scoring.answered(model, x, y)
    assert set(whole.flatten().tolist()) <= {0, 1}
    model.wte.weight[x[1, 0]] = math.inf
    found = scoring.answered(model, x, y)
    assert found[1].isnan().any()
    assert not scoring.Score([[1.0], [math.nan]], "", 2).is_finite
    assert scoring.Score([[1.0], [0.5]], "", 2).is_finite
    assert scoring.Score(None, "", 2).is_finite


@pytest.mark.parametrize("length", [64, 256])
def test_keys_are_retrieved_by_a_model_that_is_shown_them_and_by_no_other(length):
    keys = scoring.Retrieval(Codes(), 40)
    reader = Reader(GPTConfig(**SMALL | {"block_size": 64, "vocab_size": 128}))
    score = keys.score(reader, "passkey", length)
    assert len(score.scores) == score.count == 40
    assert flat(score).mean() == 1
    n = score.details["beyond_window_n"]
    assert n == (0 if length == 64 else pytest.approx(30, abs=1))
    slid = flat(keys.score(reader, "passkey", length, window=64))
    assert slid[:n].sum() == 0
    assert slid[n + 1 :].all()


def test_a_window_shows_the_last_tokens():
    idx = torch.arange(10).view(2, 5)
    assert scoring.visible(idx, 2).tolist() == [[3, 4], [8, 9]]
    assert scoring.visible(idx, 9).tolist() == scoring.visible(idx, None).tolist() == idx.tolist()


def test_tasks_are_scored_by_name():
    assert scoring.task_names()[:2] == ["prose", "passkey"]
    assert scoring.task_class("prose") is Prose
    assert scoring.task_class("passkey") is scoring.Retrieval
    with pytest.raises(ValueError, match=r"task is 'poems'; it must be one of prose, passkey"):
        scoring.task_class("poems")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"n_layer": 1, "n_embd": 8}, 131072),
        ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256}, 4096),
        ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256, "pos": "alibi"}, 4096),
    ],
    ids=["131072 tokens of a tiny model", "16x of a 256 model", "16x with a bias"],
)
def test_long_contexts_fit_into_4_gib(settings, length, tmp_path):
    """In a process of its own, whose largest memory is measured."""
    code = f"""
        import resource, numpy as np, torch
        from data import Dataset
        from evaluation.scoring import Prose
        from model import GPT, GPTConfig
        size = {length} + 40
        split = {{"documents": [0], "tokens": size, "sha256": "a"}}
        tokens = np.random.default_rng(0).integers(79, size=size).astype("<u2")
        dataset = Dataset("made", {{"splits": {{"val": split, "train": split}}}}, tokens, tokens)
        prose = Prose(dataset, {length}, (32, {length}))
        model = GPT(GPTConfig(**{SMALL | settings | {"vocab_size": 79}!r})).eval()
        for protocol in (prose.matched, prose.windows, prose.position):
            assert protocol(model, {length}).scores
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    root = Path(scoring.__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    print(f"{float(done.stdout):.2f} GiB")
    assert float(done.stdout) < 4


@pytest.mark.parametrize(("by_character", "expected"), [(False, [1, 0, 0]), (True, [1, 0.75, 0])])
def test_an_answer_counts_whole_or_by_its_characters(by_character, expected, monkeypatch):
    right = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]])
    monkeypatch.setattr(scoring, "answered", lambda model, x, y: right)
    keys = scoring.Retrieval(Codes(), 3)
    monkeypatch.setattr(type(keys.task), "by_character", by_character)
    assert keys.score(make(), "passkey", 40).scores == [[x] for x in expected]
