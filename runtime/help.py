"""The text of `train.py --help`, made of the comments beside the settings."""

import inspect
import re
import shutil
import textwrap

import rope
from model import GPTConfig
from positions import KNOBS, EncodingConfig, PositionConfig
from runtime.config import DEFAULTS, Config


def meanings() -> dict[str, str]:
    """What each setting means: the comment beside its field."""
    parts = (rope, EncodingConfig, PositionConfig, GPTConfig, Config)
    source = "".join(inspect.getsource(part) for part in parts)
    comments = dict(re.findall(r"^    (\w+): [^#\n]+#\s*(.+)$", source, re.MULTILINE))
    for name in KNOBS:
        readers = [scaling for scaling in rope.SCALINGS if name in rope.settings(scaling)]
        comments[name] = f"{', '.join(readers)}: {comments[name]}"
    return comments


def describe(usage: str) -> str:
    """The text of --help: usage, then every setting with its default and its meaning."""
    lines, comments = [usage, ""], meanings()
    width = shutil.get_terminal_size((100, 24)).columns - 1
    for name, default in DEFAULTS.items():
        setting, meaning = f"  --{name}={default}", comments[name]
        line = f"{setting:<34} {meaning}"
        if len(line) <= width:
            lines.append(line)
        else:
            wrapped = textwrap.wrap(meaning, max(width - 6, 20))
            lines += [setting, *(f"      {part}" for part in wrapped)]
    return "\n".join(lines)
