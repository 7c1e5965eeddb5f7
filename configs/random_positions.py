"""Trained at random positions below four times the length (arXiv:2305.16843):
`python train.py configs/rope.py configs/random_positions.py`."""

train_positions = "random"
