"""An MLP of the distance, as a share of the query's position (arXiv:2310.04418)."""

pos = "fire"
