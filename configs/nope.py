"""No position encoding (arXiv:2305.19466)."""

pos = "none"
