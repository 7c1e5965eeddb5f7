"""Scores fall with the logarithm of distance, at learned slopes (arXiv:2205.09921)."""

pos = "kerple"
