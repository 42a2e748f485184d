"""The paged KV cache: its layout, and the memory that it is made of."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

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

    Raises:
        OSError, OverflowError, RuntimeError or MemoryError: there is no such amount of memory.
    """
    outer = (shape.layers, num_blocks, shape.kv_heads)
    keys, values = (*outer, shape.head_dim, BLOCK_SIZE), (*outer, BLOCK_SIZE, shape.head_dim)
    if device.type == "cpu":
        return KVCache(lazy_zeros(keys, shape.dtype), lazy_zeros(values, shape.dtype))
    return KVCache(
        torch.zeros(keys, dtype=shape.dtype, device=device),
        torch.zeros(values, dtype=shape.dtype, device=device),
    )


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros in CPU memory that the system hands out page by page, when it is first written.

    torch.zeros would write, and so take, all of it.

    Raises:
        OSError: the system does not promise that much.
    """
    size = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
