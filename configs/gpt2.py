"""GPT-2 124M on 8 GPUs:
`torchrun --standalone --nproc_per_node=8 train.py configs/gpt2.py configs/rope.py`."""

dataset = "books-gpt2"  # 3 M tokens, to see it run; for a real run prepare a corpus of billions
vocab_size = 50304  # 50257, rounded up to a multiple of 64
block_size = 1024
n_layer = 12
n_head = 12
n_embd = 768
batch_size = 12
gradient_accumulation_steps = 5 * 8
max_iters = 600000
learning_rate = 6e-4
min_lr = 6e-5
warmup_iters = 2000
beta2 = 0.95
eval_interval = 1000
eval_tokens = 20 * 4 * 1024
log_interval = 10
dtype = "bfloat16"
compile = True
