"""Reference copies inside the KV cache, in plain torch."""

from __future__ import annotations

from torch import Tensor

from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import BLOCK_SIZE


def copy_blocks(kv: KVCache, src: Tensor, dst: Tensor) -> None:
    """Copy whole blocks src [n] to dst [n] in all layers; all are read before any is written."""
    kv.k[:, dst.long()] = kv.k[:, src.long()]
    kv.v[:, dst.long()] = kv.v[:, src.long()]


def move_slots(kv: KVCache, src: Tensor, dst: Tensor) -> None:
    """Copy tokens from slots src [n] to dst [n] in all layers; all are read before any write."""
    from_block, from_offset = src.long() // BLOCK_SIZE, src.long() % BLOCK_SIZE
    to_block, to_offset = dst.long() // BLOCK_SIZE, dst.long() % BLOCK_SIZE
    kv.k[:, to_block, :, :, to_offset] = kv.k[:, from_block, :, :, from_offset]
    kv.v[:, to_block, :, to_offset] = kv.v[:, from_block, :, from_offset]
