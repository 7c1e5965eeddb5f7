"""PoSE (arXiv:2309.10400): fine-tune out/rope to four times its trained length on windows of that
length, with as many tokens as configs/finetune.py: `python train.py configs/rope.py
configs/pose.py`; without a scaling: `--rope_scaling=none --rope_factor=none`."""

init_from = "out/rope"
train_positions = "pose"
position_range = 4 * 256
rope_scaling = "yarn"
rope_factor = 4
max_iters = 1200 // 20
warmup_iters = 6
learning_rate = 5e-4
min_lr = 5e-5
