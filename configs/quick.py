"""A character model of the size of nanoGPT's CPU demo, trained to the same loss in less time."""

dataset = "tinyshakespeare"
block_size = 64
batch_size = 20
optimizer = "muon"
learning_rate = 0.015
min_lr = 0
warmup_iters = 20
max_iters = 300
rope_theta = 1000
eval_interval = 300
eval_tokens = 110000
