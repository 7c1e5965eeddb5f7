"""A learned bias for each range of distance (arXiv:1910.10683)."""

pos = "t5"
