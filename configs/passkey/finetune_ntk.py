"""5 % more steps, at 4x the trained length: run configs/passkey/rope.py first."""

name = "passkey-finetune-ntk"
init_from = "out/passkey-rope"
pos = "rope"
rope_scaling = "ntk"
rope_train_len = 128
dataset = "passkey-4x"
block_size = 4 * 128
batch_size = 8
max_iters = 500 // 20
warmup_iters = 3
optimizer = "muon"
learning_rate = 1e-3
min_lr = 1e-4
