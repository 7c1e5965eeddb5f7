"""One model for all tasks of data/tasks.py: `python train.py configs/mixture.py configs/rope.py`,
then `python evaluate.py out/mixture-rope --task multikey`."""

dataset = "mixture"
block_size = 128
batch_size = 32
max_iters = 2500
warmup_iters = 100
optimizer = "muon"
learning_rate = 4e-3
min_lr = 4e-4
