"""Attention metadata of one forward pass: which query rows form a segment, and what they see."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

import torch
from torch import Tensor

BLOCK_SIZE: Final = 16  # tokens of one KV block

# Attention modes: what a row sees of its own segment. The numbers are those of
# plait.decoders.contract.decoder.AttentionMode.
CAUSAL: Final = 0  # the rows up to itself
TREE: Final = 1  # itself and its ancestors
FULL: Final = 2  # all rows
BRANCHES: Final = 3  # all rows of its branch
SHADOW: Final = 4  # the first half; row i of the second half sees itself in place of row i
CONTEXT: Final = 5  # nothing: its own token is part of the context


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """The segments of a pass: runs of consecutive rows of one sequence with one attention mode.

    Every row sees itself and the first context_lens[i] tokens of its sequence. A sequence may have
    several segments in one pass. All keys and values of a layer are written before any are read, so
    the context of one segment may hold the rows of another. All tensors are on the model's device;
    s is the number of segments.

    block_tables and slot_mapping may have a leading dimension of layers, where the layers store or
    select different blocks.
    """

    cu_seqlens_q: Tensor  # [s + 1] int32: segment i has the rows cu_seqlens_q[i] .. [i + 1] - 1
    context_lens: Tensor  # [s] int32: row j is token context_lens + j (CONTEXT: any of the context)
    block_tables: Tensor  # [s, max_blocks] int32: token t is in block t // 16 of the row
    attention_modes: Tensor  # [s] int32: the constants above
    parents: Tensor  # [rows] int32. TREE: an earlier row of the segment, -1 for a root; BRANCHES:
    # a number that the rows of one branch share
    positions: Tensor  # [rows] int32: rotary position (TREE: context_lens + depth)
    slot_mapping: Tensor  # [rows] int64: block * 16 + offset where the row's KV is written

    def to(self, device: torch.device) -> AttentionMetadata:
        """Return the metadata on a device."""
        return AttentionMetadata(*(getattr(self, each.name).to(device) for each in fields(self)))

    def at_layer(self, layer: int) -> AttentionMetadata:
        """Return the metadata of one layer: tables of [s, max_blocks], slots of [rows]."""
        tables, slots = self.block_tables, self.slot_mapping
        if tables.dim() == 2 and slots.dim() == 1:
            return self
        return replace(
            self,
            block_tables=tables[layer] if tables.dim() == 3 else tables,
            slot_mapping=slots[layer] if slots.dim() == 2 else slots,
        )
