"""The ceiling: trained at four times the length from the start, on as many tokens a step."""

name = "rope-4x"
pos = "rope"
block_size = 4 * 256
batch_size = 16 // 4
