"""Llama's blocks around any encoding: `python train.py configs/llama.py configs/rope.py`."""

norm = "rmsnorm"
mlp = "swiglu"
n_inner = 344  # 8/3 of n_embd, so that an MLP has as many weights as one with GELU
n_kv_head = 2
tie_embeddings = True
