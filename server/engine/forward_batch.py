"""One forward pass as data: the rows that the model computes, what they see and what is read."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.decoders.contract.decoder import AttentionMode
from plait.kernels.backend import KernelBackend
from plait.kernels.paged_attention import AttentionMetadata
from plait.server.engine.kv.block_table import num_blocks_for, slot_mapping


@dataclass(frozen=True, slots=True)
class AttentionSegment:
    """Consecutive rows of one sequence with one attention mode: one entry of AttentionMetadata."""

    token_ids: Sequences[int]
    context_len: int  # tokens of the sequence that all rows see
    mode: AttentionMode
    parents: Sequences[int]  # [rows], see AttentionMetadata
    positions: NDArray[np.int64]  # [rows] rotary positions
    cache_positions: NDArray[np.int64]  # [rows] where in the sequence each row's KV is stored
    block_ids: Sequences[int]  # of the sequence

    @property
    def stop(self) -> int:
        """One past the last cache position that is read or written."""
        own = 0 if self.mode is AttentionMode.CONTEXT else len(self.token_ids)
        return self.context_len + own


@dataclass(frozen=True, slots=True)
class SequenceInput:
    """What one sequence feeds in a pass."""

    segments: Sequences[AttentionSegment]
    logits_rows: Sequences[int] | None  # of its rows: whose logits are read; None: nobody reads any

    @property
    def num_rows(self) -> int:
        """Rows of all segments."""
        return sum(len(segment.token_ids) for segment in self.segments)


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The rows of a pass over several sequences, packed; all tensors are on the model's device."""

    token_ids: Tensor  # [rows] int64
    metadata: AttentionMetadata
    logits_index: Tensor  # [n] int64: the rows whose logits are read, sequence by sequence
    row_offsets: Sequences[int]  # [sequences + 1]: sequence i has the rows [i] .. [i + 1] - 1
    logits_offsets: Sequences[int]  # [read sequences + 1]: entries of logits_index, likewise

    @property
    def num_rows(self) -> int:
        """Rows that the model computes."""
        return self.row_offsets[-1]


def causal_segment(
    token_ids: Sequences[int], context_len: int, block_ids: Sequences[int]
) -> AttentionSegment:
    """Return a segment that continues the first `context_len` tokens of a sequence."""
    stop = context_len + len(token_ids)
    positions = np.arange(context_len, stop, dtype=np.int64)
    parents = [-1] * len(token_ids)
    return AttentionSegment(
        token_ids, context_len, AttentionMode.CAUSAL, parents, positions, positions, block_ids
    )


def build_forward_batch(inputs: Sequences[SequenceInput], backend: KernelBackend) -> ForwardBatch:
    """Pack what the sequences feed into the buffers of one pass, on the backend's device."""
    segments = [segment for each in inputs for segment in each.segments]
    row_offsets = _offsets(each.num_rows for each in inputs)
    read = [
        [first + row for row in each.logits_rows]
        for each, first in zip(inputs, row_offsets, strict=False)
        if each.logits_rows is not None
    ]
    token_ids = [token for segment in segments for token in segment.token_ids]
    return ForwardBatch(
        token_ids=backend.tensor(token_ids, torch.int64),
        metadata=_metadata(segments, backend),
        logits_index=backend.tensor([row for rows in read for row in rows], torch.int64),
        row_offsets=row_offsets,
        logits_offsets=_offsets(len(rows) for rows in read),
    )


def _metadata(segments: Sequences[AttentionSegment], backend: KernelBackend) -> AttentionMetadata:
    max_blocks = num_blocks_for(max((segment.stop for segment in segments), default=0))
    tables = np.zeros((len(segments), max_blocks), dtype=np.int32)
    for row, segment in zip(tables, segments, strict=True):
        held = num_blocks_for(segment.stop)
        row[:held] = segment.block_ids[:held]
    slots = [slot_mapping(segment.block_ids, segment.cache_positions) for segment in segments]
    parents = [parent for segment in segments for parent in segment.parents]
    return AttentionMetadata(
        cu_seqlens_q=backend.tensor(_offsets(len(s.token_ids) for s in segments), torch.int32),
        context_lens=backend.tensor([s.context_len for s in segments], torch.int32),
        block_tables=backend.tensor(tables, torch.int32),
        attention_modes=backend.tensor([int(s.mode) for s in segments], torch.int32),
        parents=backend.tensor(parents, torch.int32),
        positions=backend.tensor(_joined(s.positions for s in segments), torch.int32),
        slot_mapping=backend.tensor(_joined(slots), torch.int64),
    )


def _joined(arrays: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, dtype=np.int64), *arrays])


def _offsets(lengths: Iterable[int]) -> list[int]:
    """Return 0 and the running sums of lengths."""
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    return offsets
