"""Rotary position embedding (arXiv:2104.09864)."""

pos = "rope"
