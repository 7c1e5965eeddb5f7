"""Repeat a key out of noise: `python evaluate.py out/passkey-learned --passkey` asks for it."""

name = "passkey-learned"
pos = "learned"
dataset = "passkey"
block_size = 128
batch_size = 32
max_iters = 500
warmup_iters = 50
optimizer = "muon"
learning_rate = 4e-3
min_lr = 4e-4
