"""The paged KV cache: its layout, and how a new one is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plait.kernels.host_memory import lazy_zeros
from plait.kernels.paged_attention.metadata import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of all layers, in blocks of 16 tokens; keys lie with the tokens innermost."""

    k: Tensor  # [layers, num_blocks, kv_heads, head_dim, 16] fp32 or bf16
    v: Tensor  # [layers, num_blocks, kv_heads, 16, head_dim]


@dataclass(frozen=True, slots=True)
class KVCacheShape:
    """What a model needs of its cache."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        numbers = 2 * self.layers * self.kv_heads * self.head_dim * BLOCK_SIZE
        return numbers * self.dtype.itemsize


def new_kv_cache(shape: KVCacheShape, num_blocks: int, device: torch.device) -> KVCache:
    """Return an empty cache; on a CPU the system hands out its memory as blocks are first written.

    All layers of a block lie together, so that memory is taken for the blocks in use, and what a
    layer has of a block in one piece, keys before values.

    Raises:
        OSError, OverflowError, RuntimeError or MemoryError: there is no such amount of memory.
    """
    page = (shape.kv_heads, shape.head_dim * BLOCK_SIZE)
    size = (num_blocks, shape.layers, 2, *page)
    if device.type == "cpu":
        blocks = lazy_zeros(size, shape.dtype)
    else:
        blocks = torch.zeros(size, dtype=shape.dtype, device=device)
    keys, values = blocks.transpose(0, 1).unbind(2)
    outer = (shape.layers, num_blocks, shape.kv_heads)
    return KVCache(
        keys.view(*outer, shape.head_dim, BLOCK_SIZE),
        values.view(*outer, BLOCK_SIZE, shape.head_dim),
    )
