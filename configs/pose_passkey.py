"""The same for out/passkey-rope: `python train.py configs/passkey.py configs/rope.py
configs/pose_passkey.py`."""

init_from = "out/passkey-rope"
train_positions = "pose"
position_range = 4 * 128
rope_scaling = "yarn"
rope_factor = 4
max_iters = 500 // 20
warmup_iters = 3
learning_rate = 1e-3
min_lr = 1e-4
