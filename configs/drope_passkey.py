"""The same for retrieval: `python train.py configs/passkey.py configs/rope.py --max_iters=438
--name=passkey-rope-438`, then
`python train.py configs/passkey.py configs/rope.py configs/drope_passkey.py`."""

init_from = "out/passkey-rope-438"
pos = "none"
max_iters = 500 - 438
warmup_iters = 6
learning_rate = 1e-3
min_lr = 1e-4
