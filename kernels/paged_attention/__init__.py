"""Attention of ragged query rows over the paged KV cache.

q [rows, heads, head_dim] fp32; one layer's keys [num_blocks, kv_heads, head_dim, 16] and values
[num_blocks, kv_heads, 16, head_dim], fp32 or bf16 -> [rows, heads, head_dim] fp32. Query head h
reads KV head h // (heads / kv_heads). A row sees the tokens 0 .. context_lens - 1 of its sequence
and those rows of its own segment that the attention mode names (metadata.py). With window > 0 only
keys whose position is above its own minus the window (a context key's position is its index). Every
row must see itself: its own key and value are in the cache.

Law: on the compiled path a row's bits depend on nothing but q, the keys and values it sees and
their places in the sequence: neither on chunking nor on other rows. The rows of a branch count as
standing right behind the context, so they have the bits of a FULL segment of their own; so do those
of each path of a tree, with the bits of a CAUSAL one. Every instruction set that has a fused
multiply-add gives the same bits.
"""

from __future__ import annotations

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
from plait.kernels.paged_attention.segments import AttentionSegment

__all__ = [
    "BLOCK_SIZE",
    "BRANCHES",
    "CAUSAL",
    "CONTEXT",
    "FULL",
    "SHADOW",
    "TREE",
    "AttentionMetadata",
    "AttentionSegment",
]
