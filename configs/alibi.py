"""Scores that fall linearly with distance (arXiv:2108.12409)."""

pos = "alibi"
