"""DroPE (arXiv:2512.12167): RoPE for 87.5 % of the steps, then none at the same length:
`python train.py configs/rope.py --max_iters=1050 --name=rope-1050`, then
`python train.py configs/rope.py configs/drope.py`."""

init_from = "out/rope-1050"
pos = "none"
max_iters = 1200 - 1050
warmup_iters = 15
learning_rate = 1e-3
min_lr = 1e-4
