"""Benchmarks, reports, and one script for each claim about position encodings."""
