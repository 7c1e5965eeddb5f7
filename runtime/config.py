"""Every setting of a run, and how it is set: defaults, then config files, then flags.

A config file holds `key = value` lines. It is read as data: nothing in it is executed.
"""

import ast
import difflib
import hashlib
import json
import operator
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from data.training_positions import TRAIN_POSITIONS
from model import MAX_SIZE, GPTConfig
from positions import Fox, Position, require
from runtime import checkpoint


@dataclass(frozen=True, kw_only=True)
class Config(GPTConfig):
    """A run: the model's fields and these. Raises ValueError that names the field and the rule."""

    name: str | None = None  # of the run (None: the names of its config files joined, else pos)
    out_dir: str | None = None  # folder of the run (None: out/<name>)
    dataset: str = "shakespeare"  # a built-in corpus (prepared when it is missing) or your own
    data_dir: str | None = None  # folder that holds the datasets (None: data/)
    init_from: str | None = None  # run folder or checkpoint whose weights to start from
    resume: bool = False  # continue the run in its folder
    overwrite: bool = False  # replace the run in its folder
    max_iters: int = 1200  # optimizer steps
    batch_size: int = 16  # windows in a micro-step
    gradient_accumulation_steps: int = 1  # micro-steps in a step, over all processes
    train_positions: str = "sequential"  # of a window's tokens: sequential (0, 1, ..), random, pose
    position_range: int | None = None  # random, pose: from 0 to this - 1 (None: 4 * block_size)
    optimizer: str = "adamw"  # adamw, or muon: for the blocks' matrices, and AdamW for the rest
    learning_rate: float = 2e-3  # peak of the schedule
    min_lr: float = 2e-4  # where the cosine ends
    warmup_iters: int = 100  # steps of linear warmup
    lr_decay_iters: int | None = None  # step at which the cosine ends (None: max_iters)
    weight_decay: float = 0.1  # on matrices only
    beta1: float = 0.9  # AdamW's
    beta2: float = 0.99  # AdamW's
    grad_clip: float = 1.0  # largest norm of the gradient (0: no clipping)
    eval_interval: int = 200  # steps between two evaluations, and two checkpoints
    eval_tokens: int = 32768  # held-out tokens in an evaluation, the same at every length
    log_interval: int = 50  # steps between two lines
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # auto, float32, bfloat16 or float16: what matrix products run in
    compile: bool = False  # torch.compile the model
    seed: int = 1337  # of weights, batches and dropout
    wandb: str = "auto"  # auto, online, offline or disabled
    wandb_project: str | None = None  # that gets the curves (None: WANDB_PROJECT, else nanorope)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_numbers(self)
        _check_choices(self)
        _check_texts(self)
        _check_training_positions(self)
        require(not (self.resume and self.overwrite), self, "overwrite", "left out beside resume")

    @property
    def gpt(self) -> GPTConfig:
        """The model's fields alone."""
        return GPTConfig(**{field.name: getattr(self, field.name) for field in fields(GPTConfig)})

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.out_dir or Path("out") / (self.name or self.pos)).expanduser()

    @property
    def determining(self) -> dict[str, object]:
        """The settings that the trained weights depend on: all but the operational ones."""
        return {name: value for name, value in asdict(self).items() if name not in OPERATIONAL}

    @property
    def sha256(self) -> str:
        """A hash of the determining settings."""
        # A setting that is newer than a run must not change the hash of that run.
        hashed = {
            name: value
            for name, value in self.determining.items()
            if name in FORMAT_1 or value != DEFAULTS[name]
        }
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation_steps * self.block_size

    @property
    def largest_position(self) -> int:
        """The largest position at which training may show a token."""
        if self.train_positions == "sequential":
            return self.block_size - 1
        return (self.position_range or 4 * self.block_size) - 1


DEFAULTS = {field.name: field.default for field in fields(Config)}
CHOICES = {
    "optimizer": ("adamw", "muon"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "wandb": ("auto", "online", "offline", "disabled"),
    "train_positions": TRAIN_POSITIONS,
}
# These change where a run goes, how often it reports and what it runs on, not what it computes.
OPERATIONAL = set(
    "name out_dir data_dir resume overwrite eval_interval eval_tokens log_interval device compile "
    "wandb wandb_project".split()
)
# The determining settings of the first release.
FORMAT_1 = set(
    "block_size vocab_size n_layer n_head n_kv_head n_embd dropout bias pos beyond rope_theta "
    "rope_scaling rope_factor rope_train_len rope_fraction rope_layout beta_fast beta_slow ramp "
    "truncate attention_factor low_freq_factor high_freq_factor dataset init_from max_iters "
    "batch_size gradient_accumulation_steps optimizer learning_rate min_lr warmup_iters "
    "lr_decay_iters weight_decay beta1 beta2 grad_clip dtype seed".split()
)
CONFIGS = os.path.relpath(Path(__file__).parent.parent / "configs")
CONFIG = "config.json"  # in a run's folder: all of its settings
MAX_FILE = 65536  # bytes of a config file: a larger file is not a config
PLAIN = "with a number, a text, True, False or None; a config is data and is never run"
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def with_defaults(settings: dict[str, object]) -> dict[str, object]:
    """All settings of a saved run: those it does not have are newer than it, and at defaults."""
    return DEFAULTS | settings


# ---- rules of single settings --------------------------------------------------------------------


def _check_numbers(config: Config) -> None:
    positive = "max_iters batch_size gradient_accumulation_steps eval_interval log_interval"
    for name in (*positive.split(), "eval_tokens", "lr_decay_iters"):
        value = getattr(config, name)
        require(value is None or value > 0, config, name, "at least 1")
    for name in ("batch_size", "gradient_accumulation_steps"):
        require(getattr(config, name) <= MAX_SIZE, config, name, f"at most {MAX_SIZE:,}")
    for name in ("learning_rate", "min_lr", "warmup_iters", "weight_decay", "grad_clip"):
        require(getattr(config, name) >= 0, config, name, "0 or more")
    for name in ("beta1", "beta2"):
        require(0 <= getattr(config, name) < 1, config, name, "from 0 to below 1")
    require(0 <= config.seed < 2**63, config, "seed", "from 0 to below 2**63")


def _check_choices(config: Config) -> None:
    for name, choices in CHOICES.items():
        require(getattr(config, name) in choices, config, name, f"one of {', '.join(choices)}")
    device = re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", config.device)
    require(device, config, "device", "auto, cpu, mps, cuda or cuda:NUMBER")


def _check_texts(config: Config) -> None:
    name = re.fullmatch(r"[\w.-]*\w", config.name or config.pos)
    require(name, config, "name", "letters, digits, . _ or -")
    for name in ("out_dir", "data_dir", "init_from", "dataset", "wandb_project"):
        text = getattr(config, name)
        printable = text is None or (text and text.isprintable())
        require(printable, config, name, "left out, or printable text")


def _check_training_positions(config: Config) -> None:
    size = config.position_range
    draws = config.train_positions != "sequential"
    # NoPE has no position, and FoX's gates go by order; a logit scale reads positions.
    by_order = {*config.encodings.values()} <= {Position, Fox} and config.logit_scaling == "none"
    rule = f"left out: pos {config.pos!r} reads no positions"
    require(not (draws and by_order), config, "train_positions", rule)
    if size is None:
        return
    require(draws, config, "position_range", "left out with train_positions 'sequential'")
    enough = config.block_size <= size <= MAX_SIZE
    rule = f"from block_size ({config.block_size}) to {MAX_SIZE:,}"
    require(enough, config, "position_range", rule)


# ---- from the command line to a Config -----------------------------------------------------------


class Setting(NamedTuple):
    value: Any
    origin: str  # where it was set, for error messages: FILE:LINE or --FLAG


def load(argv: list[str]) -> Config:
    """Config from `[FILE.py ...] [--key=value | --key value | --switch ...]`.

    A later file wins over an earlier one, a flag over every file. The run is named after its
    files unless one of them or a flag names it. Raises ValueError with one sentence that says
    which setting is wrong and where it was set. With --resume the settings that are left out are
    those of the run, and the run is the newest one unless a setting names it. With --init_from
    those of the model's shape are the ones of the weights.
    """
    files, flags = _split(argv)
    settings: dict[str, Setting] = {}
    if files:
        name = "-".join(Path(file).stem for file in files)
        settings["name"] = Setting(name, "the names of the config files, joined")
    for file in files:
        settings |= _by_name(_read_file(file))
    settings |= _by_name(_read_flags(flags))
    config = _build(settings)
    if config.resume:
        named = settings.keys() & {"name", "out_dir", "pos"}
        folder = config.folder if named else checkpoint.newest_run()
        config = _build(_settings_of_run(folder) | settings)
    elif config.init_from:
        config = _build(_settings_of_weights(config) | settings)
    return config


def _build(settings: dict[str, Setting]) -> Config:
    try:
        return Config(**{name: setting.value for name, setting in settings.items()})
    except ValueError as error:
        name = str(error).split(maxsplit=1)[0]  # `require` begins with the setting's name
        if name not in settings:
            raise
        raise ValueError(f"{error} ({settings[name].origin})") from None


def _settings_of_run(folder: Path) -> dict[str, Setting]:
    """The settings that the run in a folder was started with; none where it has no config.json."""
    path, settings = folder / CONFIG, {}
    if path.exists():
        try:
            settings = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise ValueError(f"{path} is damaged; remove it and give the run's settings") from None
    if settings.get("beyond") == "slide":  # see checkpoint._without_slide
        settings["beyond"] = "extend"
    # The folder may have been moved, and what the start did is done.
    settings |= {"out_dir": str(folder), "resume": True, "overwrite": False}
    for name in settings:
        _type_of(name, str(path))
    return {name: Setting(value, str(path)) for name, value in settings.items()}


def _settings_of_weights(config: Config) -> dict[str, Setting]:
    """What the weights that a run starts from determine: the model's shape, the base of RoPE."""
    path = Path(config.init_from).expanduser()
    saved = _settings_of_run(path if path.is_dir() else path.parent)
    read = {name for encoding in config.encodings.values() for name in encoding.settings}
    shape = GPTConfig.__annotations__.keys() - {"block_size", "dropout"}
    belonging = shape | read & {"rope_theta", "rope_fraction", "rope_layout"}
    return {name: setting for name, setting in saved.items() if name in belonging}


def _split(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Config files, and (flag, text of its value), each in the order of the command line."""
    files, flags, rest = [], [], list(argv)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            flag, equals, text = word.partition("=")
            flags.append((flag, text if equals else _value_after(flag, rest)))
        elif word.startswith("-") or not word.endswith(".py"):
            raise ValueError(f"{word!r} is neither a --setting nor a config file (.py)")
        else:
            files.append(word)
    return files, flags


def _value_after(flag: str, rest: list[str]) -> str:
    """Take the value of `--key value` from the rest of the command line; a switch needs none."""
    if _type_of(flag[2:], flag) is bool:
        has_value = rest and rest[0].lower() in ("true", "false")
        return rest.pop(0) if has_value else "True"
    if not rest or rest[0].startswith("--"):  # a negative number has one dash
        raise ValueError(f"{flag} needs a value: {flag}=VALUE")
    return rest.pop(0)


def _by_name(settings: Iterable[tuple[str, Setting]]) -> dict[str, Setting]:
    """The settings of one file, or of all flags; ValueError where one of them is set twice."""
    by_name: dict[str, Setting] = {}
    for name, setting in settings:
        if name in by_name:
            first = by_name[name].origin
            raise ValueError(f"{setting.origin}: {name} is set twice; the first time at {first}")
        by_name[name] = setting
    return by_name


def _type_of(name: str, origin: str) -> Any:
    """The annotated type of a setting; ValueError with the nearest name where there is none."""
    hints = get_type_hints(Config)
    if name not in hints:
        near = difflib.get_close_matches(name, hints, 1)
        hint = f"did you mean {near[0]}?" if near else "--help lists all settings"
        raise ValueError(f"{origin}: there is no setting {name!r}; {hint}")
    return hints[name]


def _read_flags(flags: list[tuple[str, str]]) -> Iterator[tuple[str, Setting]]:
    for flag, text in flags:
        name = flag[2:]
        yield name, Setting(_parse(name, text, flag), flag)


def _parse(name: str, text: str, origin: str) -> Any:
    """The value that a flag's text stands for, by the type of its setting."""
    kind = _type_of(name, origin)
    kinds = getattr(kind, "__args__", (kind,))
    if str in kinds:
        # For global_pos, none is an encoding, and None leaves the setting out.
        unset = text == "None" if name == "global_pos" else text.lower() == "none"
        return None if unset and type(None) in kinds else text
    try:
        words = {"true": "True", "false": "False", "none": "None"}
        return _evaluate(ast.parse(words.get(text.lower(), text), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        rule = f"of type {kinds[0].__name__}"
        raise ValueError(f"{origin}: {name} cannot be {text!r}; it must be {rule}") from None


def _read_file(file: str) -> Iterator[tuple[str, Setting]]:
    """The settings of a config file, line by line; anything that is not `key = value` is refused.

    Python's own parser splits the text into statements, and `_evaluate` takes literals only: the
    file is never imported, compiled or executed.
    """
    text = _text_of(file)
    for statement in _statements(file, text):
        origin = f"{file}:{statement.lineno}"
        if _is_docstring(statement):
            continue
        try:
            (target,), value = statement.targets, _evaluate(statement.value)
            name = target.id
        except (AttributeError, ValueError, ArithmeticError, RecursionError):
            code = ast.get_source_segment(text, statement).splitlines()[0][:60]
            raise ValueError(f"{origin}: `{code}` is not `key = value` {PLAIN}") from None
        _type_of(name, origin)  # refuses an unknown name
        yield name, Setting(value, origin)


def _text_of(file: str) -> str:
    try:
        with open(file, "rb") as f:
            raw = f.read(MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            raise ValueError(f"{file} is larger than {MAX_FILE} bytes: not a config file")
        return raw.decode()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; the configs are in {CONFIGS}/") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 at byte {error.start}: not a config file") from None


def _statements(file: str, text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text.removeprefix("\ufeff")).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # ValueError is what older Pythons raise at a NUL.
        line = getattr(error, "lineno", None) or 1
        raise ValueError(f"{file}:{line}: this is not `key = value` {PLAIN}") from None


def _is_docstring(statement: ast.stmt) -> bool:
    text = getattr(getattr(statement, "value", None), "value", None)
    return isinstance(statement, ast.Expr) and isinstance(text, str)


def _evaluate(node: ast.expr) -> Any:
    """A literal, or arithmetic on numbers; ValueError for anything else."""
    match node:
        case ast.Constant(value=int() | float() | str() | None):
            return node.value
        case ast.UnaryOp(op=ast.USub()):
            return -_number(node.operand)
        case ast.BinOp():
            return _calculate(node)
    raise ValueError("not a literal")


def _calculate(node: ast.BinOp) -> int | float:
    operation = ARITHMETIC.get(type(node.op))
    if operation is None:
        raise ValueError("not one of + - * / //")
    value = operation(_number(node.left), _number(node.right))
    if isinstance(value, int) and abs(value) >= 2**63:  # its digits could take minutes
        raise ValueError("too large")
    return value


def _number(node: ast.expr) -> int | float:
    value = _evaluate(node)
    if type(value) not in (int, float):
        raise ValueError("not a number")
    return value
