"""Learned gates forget, token by token: the Forgetting Transformer (arXiv:2503.02130)."""

pos = "fox"
