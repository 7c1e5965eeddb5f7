"""Llama's blocks at the size of the default model: RMSNorm, SwiGLU, half as many key and value
heads, an untied head. Stacks: `python train.py configs/llama.py configs/rope.py`."""

norm = "rmsnorm"
mlp = "swiglu"
n_kv_head = 4 // 2
tie_embeddings = False
