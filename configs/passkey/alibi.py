"""Repeat a key out of noise: `python evaluate.py out/passkey-alibi --passkey` asks for it."""

name = "passkey-alibi"
pos = "alibi"
dataset = "passkey"
block_size = 128
batch_size = 32
max_iters = 500
warmup_iters = 50
optimizer = "muon"
learning_rate = 4e-3
min_lr = 4e-4
