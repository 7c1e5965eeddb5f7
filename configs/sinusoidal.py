"""Sines and cosines of the position, added to the tokens (arXiv:1706.03762)."""

pos = "sinusoidal"
