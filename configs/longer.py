"""Trained at four times the length from the start, on as many tokens a step:
`python train.py configs/rope.py configs/longer.py`."""

block_size = 4 * 256
batch_size = 16 // 4
