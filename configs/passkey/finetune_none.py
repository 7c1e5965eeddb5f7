"""5 % more steps, at 4x the trained length: run configs/passkey/rope.py first."""

name = "passkey-finetune-none"
init_from = "out/passkey-rope"
pos = "rope"
rope_scaling = "none"
rope_train_len = 128
dataset = "passkey-4x"
block_size = 4 * 128
batch_size = 8
max_iters = 30
warmup_iters = 3
learning_rate = 5e-4
log_interval = 10
