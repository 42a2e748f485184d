"""Reference RMS norm, rotary positions, SwiGLU and KV write, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from plait.kernels.paged_attention.metadata import BLOCK_SIZE


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * gain over the last axis, fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain.float()


def rope(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """Return x [rows, heads, head_dim] with its first 2 * cos.shape[1] dims rotated.

    Dim i turns together with dim i + cos.shape[1] (rotate-half, as GPT-NeoX has it).

    Args:
        cos, sin: [max_positions, rotary_dim / 2] fp32.
        positions: [rows] integers.
    """
    half = cos.shape[1]
    index = positions.long()
    c, s = cos[index].unsqueeze(1), sin[index].unsqueeze(1)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * c - second * s, second * c + first * s, rest], -1)


def write_kv(k: Tensor, v: Tensor, k_layer: Tensor, v_layer: Tensor, slots: Tensor) -> None:
    """Write k and v [rows, kv_heads, head_dim] into the cache of one layer at slots [rows] int64.

    k_layer [num_blocks, kv_heads, head_dim, 16], v_layer [num_blocks, kv_heads, 16, head_dim].
    """
    block, offset = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    k_layer[block, :, :, offset] = k.to(k_layer.dtype)
    v_layer[block, :, offset, :] = v.to(v_layer.dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    return silu(gate) * up
