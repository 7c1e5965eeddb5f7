"""Polar coordinates: content sets magnitudes, position sets angles (arXiv:2509.10534)."""

pos = "pope"
