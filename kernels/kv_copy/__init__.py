"""Copies inside the KV cache, all layers at once: blocks for forks, slots for accepted tree paths.

kv_k [layers, num_blocks, kv_heads, head_dim, 16], kv_v [layers, num_blocks, kv_heads, 16,
head_dim]; src and dst [n] integers (blocks, or slots = block * 16 + offset). dst holds no value
twice. Sources are read before destinations are written, so the two may overlap.
"""

from __future__ import annotations

from torch import Tensor

from plait.kernels import extension
from plait.kernels.kv_copy import reference as _naive

__all__ = ["copy_blocks", "move_slots"]


def copy_blocks(
    kv_k: Tensor, kv_v: Tensor, src: Tensor, dst: Tensor, *, naive: bool = False
) -> None:
    """Copy whole blocks src [n] to dst [n]."""
    if naive or not extension.is_supported(kv_k.device):
        _naive.copy_blocks(kv_k, kv_v, src, dst)
    else:
        extension.extension().copy_blocks(kv_k, kv_v, src, dst)


def move_slots(
    kv_k: Tensor, kv_v: Tensor, src: Tensor, dst: Tensor, *, naive: bool = False
) -> None:
    """Copy the tokens in slots src [n] to slots dst [n]."""
    if naive or not extension.is_supported(kv_k.device):
        _naive.move_slots(kv_k, kv_v, src, dst)
    else:
        extension.extension().move_slots(kv_k, kv_v, src, dst)
