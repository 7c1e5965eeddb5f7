"""Fine-tune out/rope to four times its trained length in 5 % of its steps:
`python train.py configs/rope.py configs/finetune.py --rope_scaling=yarn`."""

init_from = "out/rope"
block_size = 4 * 256
batch_size = 16 // 4
rope_train_len = 256
max_iters = 1200 // 20
warmup_iters = 6
learning_rate = 5e-4
min_lr = 5e-5
