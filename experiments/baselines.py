"""The baselines of bench.py: rotations as others write them, and other people's models.

Letters: T time, D head_dim, F = D/2 planes.
"""

import importlib.util
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from model import GPT, GPTConfig


def complex_rotation(x: Tensor, cis: Tensor) -> Tensor:
    """Meta's LLaMA: neighbouring channels (..., T, D) as complex numbers, times cis (T, F)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * cis).flatten(-2).type_as(x)


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """transformers: x cos + (-b, a) sin, tables (T, D) in the dtype of x (..., T, D)."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


@torch.no_grad()
def gpt_neox(model: GPT) -> nn.Module:
    """transformers' GPT-NeoX with the weights of a rope model, for `generate` with its cache."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM  # noqa: PLC0415 (not required)

    c = model.config
    config = GPTNeoXConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.n_embd,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        intermediate_size=4 * c.n_embd,
        max_position_embeddings=c.block_size,
        hidden_act="gelu",
        use_parallel_residual=False,
        attention_bias=False,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}
        | {"partial_rotary_factor": 1.0},
    )
    twin = GPTNeoXForCausalLM(config).eval()
    for parameter in twin.parameters():
        parameter.zero_()  # its biases: a GPT has none
    twin.gpt_neox.embed_in.weight.copy_(model.wte.weight)
    twin.gpt_neox.final_layer_norm.weight.copy_(model.ln_f.weight)
    for theirs, ours in zip(twin.gpt_neox.layers, model.h, strict=True):
        # Theirs orders rows by head, then by q, k and v; ours the other way.
        qkv = ours.attn.c_attn.weight.unflatten(0, (3, c.n_head, -1))
        theirs.attention.query_key_value.weight.copy_(qkv.transpose(0, 1).flatten(0, 2))
        theirs.attention.dense.weight.copy_(ours.attn.c_proj.weight)
        theirs.input_layernorm.weight.copy_(ours.ln_1.weight)
        theirs.post_attention_layernorm.weight.copy_(ours.ln_2.weight)
        theirs.mlp.dense_h_to_4h.weight.copy_(ours.mlp.c_fc.weight)
        theirs.mlp.dense_4h_to_h.weight.copy_(ours.mlp.c_proj.weight)
    return twin


def load_nanogpt(folder: str) -> ModuleType:
    """model.py of a clone of nanoGPT. ValueError where the folder has none."""
    path = Path(folder) / "model.py"
    if not path.is_file():
        raise ValueError(f"nanogpt is {folder}; it must be a clone of nanoGPT, with a model.py")
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def nanogpt(folder: str, config: GPTConfig) -> nn.Module:
    """nanoGPT's model of this size, as in its CPU demo: no dropout, no biases."""
    module = load_nanogpt(folder)
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    sizes = {name: getattr(config, name) for name in names}
    with redirect_stdout(sys.stderr):
        return module.GPT(module.GPTConfig(**sizes, dropout=0.0, bias=False))


def nanogpt_step(
    model: nn.Module, tokens: np.ndarray, size: int, forward: Callable | None = None
) -> Callable[[], None]:
    """One training step as in nanoGPT's train.py: AdamW, batches of slices.

    float32 on a CPU; on a GPU bfloat16, and pinned batches. `forward` is the compiled model.
    """
    T, device = model.config.block_size, next(model.parameters()).device
    on_gpu, forward = device.type == "cuda", model if forward is None else forward
    with redirect_stdout(sys.stderr):
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device.type)

    def batch() -> list[Tensor]:
        starts = torch.randint(len(tokens) - T, (size,))
        rows = [torch.from_numpy(tokens[i : i + T + 1].astype(np.int64)) for i in starts]
        xy = torch.stack([row[:-1] for row in rows]), torch.stack([row[1:] for row in rows])
        return [t.pin_memory().to(device, non_blocking=True) if on_gpu else t for t in xy]

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            _, loss = forward(*batch())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
