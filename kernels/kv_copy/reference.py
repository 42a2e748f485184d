"""The oracle of the KV copies, and what serves on other devices."""

from __future__ import annotations

from torch import Tensor

from plait.kernels.paged_attention import BLOCK_SIZE


def copy_blocks(kv_k: Tensor, kv_v: Tensor, src: Tensor, dst: Tensor) -> None:
    """Copy whole blocks src [n] to dst [n] in all layers; all are read before any is written."""
    kv_k[:, dst.long()] = kv_k[:, src.long()]
    kv_v[:, dst.long()] = kv_v[:, src.long()]


def move_slots(kv_k: Tensor, kv_v: Tensor, src: Tensor, dst: Tensor) -> None:
    """Copy tokens from slots src [n] to dst [n] in all layers; all are read before any write."""
    from_block, from_offset = src.long() // BLOCK_SIZE, src.long() % BLOCK_SIZE
    to_block, to_offset = dst.long() // BLOCK_SIZE, dst.long() % BLOCK_SIZE
    kv_k[:, to_block, :, :, to_offset] = kv_k[:, from_block, :, :, from_offset]
    kv_v[:, to_block, :, to_offset] = kv_v[:, from_block, :, from_offset]
