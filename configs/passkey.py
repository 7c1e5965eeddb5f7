"""Retrieve a key from random letters: `python train.py configs/passkey.py configs/rope.py`."""

dataset = "passkey"
block_size = 128
batch_size = 32
max_iters = 500
warmup_iters = 50
optimizer = "muon"
learning_rate = 4e-3
min_lr = 4e-4
