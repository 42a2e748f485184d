"""Attention of ragged query rows over the paged KV cache.

q [rows, heads, head_dim] fp32; k_layer [num_blocks, kv_heads, head_dim, 16] and v_layer
[num_blocks, kv_heads, 16, head_dim], fp32 or bf16 -> [rows, heads, head_dim] fp32. Query head h
reads KV head h // (heads / kv_heads). Row i of a segment sees the tokens 0 .. context_lens - 1 of
its sequence and, of its own segment: CAUSAL the rows 0 .. i, TREE itself and its ancestors, FULL
all rows, BRANCHES those of its branch, SHADOW the first half (a row of the second half: itself
instead of its counterpart there), CONTEXT none. With window > 0 only keys whose position is above
its own minus the window (a context key's position is its index). Every row must see itself: its
own key and value are in the cache.
Law: on the compiled path a row's bits depend on nothing but q, the keys and values it sees and
their places in the sequence: neither on chunking nor on other rows. The rows of a branch count as
standing right behind the context, so they have the bits of a FULL segment of their own; so do those
of each path of a tree, with the bits of a CAUSAL one.
"""

from __future__ import annotations

from torch import Tensor

from plait.kernels import extension
from plait.kernels.paged_attention import reference as _naive
from plait.kernels.paged_attention.metadata import (
    BLOCK_SIZE,
    BRANCHES,
    CAUSAL,
    CONTEXT,
    FULL,
    SHADOW,
    TREE,
    AttentionMetadata,
)

__all__ = [
    "BLOCK_SIZE",
    "BRANCHES",
    "CAUSAL",
    "CONTEXT",
    "FULL",
    "SHADOW",
    "TREE",
    "AttentionMetadata",
    "paged_attention",
]


def paged_attention(
    q: Tensor,
    k_layer: Tensor,
    v_layer: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Return what each row reads from the cache, [rows, heads, head_dim] fp32."""
    if not extension.is_supported(q.device):
        return _naive.paged_attention(q, k_layer, v_layer, metadata, scale=scale, window=window)
    out: Tensor = extension.extension().paged_attention(
        q, k_layer, v_layer, metadata, scale, window
    )
    return out
