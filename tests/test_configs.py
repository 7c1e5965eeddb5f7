"""Settings: what is accepted, from where, and what each mistake is answered with."""

import subprocess
import sys
from pathlib import Path

import pytest

import cli
import configs
from configs import Config

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config_file(tmp_path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "mine.py"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_defaults_then_the_file_then_the_flags(config_file):
    file = config_file('"""Mine."""\nn_layer = 3  # three\nn_embd = 4 * 12\nmax_iters = 7\n')
    config = configs.load(["--max_iters", "9", file, "--learning_rate=1e-3", "--compile"])
    assert (config.n_layer, config.n_embd, config.max_iters) == (3, 48, 9)
    assert (config.learning_rate, config.compile, config.batch_size) == (1e-3, True, 16)


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--compile=False"], "compile", False),
        (["--compile", "true"], "compile", True),
        (["--dropout=1/10"], "dropout", 0.1),
        (["--dropout", "0"], "dropout", 0.0),
        (["--vocab_size=none"], "vocab_size", None),
        (["--n_kv_head=2"], "n_kv_head", 2),
        (["--name=12"], "name", "12"),
        (["--out_dir=None"], "out_dir", None),
        (["--pos=none"], "pos", "none"),
        (["--gradient_accumulation_steps=5*8"], "gradient_accumulation_steps", 40),
    ],
)
def test_a_flag_is_read_by_its_settings_type(flags, name, value):
    found = getattr(configs.load(flags), name)
    assert found == value
    assert type(found) is type(value)


MISTAKES = [
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
    (["--beyond=interpolate"], "beyond is 'interpolate'; it must be extend or slide"),
    (["--device=tpu"], "device is 'tpu'"),
    (["--dtype=float8"], "dtype is 'float8'"),
    (["--wandb=maybe"], "wandb is 'maybe'"),
    (["--name=a/b"], "name is 'a/b'; it must be letters"),
    (["--name=.."], "name is '..'"),
    (["--seed=-1"], "seed is -1"),
    (["--beta1=1"], "beta1 is 1.0"),
    (["--eval_tokens=0"], "eval_tokens is 0"),
    (["--compile", "yes"], "'yes' is neither a --setting nor a config file (.py)"),
    (["-n_layer=3"], "'-n_layer' is neither a --setting nor a config file (.py)"),
    (["--resume", "--overwrite"], "overwrite is True; it must be left out beside resume"),
    (["nowhere.py"], "nowhere.py: No such file or directory"),
    (["configs/rope.py", "configs/alibi.py"], "one config file"),
]


@pytest.mark.parametrize(("argv", "words"), MISTAKES, ids=lambda v: " ".join(v)[:40])
def test_a_mistaken_flag_is_one_sentence_and_exit_2(argv, words):
    with pytest.raises(ValueError, match=r"^.+$") as caught:  # one line
        configs.load(argv)
    assert words in str(caught.value)
    assert cli.exit_code(caught.value) == cli.USAGE


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
]


@pytest.mark.parametrize(("text", "words"), FILES, ids=lambda v: repr(v)[:30])
def test_a_mistaken_file_is_named_with_its_line_and_never_runs(config_file, text, words, tmp_path):
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        configs.load([config_file(text)])
    assert words in str(caught.value)
    assert not (tmp_path / "x").exists()
    assert not Path("x").exists()


def test_a_value_keeps_where_it_came_from(config_file):
    with pytest.raises(ValueError, match=r"dropout is 2.0; .* \(.*mine.py:2\)$"):
        configs.load([config_file("n_layer = 2\ndropout = 2\n")])


def test_a_config_cannot_be_changed_and_replace_goes_through_the_same_door():
    with pytest.raises(AttributeError):
        Config().n_layer = 3
    with pytest.raises(ValueError, match="n_layer is 0"):
        Config(n_layer=0)


def test_the_command_line_ends_in_one_line_and_exit_2():
    command = [sys.executable, "train.py", "--n_layr=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == cli.USAGE
    assert done.stdout == ""
    assert done.stderr == "error: --n_layr: there is no setting 'n_layr'; did you mean n_layer?\n"
