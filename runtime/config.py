"""Every knob of a run, and how it is set: defaults, then a file read as data, then flags."""

import ast
import difflib
import hashlib
import inspect
import json
import operator
import re
import shutil
import textwrap
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_type_hints

import rope
from model import MAX_SIZE, GPTConfig
from positions import EncodingConfig, PositionConfig, require


@dataclass(frozen=True)
class Config(GPTConfig):
    """A run: the model's fields and these. Raises ValueError that names the field and the rule."""

    name: str | None = None  # of the run (None: pos)
    out_dir: str | None = None  # folder of the run (None: out/<name>)
    dataset: str = "shakespeare"  # a known corpus (prepared when it is missing) or your own
    data_dir: str | None = None  # folder that holds the datasets (None: data/)
    init_from: str | None = None  # run folder or checkpoint whose weights to start from
    resume: bool = False  # continue the run in its folder
    overwrite: bool = False  # start anew in a folder that holds a run
    max_iters: int = 1200  # optimizer steps
    batch_size: int = 16  # windows in a micro-step
    gradient_accumulation_steps: int = 1  # micro-steps in a step, over all processes
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
    wandb_project: str = "nanorope"  # where the curves of all runs lie side by side

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = "max_iters batch_size gradient_accumulation_steps eval_interval log_interval"
        for name in (*positive.split(), "eval_tokens", "lr_decay_iters"):
            value = getattr(self, name)
            require(value is None or value > 0, self, name, "at least 1")
        for name in ("batch_size", "gradient_accumulation_steps"):
            require(getattr(self, name) <= MAX_SIZE, self, name, f"at most {MAX_SIZE:,}")
        for name in ("learning_rate", "min_lr", "warmup_iters", "weight_decay", "grad_clip"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, self, name, "from 0 to below 1")
        require(0 <= self.seed < 2**63, self, "seed", "from 0 to below 2**63")
        for name, known in CHOICES.items():
            rule = known.replace("|", ", ").replace("[0-9]+", "1")
            require(re.fullmatch(known, getattr(self, name)), self, name, rule)
        named = re.fullmatch(r"[\w.-]*\w", self.name or self.pos)
        require(named, self, "name", "letters, digits, . _ or -")
        for name in ("out_dir", "data_dir", "init_from", "dataset", "wandb_project"):
            text = getattr(self, name)
            can_be = text is None or (text and text.isprintable())
            require(can_be, self, name, "left out, or a text of signs that can be printed")
        require(not (self.resume and self.overwrite), self, "overwrite", "left out beside resume")

    @property
    def gpt(self) -> GPTConfig:
        """The model's fields alone."""
        return GPTConfig(**{field.name: getattr(self, field.name) for field in fields(GPTConfig)})

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.out_dir or Path("out") / (self.name or self.pos))

    @property
    def deciding(self) -> dict[str, object]:
        """The settings that decide which weights come out, and not only where and how it shows."""
        return {name: value for name, value in asdict(self).items() if name not in AROUND}

    @property
    def sha256(self) -> str:
        """A hash of the deciding settings."""
        text = json.dumps(self.deciding, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation_steps * self.block_size


CHOICES = {
    "device": r"auto|cpu|mps|cuda|cuda:[0-9]+",
    "optimizer": "adamw|muon",
    "dtype": "auto|float32|bfloat16|float16",
    "wandb": "auto|online|offline|disabled",
}
AROUND = set(
    "name out_dir data_dir resume overwrite eval_interval eval_tokens log_interval device compile "
    "wandb wandb_project".split()
)
MAX_FILE = 65536  # bytes of a config file: more is not a config
PLAIN = "with a number, a text, True, False or None; a config is data and is never run"
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def load(argv: list[str]) -> Config:
    """Config from `[FILE.py] [--key=value | --key value | --switch ...]`.

    Raises ValueError with one sentence that names the setting and where it was set. Nothing of a
    file is executed.
    """
    values, origins = {}, {}
    for key, value, origin in _settings(argv):
        if key in values and origins[key].startswith("--") == origin.startswith("--"):
            raise ValueError(f"{origin}: {key} is set twice; the first time at {origins[key]}")
        values[key], origins[key] = value, origin
    try:
        return Config(**values)
    except ValueError as error:
        origin = origins.get(str(error).split(maxsplit=1)[0])
        raise ValueError(f"{error}" + (f" ({origin})" if origin else "")) from None


def _settings(argv: list[str]):
    """Yield (key, value, where it was set): those of the file first, then the flags."""
    files = [word for word, _ in _words(argv) if not word.startswith("--")]
    for extra in files[1:]:
        raise ValueError(f"{extra!r} stands after {files[0]!r}: one config file, then --key=value")
    for file in files:
        yield from _read_file(file)
    for word, text in _words(argv):
        if word.startswith("--"):
            key = word[2:]
            yield key, _parse(key, text, word), word


def _words(argv: list[str]):
    """Split a command line into (word, value): `--key=value`, `--key value`, `--switch`, FILE."""
    rest = list(argv)
    while rest:
        word, equals, text = rest.pop(0).partition("=")
        if not word.startswith("--"):
            if word.startswith("-") or not word.endswith(".py"):
                raise ValueError(f"{word!r} is neither a --setting nor a config file (.py)")
            yield word + equals + text, None
            continue
        if not equals and _kind(word[2:], word) is bool:
            text = rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "True"
        elif not equals:
            if not rest or rest[0].startswith("--"):  # a negative number has one dash
                raise ValueError(f"{word} needs a value: {word}=VALUE")
            text = rest.pop(0)
        yield word, text


def _kind(key: str, origin: str) -> type:
    """The annotated type of a setting; ValueError with the nearest name where there is none."""
    hints = get_type_hints(Config)
    if key not in hints:
        near = difflib.get_close_matches(key, hints, 1)
        hint = f"did you mean {near[0]}?" if near else "--help lists all settings"
        raise ValueError(f"{origin}: there is no setting {key!r}; {hint}")
    return hints[key]


def _parse(key: str, text: str, origin: str):
    """The value that a flag's text stands for, by the type of its setting."""
    kind = _kind(key, origin)
    kinds = getattr(kind, "__args__", (kind,))
    if str in kinds:
        return None if type(None) in kinds and text.lower() == "none" else text
    try:
        words = {"true": "True", "false": "False", "none": "None"}
        return _evaluate(ast.parse(words.get(text.lower(), text), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        rule = f"of type {kinds[0].__name__}"
        raise ValueError(f"{origin}: {key} cannot be {text!r}; it must be {rule}") from None


def _read_file(file: str):
    """Yield (key, value, `file:line`) of each `key = value` line; refuse anything else."""
    try:
        with open(file, "rb") as f:
            raw = f.read(MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            raise ValueError(f"{file} is larger than {MAX_FILE} bytes: not a config file")
        text = raw.decode()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; the configs are in configs/") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 at byte {error.start}: not a config file") from None
    for line in _lines(file, text):
        origin = f"{file}:{line.lineno}"
        if isinstance(line, ast.Expr) and isinstance(getattr(line.value, "value", None), str):
            continue  # a docstring
        try:
            ((name,), value) = line.targets, _evaluate(line.value)
            key = name.id
        except (AttributeError, ValueError, ArithmeticError, RecursionError):
            code = ast.get_source_segment(text, line).splitlines()[0][:60]
            raise ValueError(f"{origin}: `{code}` is not `key = value` {PLAIN}") from None
        _kind(key, origin)
        yield key, value, origin


def _lines(file: str, text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text.removeprefix("\ufeff")).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # ValueError is what older Pythons raise at a NUL.
        line = getattr(error, "lineno", None) or 1
        raise ValueError(f"{file}:{line}: this is not `key = value` {PLAIN}") from None


def _evaluate(node: ast.expr):
    """A literal, or arithmetic on numbers; ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        value = ARITHMETIC[type(node.op)](_number(node.left), _number(node.right))
        if isinstance(value, int) and abs(value) >= 2**63:  # Python would count on, and not print
            raise ValueError("too large")
        return value
    raise ValueError("not a literal")


def _number(node: ast.expr) -> int | float:
    value = _evaluate(node)
    if type(value) not in (int, float):
        raise ValueError("not a number")
    return value


def meanings() -> dict[str, str]:
    """What each setting means: the comment beside its field."""
    parts = (rope, EncodingConfig, PositionConfig, GPTConfig, Config)
    source = "".join(inspect.getsource(part) for part in parts)
    return dict(re.findall(r"^    (\w+): [^#\n]+#\s*(.+)$", source, re.MULTILINE))


def describe(usage: str) -> str:
    """The text of --help: usage, then every setting with its default and its meaning."""
    lines, comments = [usage, ""], meanings()
    width = shutil.get_terminal_size((100, 24)).columns - 1
    for field in fields(Config):
        setting, meaning = f"  --{field.name}={field.default}", comments[field.name]
        whole = f"{setting:<34} {meaning}"
        narrow = textwrap.wrap(meaning, max(width - 6, 20))
        lines += [whole] if len(whole) <= width else [setting, *(f"      {n}" for n in narrow)]
    return "\n".join(lines)
