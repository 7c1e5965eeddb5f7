"""RoPE in a window of a quarter of the trained length, and no positions in every fourth layer
(RNoPE-SWA, arXiv:2501.18795; Cohere's and Llama 4's pattern)."""

pos = "rope"
layers = "LLLG"
window = 256 // 4
global_pos = "none"
