"""Reference paged attention, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.kernels.paged_attention.metadata import (
    BLOCK_SIZE,
    BRANCHES,
    CAUSAL,
    CONTEXT,
    SHADOW,
    TREE,
    AttentionMetadata,
)


def paged_attention(
    q: Tensor,
    k_layer: Tensor,
    v_layer: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Return softmax(scale * q k) v over the keys that each row sees, [rows, heads, head_dim] fp32.

    Shapes and laws in the package's docstring. Cost: a Python loop over the segments.
    """
    out = torch.empty_like(q, dtype=torch.float32)
    starts = metadata.cu_seqlens_q.tolist()
    contexts = metadata.context_lens.tolist()
    kinds = metadata.attention_modes.tolist()
    for i, (context, kind) in enumerate(zip(contexts, kinds, strict=True)):
        rows = slice(starts[i], starts[i + 1])
        if rows.start == rows.stop:
            continue
        length = context + (0 if kind == CONTEXT else rows.stop - rows.start)
        keys, values = _gather(k_layer, v_layer, metadata.block_tables[i], length)
        seen = _seen(metadata, rows, context, kind=kind, window=window)
        out[rows] = _attend(q[rows].float(), keys, values, seen, scale)
    return out


def _gather(k_layer: Tensor, v_layer: Tensor, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return keys and values of the first `length` tokens, [kv_heads, length, head_dim] fp32."""
    blocks = table[: -(-length // BLOCK_SIZE)].long()
    keys = k_layer[blocks].permute(1, 0, 3, 2).flatten(1, 2)
    values = v_layer[blocks].permute(1, 0, 2, 3).flatten(1, 2)
    return keys[:, :length].float(), values[:, :length].float()


def _seen(
    metadata: AttentionMetadata, rows: slice, context: int, *, kind: int, window: int
) -> Tensor:
    """Return which keys each row sees, [r, context + r]; CONTEXT: [r, context]."""
    positions = metadata.positions[rows].long()
    device = positions.device
    own = _kin(metadata.parents[rows].cpu(), kind).to(device)
    before = torch.ones(len(positions), context, dtype=torch.bool, device=device)
    seen = torch.cat([before, own], 1)
    if window:
        keys = torch.cat([torch.arange(context, device=device), positions[: own.shape[1]]])
        seen &= keys > (positions - window).unsqueeze(1)
    return seen


def _kin(parents: Tensor, kind: int) -> Tensor:
    """Return which rows of its segment each row sees, [r, r]; CONTEXT: [r, 0]."""
    count = len(parents)
    everything = torch.ones(count, count, dtype=torch.bool)
    if kind == CAUSAL:
        return everything.tril()
    if kind == TREE:
        return _ancestors(parents.tolist())
    if kind == BRANCHES:
        return parents[:, None] == parents[None, :]
    if kind == SHADOW:
        return _shadowed(count)
    return everything[:, :0] if kind == CONTEXT else everything


def _shadowed(count: int) -> Tensor:
    half = count // 2
    seen = torch.zeros(count, count, dtype=torch.bool)
    seen[:, :half] = True
    seen[half:, :half].fill_diagonal_(False)
    seen[half:, half:].fill_diagonal_(True)
    return seen


def _ancestors(parents: list[int]) -> Tensor:
    seen = torch.eye(len(parents), dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            seen[row] |= seen[parent]
    return seen


def _attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """q [r, heads, d], keys and values [kv_heads, n, d], seen [r, n] -> [r, heads, d]."""
    rows, heads, dim = q.shape
    kv_heads = keys.shape[0]
    queries = q.view(rows, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3)
    scores = queries @ keys.transpose(1, 2).unsqueeze(1) * scale  # [kv, group, r, n]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ values.unsqueeze(1)).permute(2, 0, 1, 3).reshape(rows, heads, dim)
