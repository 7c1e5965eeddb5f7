"""Sampling as a user meets it: right lengths, text alone on stdout, an answer to every mistake."""

import io
import re
import sys

import pytest
import torch

import sample
from data.tokenizer import Char, train_bpe
from model import GPT, GPTConfig
from runtime import checkpoint, errors

TEXT = "to be or not to be, that is the question:\n"
SMALL = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}


@pytest.fixture
def model_in(tmp_path):
    """Make a run folder with an untrained model, by encoding and tokenizer."""

    def make(pos: str = "rope", tokenizer=None, **more) -> str:
        tokenizer, folder = tokenizer or Char(TEXT), tmp_path / pos
        folder.mkdir()
        torch.manual_seed(0)
        config = GPTConfig(**SMALL | {"vocab_size": tokenizer.vocab_size, "pos": pos} | more)
        state = checkpoint.describe(GPT(config))
        checkpoint.save(folder, state | {"iter": 0, "tokenizer": tokenizer.to_meta()})
        return f"--out_dir={folder}"

    return make


def test_the_text_has_the_length_asked_for_and_stdout_has_nothing_else(model_in, capsys):
    sample.main([model_in(), "--max_len=4x", "--prompt=to be"])
    text, said = capsys.readouterr()
    assert text.startswith("to be")
    assert len(text) == 4 * 16 + 1  # and the line break that ends it
    assert "[16 tokens: the trained length ends here]" in said
    assert re.search(r"\[59 tokens in \d+\.\d s, \d+ a second, 1 thread\]", said)


@pytest.mark.parametrize(
    "flags",
    [
        ["--max_len=16"],
        ["--max_len=33", "--rope_scaling=yarn"],
        ["--max_len=4x", "--rope_scaling=linear", "--rope_factor=8"],
        ["--max_len=4x", "--rope_scaling=dynamic_yarn"],
        ["--max_len=4x", "--rope_scaling=dynamic_ntk"],
        ["--max_len=4x", "--beyond=slide"],
        ["--max_len=4x", "--temperature=0"],
        ["--max_len=2x", "--top_k=3", "--top_p=0.9", "--temperature=1e-45"],
        ["--max_len=2x", "--top_k=1000000"],
        ["--max_len=2x", "--top_p=0"],
    ],
)
def test_every_way_past_the_trained_length(model_in, capsys, flags):
    sample.main([model_in(), *flags])
    length = {"16": 16, "33": 33, "2x": 32, "4x": 64}[flags[0].partition("=")[2]]
    assert len(capsys.readouterr().out) == length + 1


@pytest.mark.parametrize("scaling", ["none", "linear", "ntk", "yarn", "dynamic_yarn"])
def test_the_text_is_that_of_full_forward_passes(model_in, capsys, scaling):
    """Greedy text against an argmax chain, at the factor that `auto` promises."""
    flag = model_in()
    sample.main([flag, "--max_len=3x", "--temperature=0", f"--rope_scaling={scaling}"])
    folder, static = flag.partition("=")[2], scaling in ("linear", "ntk", "yarn")
    factor = {"rope_factor": 3.0} if static else {}
    model, _ = checkpoint.load(folder, rope_scaling=scaling, **factor)
    tokenizer = Char(TEXT)
    ids = tokenizer.encode("\n").tolist()
    while len(ids) < 48:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert capsys.readouterr().out == tokenizer.decode(ids) + "\n"


def test_a_seed_decides_and_samples_differ(model_in, capsys):
    flags = [model_in(), "--num_samples=2", "--max_len=40"]
    sample.main(flags)
    first, said = capsys.readouterr()
    sample.main(flags)
    assert capsys.readouterr().out == first
    assert first[:41] != first[41:]
    assert "[sample 2 of 2]" in said
    sample.main([*flags, "--seed=7"])
    assert capsys.readouterr().out != first


@pytest.mark.parametrize("pos", ["sinusoidal", "alibi", "none"])
def test_other_encodings_read_on_too(model_in, capsys, pos):
    sample.main([model_in(pos), "--max_len=4x"])
    assert len(capsys.readouterr().out) == 65


def test_learned_refuses_in_one_line_and_works_with_its_two_policies(model_in, capsys):
    flag = model_in("learned")
    assert mistake([flag, "--max_len=4x"]) == (
        "learned positions end at 16, the trained length; asked for 64. Ask for 16 at most, set "
        "beyond to 'interpolate', show a window (sample.py --beyond slide), or take a model with "
        "pos 'rope'"
    )
    for policy in ("slide", "interpolate"):
        sample.main([flag, "--max_len=4x", f"--beyond={policy}"])
        assert len(capsys.readouterr().out) == 65
    sample.main([flag, "--max_len=1x"])


def test_byte_pairs_stream_whole_characters(model_in, capsys):
    tokenizer = train_bpe([TEXT * 3 + "naïve ☃ " * 20], 270)
    flag = model_in(tokenizer=tokenizer, vocab_size=tokenizer.vocab_size + 7)  # padded, as GPT-2's
    sample.main([flag, "--max_len=2x", "--prompt=naïve ☃ <|endoftext|>"])
    assert capsys.readouterr().out.startswith("naïve ☃ <|endoftext|>")
    sample.main([flag, "--prompt="])
    assert "starting from the end-of-text token" in capsys.readouterr().err


def mistake(argv: list[str]) -> str:
    with pytest.raises(Exception, match=r"^.+$") as caught:  # one line
        sample.main(argv)
    assert errors.exit_code(caught.value) in (errors.USAGE, errors.DATA, errors.CHECKPOINT)
    return str(caught.value)


def test_scaling_what_does_not_rotate_is_refused(model_in):
    assert "rope_scaling is 'yarn'; it must be left out" in mistake(
        [model_in("alibi"), "--rope_scaling=yarn"]
    )


def test_a_prompt_file_must_be_utf8(model_in, tmp_path, capsys):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"to \xff")
    assert "prompt.txt is not UTF-8 at byte 3" in mistake([model_in(), f"--prompt_file={file}"])
    file.write_text("to be")
    sample.main([f"--out_dir={tmp_path / 'rope'}", f"--prompt_file={file}"])
    assert capsys.readouterr().out.startswith("to be")


def test_an_empty_prompt_is_the_start_of_a_document_and_said_so(model_in, tmp_path, capsys):
    flag = model_in()
    sample.main([flag, "--prompt="])
    text, said = capsys.readouterr()
    assert len(text) == 17
    assert text[0] == "\n"
    assert "the prompt is empty: starting from '\\n'" in said
    sample.main([flag])
    assert capsys.readouterr().out == text


def test_a_text_without_line_breaks_can_be_sampled(model_in, capsys):
    sample.main([model_in(tokenizer=Char("no break"))])
    assert len(capsys.readouterr().out) == 17


def test_a_prompt_file_loses_its_mark_and_its_carriage_returns(model_in, tmp_path, capsys):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfto be\r\nor")
    sample.main([model_in(), f"--prompt_file={file}"])
    assert capsys.readouterr().out.startswith("to be\nor")


@pytest.mark.parametrize(("flags", "factor"), [(["4x"], 4), (["16x"], 16), (["20"], 4)])
def test_what_was_tuned_at_a_factor_is_never_sampled_below_it(model_in, capsys, flags, factor):
    tuned = {"block_size": 32, "rope_train_len": 8, "rope_scaling": "yarn"}
    sample.main([model_in(**tuned), f"--max_len={flags[0]}"])
    assert f"rope_scaling yarn x {factor}," in capsys.readouterr().err


def test_weights_without_a_run_can_be_sampled(model_in, tmp_path, capsys):
    state = checkpoint.read(model_in().partition("=")[2])
    checkpoint.save(tmp_path, {name: state[name] for name in ("config", "model", "tokenizer")})
    sample.main([f"--out_dir={tmp_path}"])
    assert f"{tmp_path}/ckpt.pt: pos rope, trained at 16" in capsys.readouterr().err


def test_the_newest_run_is_taken_and_none_is_named(model_in, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert mistake([]) == "no run in out/ yet; python train.py configs/rope.py makes one"
    flag = model_in()
    (tmp_path / "out").mkdir()
    (tmp_path / "rope").rename(tmp_path / "out/rope")
    sample.main([])
    assert capsys.readouterr().err.startswith("out/rope/ckpt.pt, step 0")
    assert "No such file" in mistake([flag])


def test_a_reader_that_goes_away_is_no_error(model_in, monkeypatch):
    class Closed(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

        def reconfigure(self, errors):
            pass

        def fileno(self):
            return null.fileno()

    with open("/dev/null", "w") as null:
        monkeypatch.setattr(sys, "stdout", Closed())
        monkeypatch.setattr(sys, "argv", ["sample.py", model_in()])
        with pytest.raises(SystemExit) as ended:
            errors.run(sample.main)
    assert ended.value.code == errors.DONE


def test_a_run_may_be_named_without_a_flag(model_in, capsys):
    sample.main([model_in().partition("=")[2]])
    assert "trained at 16" in capsys.readouterr().err


def test_a_prompt_can_come_from_stdin(model_in, tmp_path, monkeypatch, capsys):
    (tmp_path / "stdin").write_text("to be")
    original = open
    monkeypatch.setattr(
        "builtins.open",
        lambda name, *how: original(tmp_path / "stdin" if name == "/dev/stdin" else name, *how),
    )
    sample.main([model_in(), "--prompt_file=-"])
    assert capsys.readouterr().out.startswith("to be")


def test_4x_counts_from_the_length_of_the_first_training(model_in, capsys):
    """The default goes to the length of the last one."""
    tuned = {"block_size": 32, "rope_train_len": 8, "rope_scaling": "yarn"}
    run = model_in(**tuned)
    for flags, new in ((["--max_len=2x"], 15), ([], 31)):
        sample.main([run, *flags])
        assert f"[{new} tokens in " in capsys.readouterr().err


def test_a_prompt_that_begins_with_a_dash_is_explained(model_in):
    assert mistake([model_in(), "--prompt", "-x"]).endswith("write it as --flag='VALUE'")
