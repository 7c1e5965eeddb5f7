"""Rows 48, 49: what people mistype, through the whole command: one line, its exit code, no model.

Every case is a real command in this process: `errors.run` prints and leaves. A
config, a flag or a prompt is refused before any model is built.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate
import sample
import train
from data import prepare
from data.tokenizer import Char
from model import GPT, GPTConfig, sample_tokens
from runtime import checkpoint, errors

ROOT = Path(__file__).parent.parent.parent
TEXT = "to be or not to be, that is the question:\n"


class BuiltError(BaseException):
    """No handler in the code knows it."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, str]:
    """Run folders with an untrained model each, by encoding."""
    folders = {}
    for pos in ("rope", "alibi", "learned"):
        folders[pos], tokenizer = tmp_path_factory.mktemp(pos), Char(TEXT)
        config = GPTConfig(
            block_size=16, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16, pos=pos
        )
        state = checkpoint.describe(GPT(config)) | {"iter": 0, "tokenizer": tokenizer.to_meta()}
        checkpoint.save(folders[pos], state)
    return folders


@pytest.fixture
def answer(monkeypatch, capsys, tmp_path):
    """Run a command's `main` as the shell does; return its exit code and its one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "DATA", tmp_path / "data")

    def ask(main, argv: list[str], built: bool = False) -> tuple[int, str]:
        def build(*_):
            raise BuiltError

        if not built:
            monkeypatch.setattr(GPT, "__init__", build)
        monkeypatch.setattr(sys, "argv", ["command", *argv])
        with pytest.raises(SystemExit) as ended:
            errors.run(main)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return ended.value.code, err

    return ask


FLAGS = [
    (["--n_layr=3"], "did you mean n_layer?"),
    (["--zzz=3"], "--help lists all settings"),
    (["--n_layer=3.5"], "n_layer is 3.5; it must be of type int"),
    (["--n_layer=True"], "n_layer is True; it must be of type int"),
    (["--n_layer=six"], "--n_layer: n_layer cannot be 'six'"),
    (["--n_layer=٤"], "n_layer cannot be"),
    (["--n_layer=0"], "n_layer is 0; it must be at least 1"),
    (["--n_layer"], "--n_layer needs a value"),
    (["--n_layer", "--compile"], "--n_layer needs a value"),
    (["--n_layer=1", "--n_layer=2"], "n_layer is set twice"),
    (["--n_layer=__import__('os')"], "n_layer cannot be"),
    (["--compile=yes"], "compile cannot be 'yes'"),
    (["--compile=1"], "compile is 1; it must be of type bool"),
    (["--dropout=1.5"], "dropout is 1.5; it must be from 0 to below 1 (--dropout)"),
    (["--dropout=1e999"], "dropout is inf; it must be a finite number"),
    (["--learning_rate=-1"], "learning_rate is -1.0; it must be 0 or more"),
    (["--learning_rate=1/0"], "learning_rate cannot be '1/0'"),
    (["--block_size=0"], "block_size is 0"),
    (["--block_size=-8"], "block_size is -8"),
    (["--n_embd=127"], "n_embd is 127; it must be a multiple of n_head (4)"),
    (["--n_kv_head=3"], "n_kv_head is 3; it must be a divisor of n_head (4)"),
    (["--n_head=2", "--n_embd=6"], "head_dim is 3; rotation needs an even number"),
    (["--pos=rotary"], "pos is 'rotary'; it must be one of learned, sinusoidal, rope"),
    (["--rope_scaling=yam"], "rope_scaling is 'yam'; it must be one of none, linear, ntk"),
    (["--rope_scaling=dynamic_none"], "rope_scaling is 'dynamic_none'"),
    (["--rope_layout=full"], "rope_layout is 'full'"),
    (["--rope_fraction=0"], "rope_fraction is 0.0"),
    (["--rope_scaling=yarn", "--rope_factor=0.5"], "rope_factor is 0.5; it must be at least 1"),
    (["--rope_factor=4"], "rope_factor is 4.0; it must be left out"),
    (["--rope_scaling=dynamic_ntk", "--rope_factor=4"], "rope_factor is 4.0; it must be left out"),
    (["--rope_scaling=ntk", "--beta_fast=16"], "beta_fast is 16.0; it must be left out"),
    (["--rope_scaling=yarn", "--ramp=up"], "ramp is 'up'"),
    (["--rope_scaling=yarn", "--beta_slow=40"], "beta_slow is 40.0"),
    (["--pos=alibi", "--rope_scaling=yarn"], "rope_scaling is 'yarn'; it must be left out"),
    (["--pos=learned", "--rope_theta=500"], "rope_theta is 500.0; it must be left out"),
    (["--beyond=interpolate"], "beyond is 'interpolate'; it must be left out"),
    (["--device=tpu"], "device is 'tpu'"),
    (["--dtype=float8"], "dtype is 'float8'"),
    (["--wandb=maybe"], "wandb is 'maybe'"),
    (["--name=a/b"], "name is 'a/b'; it must be letters"),
    (["--name=.."], "name is '..'"),
    (["--seed=-1"], "seed is -1"),
    (["--beta1=1"], "beta1 is 1.0"),
    (["--eval_tokens=0"], "eval_tokens is 0"),
    (["--compile", "yes"], "'yes' is neither a --setting nor a config file (.py)"),
    (["-n_layer=3"], "'-n_layer=3' is neither a --setting nor a config file (.py)"),
    (["--resume", "--overwrite"], "overwrite is True; it must be left out beside resume"),
    (["nowhere.py"], "nowhere.py: No such file or directory"),
    # what the list above did not have
    (["--"], "there is no setting ''"),
    (["--n_layer=="], "n_layer cannot be '='; it must be of type int"),
    (["--n_layer= 3"], "n_layer cannot be ' 3'; it must be of type int"),
    (["--n_layer="], "n_layer cannot be ''; it must be of type int"),
    (["--n_layer=1e400"], "n_layer is inf; it must be of type int"),
    (["--n_layer=10000001"], "n_layer is 10000001; it must be at most 10,000,000"),
    (["--n_embd=99999999999999999999", "--n_head=1"], "n_embd is 99999999999999999999; it must"),
    (["--batch_size=9999999999"], "batch_size is 9999999999; it must be at most 10,000,000"),
    (["--max_iters=9999999999999999999"], "max_iters is 9999999999999999999; it must be below"),
    (["--n_head=0"], "n_head is 0; it must be at least 1"),
    (["--seed=007"], "seed cannot be '007'; it must be of type int"),
    (["--learning_rate=nan"], "learning_rate cannot be 'nan'; it must be of type float"),
    (["--learning_rate=1e999-1e999"], "learning_rate is nan; it must be a finite number"),
    (["--learning_rate=1e-3j"], "learning_rate cannot be '1e-3j'"),
    (["--rope_theta=1"], "rope_theta is 1.0; it must be above 1 (--rope_theta)"),
    (["--rope_theta=1e308"], "rope_theta is 1e+308; it must be of a size from 1e-15 to 1e15"),
    (["--rope_fraction=0.001"], "head_dim is 0; rotation needs an even number of channels: n_embd"),
    (["--rope_fraction=2"], "rope_fraction is 2.0; it must be above 0, at most 1"),
    (["--rope_scaling=yarn", "--attention_factor=0"], "attention_factor is 0.0; it must be"),
    (["--rope_scaling=yarn", "--beta_slow=1e-320"], "beta_slow is 1e-320; it must be of a size"),
    (["--rope_scaling=ntk", "--n_head=64"], "head_dim is 2; scaling ntk needs 4 or more"),
    (["--pos=sinusoidal", "--n_embd=5", "--n_head=5"], "n_embd is 5; it must be even"),
    (["--lr_decay_iters=0"], "lr_decay_iters is 0; it must be at least 1"),
    (["--grad_clip=-1"], "grad_clip is -1.0; it must be 0 or more"),
    (["--device=cuda:x"], "device is 'cuda:x'; it must be auto, cpu, mps, cuda or cuda:NUMBER"),
    (["--optimizer=sgd"], "optimizer is 'sgd'; it must be one of adamw, muon"),
    (["--out_dir="], "out_dir is ''; it must be left out, or printable text"),
    (["--out_dir=a\0b"], "out_dir is 'a\\x00b'; it must be left out, or"),
    (["--dataset="], "dataset is ''; it must be left out"),
    (["--init_from=\udcff"], "init_from is '\\udcff'; it must be left out"),
    (["--resume=maybe"], "resume cannot be 'maybe'; it must be of type bool"),
    (["--help=3"], "there is no setting 'help'"),
    (["configs"], "'configs' is neither a --setting nor a config file (.py)"),
    ([""], "'' is neither a --setting nor a config file (.py)"),
]


@pytest.mark.parametrize(("argv", "words"), FLAGS, ids=lambda v: " ".join(v)[:40])
def test_a_mistaken_flag(answer, argv, words):
    """Row 48."""
    argv = [str(ROOT / word) if word.startswith("configs/") else word for word in argv]
    code, line = answer(train.main, argv)
    assert words in line
    assert code == errors.USAGE


FILES = [
    ("import os\n", "mine.py:1: `import os` is not `key = value`"),
    ("n_layer = 1\nopen('x', 'w')\n", "mine.py:2: `open('x', 'w')` is not"),
    ("n_layer = open('x', 'w')\n", "mine.py:1:"),
    ("n_layer = (lambda: 1)()\n", "mine.py:1:"),
    ("n_layer = [1][0]\n", "mine.py:1:"),
    ("n_layer = m = 1\n", "mine.py:1:"),
    ("n_layer += 1\n", "mine.py:1:"),
    ("n_layer = block_size\n", "mine.py:1:"),
    ("n_layer = 'a' * 1000000000\n", "mine.py:1:"),
    ("n_layer = 9 ** 9 ** 9\n", "mine.py:1:"),
    ("n_layer = 1 / 0\n", "mine.py:1:"),
    ("os.environ = 1\n", "mine.py:1:"),
    ("n_layer = -" + "-" * 5000 + "1\n", "mine.py:1:"),
    ("n_layer = 1\nn_layr = 2\n", "mine.py:2: there is no setting 'n_layr'; did you mean n_layer"),
    ("n_layer = 1\nn_layer = 2\n", "mine.py:2: n_layer is set twice; the first time at"),
    ("n_layer = 'six'\n", "n_layer is 'six'; it must be of type int"),
    ("n_layer = 2.0\n", "n_layer is 2.0; it must be of type int"),
    ("n_layer = = 2\n", "mine.py:1: this is not `key = value`"),
    (b"\xff\xfe\n", "mine.py is not UTF-8 at byte 0: not a config file"),
    (b"n_layer = 1\0\n", "mine.py:1: this is not `key = value`"),
    ("#" * 70000, "larger than 65536 bytes"),
    # what the list above did not have
    ("# coding: latin-1\nimport os  # \xe9".encode("latin-1"), "mine.py is not UTF-8 at byte 31"),
    ("# coding: utf-7\nn_layer = 1\n+AGkAbQBwAG8AcgB0-", "mine.py:3: this is not `key = value`"),
    ("\n\x0c\nimport os", "mine.py:3: `import os` is not `key = value` with a number, a text,"),
    ("n_layer=1\rimport os", "mine.py:2: `import os` is not"),
    ("n_layer = 1;import os", "mine.py:1: `import os` is not"),
    ("n_layer = " + "9*" * 30 + "9", "n_layer = 9*9*9*"),
    ("n_layer = " + "9" * 5000, "mine.py:1: this is not `key = value`"),
    ("n_layer = 1" + "+1" * 20000, "mine.py:1: this is not `key = value`"),
    ("n_layer = " + "(" * 20000, "mine.py:1: this is not `key = value`"),
    ("n_layer = a" + ".b" * 20000, "mine.py:1: this is not `key = value`"),
    ("n_layer: int = 3", "mine.py:1: `n_layer: int = 3` is not"),
    ("if True:\n n_layer = 3", "mine.py:1: `if True:` is not"),
    ("@print\ndef f(): pass", "mine.py:2: `def f(): pass` is not"),
    ("class A: pass", "mine.py:1: `class A: pass` is not"),
    ("from os import *", "mine.py:1: `from os import *` is not"),
    ("n_layer = f'{open(1)}'", "mine.py:1: `n_layer = f'{open(1)}'` is not"),
    ("n_layer = (m := 3)", "mine.py:1: `n_layer = (m := 3)` is not"),
    ("n_layer = [x for x in ().__class__.__bases__[0].__subclasses__()]", "mine.py:1: `n_layer ="),
    ("__import__('os').system('touch x')", "mine.py:1: `__import__('os').system('touch x')` is"),
    ("out_dir = 'a\\0b'", "out_dir is 'a\\x00b'; it must be left out, or printable text"),
    ("pos = None", "pos is None; it must be of type str"),
]


@pytest.mark.parametrize(("text", "words"), FILES, ids=lambda v: repr(v)[:30])
def test_a_mistaken_file_is_named_with_its_line_and_never_runs(answer, tmp_path, text, words):
    """Row 48: a config file is data. One that would write `x` has not."""
    (tmp_path / "mine.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    code, line = answer(train.main, ["mine.py"])
    assert words in line
    assert code == errors.USAGE
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


SETUPS = [  # the config is sound, and does not fit what is there
    (["--dataset=../small"], 2, "'../small' is not a valid dataset name"),
    (["--dataset=nothing"], 3, "dataset 'nothing' is not in"),
    (["--vocab_size=3"], 2, "vocab_size is 3; it must be at least"),
    (["--block_size=100000"], 3, "train.bin has"),
    (["--device=cuda:99"], 2, "device is 'cuda:99', which torch does not see here"),
    (["--out_dir=/dev/null"], 6, "error: /dev/null: out_dir cannot be used, "),
    (["--init_from=nowhere"], 4, "nowhere: No such file or directory"),
    (["--resume"], 4, "holds no checkpoint"),
    (["--rope_scaling=yarn"], 2, "rope_factor is None; it must be given"),
]


@pytest.mark.parametrize(("more", "code", "words"), SETUPS, ids=lambda v: str(v)[:30])
def test_what_does_not_fit_what_is_there(answer, flags, more, code, words):
    """Rows 12, 15, 45, 48: refused before the model is built, with the code of what is at fault."""
    names = {flag.partition("=")[0] for flag in more}
    kept = [flag for flag in flags if flag.partition("=")[0] not in names]
    found, line = answer(train.main, [*kept, *more])
    assert words in line
    assert found == code


SAMPLES = [
    *(
        (["--max_len=" + bad], f"max_len is {bad!r}; it must be tokens (1024) or")
        for bad in (
            "0x",
            "0",
            "-1",
            "abc",
            "",
            "1e3",
            "nan",
            "4.5x",
            "٤",
            "x",
            "4X",
            "99999999",
            "0x10",
            "1,024",
            "+4",
            " 4",
            "4x ",
            "1/2x",
            "4x\n",
            "1_0",
        )
    ),
    (["--prompt=to be ☃"], "character '☃' (U+2603) at position 6 is not among the"),
    (["--prompt=" + "to be " * 5], "the prompt has 30 tokens and max_len is 16"),
    (["--prompt=to be", "--max_len=5"], "the prompt has 5 tokens and max_len is 5"),
    (["--prompt=a", "--prompt_file=b"], "prompt and prompt_file are both given"),
    (["--prompt_file=nowhere"], "prompt_file nowhere: No such file or directory"),
    (["--temperature=-1"], "temperature is -1.0"),
    (["--temperature=nan"], "temperature is nan"),
    (["--temperature=hot"], "argument --temperature: invalid float value: 'hot'"),
    (["--top_k=0"], "top_k is 0; it must be at least 1"),
    (["--top_p=1.5"], "top_p is 1.5; it must be from 0"),
    (["--num_samples=0"], "num_samples is 0"),
    (["--seed=-1"], "seed is -1"),
    (["--rope_scaling=yam"], "rope_scaling is 'yam'; it must be one of none, linear"),
    (["--rope_scaling=yarn", "--rope_factor=x"], "rope_factor is 'x'; it must be auto or a"),
    (["--rope_scaling=yarn", "--rope_factor=0.5"], "rope_factor is 0.5; it must be at least 1"),
    (["--rope_scaling=yarn", "--rope_factor=nan"], "rope_factor is nan; it must be a finite"),
    (["--rope_factor=4"], "rope_factor is 4.0; it must be left out"),
    (["--beyond=interpolate"], "beyond is 'interpolate'; it must be left out"),
    (["--device=cuda:99"], "device is 'cuda:99', which torch does not see here"),
    (["--device=tpu"], "device is 'tpu'"),
    (["--max"], "unrecognized arguments: --max; --help lists all flags"),
    # what the list above did not have
    (["--temperature="], "argument --temperature: invalid float value: ''; --help lists all flags"),
    (["--temperature=inf"], "temperature is inf; it must be 0 (the likeliest) or more"),
    (["--top_k=1.5"], "argument --top_k: invalid int value: '1.5'"),
    (["--top_k=-5"], "top_k is -5; it must be at least 1"),
    (["--top_p=-0.1"], "top_p is -0.1; it must be from 0"),
    (["--top_p=nan"], "top_p is nan; it must be from 0"),
    (["--seed=9223372036854775808"], "seed is 9223372036854775808; it must be from 0 to below"),
    (["--seed=x"], "argument --seed: invalid int value: 'x'"),
    (["--prompt_file=."], "prompt_file .: Is a directory; name a UTF-8 text"),
    (["--prompt_file="], "prompt_file : No such file or directory"),
    (["--prompt_file=/dev/zero"], "prompt_file /dev/zero has more than 40,000,000 bytes"),
    (["--prompt_file=" + "a" * 300], "File name too long"),
    (["--prompt=to\0be"], "character '\\x00' (U+0000) at position 2 is not among the 16"),
    (["--prompt=to\udcffbe"], "the prompt is not UTF-8 at character 2; put it into a"),
    (["--prompt"], "argument --prompt: expected one argument"),
    (["--device="], "device is '', which torch does not see here; try auto or cpu"),
    (["--beyond="], "beyond is ''; it must be extend or interpolate"),
    (["--rope_scaling=yarn,ntk"], "rope_scaling is 'yarn,ntk'; it must be one of"),
    (["--rope_scaling=yarn", "--rope_factor=1e308"], "rope_factor is 1e+308; it must be of a size"),
    (["--rope_factor=inf"], "rope_factor is inf; it must be a finite number"),
    (["--rope_factor="], "rope_factor is ''; it must be auto or a number"),
]


@pytest.mark.parametrize(("argv", "words"), SAMPLES, ids=lambda v: " ".join(v)[:40])
def test_a_mistaken_sample(answer, trained, argv, words):
    """Row 49."""
    code, line = answer(sample.main, [f"--out_dir={trained['rope']}", *argv])
    assert words in line
    assert code == (errors.DATA if "is not among" in words else errors.USAGE)


@pytest.mark.parametrize(
    ("pos", "argv", "words"),
    [
        ("learned", ["--max_len=4x"], "learned positions end at 16, the trained length; asked for"),
        ("alibi", ["--rope_scaling=yarn"], "rope_scaling is 'yarn'; it must be left out"),
    ],
)
def test_what_an_encoding_cannot_do(answer, trained, pos, argv, words):
    """Row 49. How far it reads only the model itself knows, so this one is built."""
    code, line = answer(sample.main, [f"--out_dir={trained[pos]}", *argv], built=True)
    assert words in line
    assert code == errors.USAGE


OTHERS = [
    (prepare.main, [], 2, "the following arguments are required: NAME"),
    (prepare.main, ["--input", "a.txt", "own"], 2, "are required: NAME (before --input)"),
    (prepare.main, ["books-char", "--input", "a.txt"], 2, "books-char is a known corpus: choose"),
    (prepare.main, ["own", "--tok", "char"], 2, "unrecognized arguments: --tok char"),
    (prepare.main, ["books", "--tokenizer", "word"], 2, "tokenizer 'word' is unknown: expected"),
    (prepare.main, ["nope"], 2, "'nope' is an unknown corpus"),
    (prepare.main, ["../books"], 2, "'../books' is not a valid dataset name"),
    (prepare.main, ["own", "--input", "nowhere.txt"], 3, "--input nowhere.txt does not exist"),
    (prepare.main, ["own", "--input", "/dev/null"], 3, "--input /dev/null is not a file"),
    (prepare.main, ["books-bpe", "--vocab_size", "256"], 2, "vocab_size 256 is not possible"),
    (prepare.main, ["books", "--vocab_size", "x"], 2, "invalid int value: 'x'"),
    (evaluate.main, ["nowhere"], 4, "nowhere: No such file or directory"),
    (evaluate.main, ["nowhere", "--tokens=0"], 2, "tokens is 0; it must be at least 1"),
    (evaluate.main, ["nowhere", "--keys=x"], 2, "invalid int value: 'x'"),
    (evaluate.main, ["nowhere", "--wandb=maybe"], 2, "invalid choice: 'maybe'"),
    (sample.main, ["--out_dir=nowhere"], 4, "nowhere: No such file or directory"),
    (sample.main, ["--out_dir=."], 4, "holds no checkpoint"),
    (sample.main, [], 4, "no run in out/ yet"),
]


@pytest.mark.parametrize(
    ("main", "argv", "code", "words"),
    OTHERS,
    ids=lambda v: v.__module__ if callable(v) else str(v)[:30],
)
def test_a_mistake_at_the_other_commands(answer, main, argv, code, words):
    found, line = answer(main, argv)
    assert words in line
    assert found == code


def test_there_are_more_than_120_of_them():
    cases = len(FLAGS) + len(FILES) + len(SETUPS) + len(SAMPLES) + len(OTHERS)
    assert cases >= 120


@pytest.mark.parametrize("temperature", [1e-45, 1e-320, 5e-324])
def test_a_temperature_near_0_is_the_likeliest(temperature):
    """Row 49: divided by it float32 logits would overflow."""
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert sample_tokens(logits, temperature) == 1


def test_top_k_past_the_vocabulary_is_all_of_it():
    """Row 49."""
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    some = [sample_tokens(logits, top_k=k, generators=[seeded(5)]) for k in (3, 4, 10**30)]
    assert some == [sample_tokens(logits, generators=[seeded(5)])] * 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_named(bad, temperature):
    """Row 49: torch would speak of a probability tensor, and argmax would take NaN for a token."""
    with pytest.raises(ValueError, match="logits are not finite; sample from an earlier"):
        sample_tokens(torch.tensor([[1.0, bad, 2.0]]), temperature)


def test_a_sound_command_is_not_refused_and_does_build(answer, flags):
    """The tests above would not see a command that refuses everything."""
    with pytest.raises(BuiltError):
        answer(train.main, flags)


def test_the_command_line_ends_in_one_line_and_exit_2():
    command = [sys.executable, "train.py", "--n_layr=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == errors.USAGE
    assert done.stdout == ""
    assert done.stderr == "error: --n_layr: there is no setting 'n_layr'; did you mean n_layer?\n"
