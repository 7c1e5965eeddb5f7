"""Settings: what is accepted, from where, and what each mistake is answered with."""

import pytest

import configs
from configs import Config


@pytest.fixture
def config_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(text)
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


def test_a_value_keeps_where_it_came_from(config_file):
    with pytest.raises(ValueError, match=r"dropout is 2.0; .* \(.*mine.py:2\)$"):
        configs.load([config_file("n_layer = 2\ndropout = 2\n")])


def test_a_config_cannot_be_changed_and_replace_goes_through_the_same_door():
    with pytest.raises(AttributeError):
        Config().n_layer = 3
    with pytest.raises(ValueError, match="n_layer is 0"):
        Config(n_layer=0)
