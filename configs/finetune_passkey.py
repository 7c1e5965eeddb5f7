"""The same for out/passkey-rope: `python train.py configs/passkey.py configs/rope.py
configs/finetune_passkey.py --rope_scaling=yarn`."""

init_from = "out/passkey-rope"
dataset = "passkey-4x"
block_size = 4 * 128
batch_size = 8
rope_train_len = 128
max_iters = 500 // 20
warmup_iters = 3
learning_rate = 1e-3
min_lr = 1e-4
