"""A trained vector for each position (GPT-2)."""

pos = "learned"
