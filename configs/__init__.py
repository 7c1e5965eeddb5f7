"""Config files, and how they are read: `configs.load(argv)`."""

from runtime.config import Config, load

__all__ = ["Config", "load"]
