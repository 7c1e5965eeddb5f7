"""`configs.load(argv)` -> `configs.Config`; the code is in runtime/config.py."""

from runtime.config import Config, load

__all__ = ["Config", "load"]
