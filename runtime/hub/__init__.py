"""Pretrained models as runs: `python -m runtime.hub import SOURCE out/NAME`."""
