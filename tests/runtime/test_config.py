"""Settings: what is accepted, from where, and what each mistake is answered with."""

from dataclasses import asdict
from pathlib import Path

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
        (["--layers=LG", "--global_pos=none"], "global_pos", "none"),
        (["--layers", "LG", "--window=8", "--global_pos", "None"], "global_pos", None),
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


# ---- files stack -------------------------------------------------------------------------------

CONFIGS = Path(__file__).parent.parent.parent / "configs"
ENCODINGS = {
    "learned": "learned",
    "sinusoidal": "sinusoidal",
    "rope": "rope",
    "alibi": "alibi",
    "nope": "none",
}


def stacked(*stems: str, flags: tuple[str, ...] = ()) -> Config:
    return configs.load([*(str(CONFIGS / f"{stem}.py") for stem in stems), *flags])


@pytest.fixture
def two_files(tmp_path):
    """Two config files that both set n_layer and n_embd."""
    (tmp_path / "wide.py").write_text("n_layer = 3\nn_embd = 64\n")
    (tmp_path / "deep.py").write_text("n_layer = 9\nn_embd = 32\n")
    return str(tmp_path / "wide.py"), str(tmp_path / "deep.py")


def test_a_later_file_wins_and_a_flag_wins_over_all(two_files):
    wide, deep = two_files
    assert configs.load([wide, deep]).n_layer == 9
    assert configs.load([deep, wide]).n_layer == 3
    config = configs.load(["--n_layer=5", wide, deep])
    assert (config.n_layer, config.n_embd) == (5, 32)


def test_a_run_is_named_after_its_files(two_files):
    wide, deep = two_files
    assert configs.load([wide]).folder == Path("out/wide")
    assert configs.load([wide, deep]).name == "wide-deep"
    assert configs.load([wide, deep, "--name=mine"]).folder == Path("out/mine")
    Path(deep).write_text('name = "named"\n')
    assert configs.load([wide, deep]).name == "named"
    assert configs.load([]).name is None
    assert configs.load([]).folder == Path("out/rope")


def test_a_file_whose_name_cannot_name_a_run_is_refused(tmp_path):
    (tmp_path / "my run.py").write_text("")
    with pytest.raises(ValueError, match=r"name is 'my run'; .* \(the names of the config files"):
        configs.load([str(tmp_path / "my run.py")])


def test_a_setting_twice_in_one_file_or_in_the_flags_is_refused(two_files, config_file):
    mine = config_file("n_layer = 1\nn_embd = 8\nn_layer = 2\n")
    message = r"mine.py:3: n_layer is set twice; the first time at .*mine.py:1$"
    with pytest.raises(ValueError, match=message):
        configs.load([*two_files, mine])
    with pytest.raises(ValueError, match=r"^--n_embd: n_embd is set twice; the first time at --n"):
        configs.load([*two_files, "--n_embd=8", "--n_embd=16"])


def test_an_error_names_the_file_whose_value_is_in_force(two_files):
    wide, deep = two_files
    Path(deep).write_text("dropout = 3.0\n")
    with pytest.raises(ValueError, match=r"dropout is 3.0; .* \(.*deep.py:1\)$"):
        configs.load([wide, deep])


@pytest.mark.parametrize("below", [(), ("passkey",), ("gpt2",)], ids=str)
def test_the_encodings_configs_differ_in_name_and_pos_alone(below):
    reference = asdict(stacked(*below, "rope"))
    for stem, pos in ENCODINGS.items():
        name = "-".join([*below, stem])
        assert asdict(stacked(*below, stem)) == reference | {"name": name, "pos": pos}


# What the config files of the committed results set, when each run had a file of its own.
FINETUNE = {
    "pos": "rope",
    "init_from": "out/rope",
    "block_size": 1024,
    "batch_size": 4,
    "rope_train_len": 256,
    "max_iters": 60,
    "warmup_iters": 6,
    "learning_rate": 5e-4,
    "min_lr": 5e-5,
}
FINETUNE_PASSKEY = {
    "pos": "rope",
    "init_from": "out/passkey-rope",
    "dataset": "passkey-4x",
    "block_size": 512,
    "batch_size": 8,
    "rope_train_len": 128,
    "max_iters": 25,
    "warmup_iters": 3,
    "optimizer": "muon",
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
}


@pytest.mark.parametrize("scaling", ["none", "linear", "ntk", "yarn"])
def test_stacked_files_fine_tune_as_the_committed_results_were(scaling):
    prose = Config(**FINETUNE, name=f"finetune-{scaling}", rope_scaling=scaling)
    flags = (f"--rope_scaling={scaling}", f"--name=finetune-{scaling}")
    assert stacked("rope", "finetune", flags=flags) == prose
    passkey = Config(**FINETUNE_PASSKEY, name=f"passkey-finetune-{scaling}", rope_scaling=scaling)
    flags = (f"--rope_scaling={scaling}", f"--name=passkey-finetune-{scaling}")
    assert stacked("passkey", "rope", "finetune_passkey", flags=flags) == passkey


def test_drope_completes_the_steps_of_the_run_that_it_goes_on_from():
    prose = dict(init_from="out/rope-1050", max_iters=150, warmup_iters=15)
    rates = dict(pos="none", learning_rate=1e-3, min_lr=1e-4)
    assert stacked("rope", "drope") == Config(**prose, **rates, name="rope-drope")
    assert stacked("nope", "drope").pos == stacked("drope").pos == "none"
    keys = stacked("passkey", "rope", "drope_passkey")
    assert (keys.dataset, keys.block_size, keys.optimizer) == ("passkey", 128, "muon")
    assert (keys.pos, keys.learning_rate, keys.warmup_iters) == ("none", 1e-3, 6)
    for run, whole, before in ((stacked("rope", "drope"), 1200, 1050), (keys, 500, 438)):
        assert run.init_from.endswith(f"rope-{before}")
        assert run.max_iters + before == whole
        assert before == pytest.approx(0.875 * whole, abs=0.5)


def test_pose_reads_as_many_tokens_as_fine_tuning_at_the_longer_length():
    same = "init_from max_iters warmup_iters learning_rate min_lr tokens_per_step".split()
    for below in (("rope",), ("passkey", "rope")):
        suffix = "_passkey" if len(below) == 2 else ""
        pose, longer = stacked(*below, f"pose{suffix}"), stacked(*below, f"finetune{suffix}")
        assert [getattr(pose, name) for name in same] == [getattr(longer, name) for name in same]
        assert pose.largest_position + 1 == longer.block_size == 4 * pose.block_size
        assert (pose.train_positions, pose.factor) == ("pose", 4.0)
    plain = stacked("rope", "pose", flags=("--rope_scaling=none", "--rope_factor=none"))
    assert plain.factor == 1.0


def test_random_positions_fill_four_times_the_length_of_any_task():
    assert stacked("rope", "random_positions").largest_position == 4 * 256 - 1
    assert stacked("passkey", "rope", "random_positions").largest_position == 4 * 128 - 1


def test_a_longer_run_is_the_ceiling_of_the_committed_results():
    ceiling = Config(name="rope-4x", pos="rope", block_size=1024, batch_size=4)
    assert stacked("rope", "longer", flags=("--name=rope-4x",)) == ceiling


@pytest.mark.parametrize(
    ("stems", "digest"),
    [
        (["rope"], "bdd041b678ee"),
        (["alibi"], "911662a36721"),
        (["rope", "longer"], "b6ca40b0e578"),
        (["passkey", "nope"], "72d17585ed5f"),
        (["gpt2", "learned"], "16244ac455fe"),
        (["quick"], "e40409b7535e"),
    ],
    ids=str,
)
def test_the_hash_of_an_old_run_stays(stems, digest):
    assert stacked(*stems).sha256.startswith(digest)


def test_the_hash_follows_what_determines_the_weights():
    base = Config()
    assert Config(name="other", out_dir="x", log_interval=7).sha256 == base.sha256
    assert Config(train_positions="random").sha256 != base.sha256
    assert Config(learning_rate=1e-3).sha256 != base.sha256


# ---- settings that need one another ------------------------------------------------------------


def test_a_range_of_positions_needs_a_method_that_draws():
    assert Config(train_positions="random").largest_position == 4 * 256 - 1
    assert Config(train_positions="random", position_range=300).largest_position == 299
    assert Config().largest_position == 255
    with pytest.raises(ValueError, match="position_range is 300; it must be left out with train"):
        Config(position_range=300)
    with pytest.raises(ValueError, match=r"position_range is 255; it must be from block_size"):
        Config(train_positions="random", position_range=255)
    for pos in ("none", "fox"):
        with pytest.raises(ValueError, match="train_positions is 'random'; it must be left out"):
            Config(train_positions="random", pos=pos)
    Config(train_positions="random", pos="none", logit_scaling="logn")
    with pytest.raises(ValueError, match="train_positions is 'skip'; it must be one of sequential"):
        Config(train_positions="skip")
