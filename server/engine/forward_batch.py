"""One forward pass as data: the rows that the model computes, what they see and what is read."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from plait.kernels.backend import KernelBackend
from plait.kernels.paged_attention import AttentionMetadata, AttentionSegment


class SequenceInput(NamedTuple):
    """What one sequence feeds in a pass."""

    segments: Sequences[AttentionSegment]
    logits_rows: Sequences[int] | None  # of its rows: whose logits are read; None: nobody reads any

    @property
    def num_rows(self) -> int:
        """Rows of all segments."""
        return sum([len(segment.token_ids) for segment in self.segments])


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The rows of a pass over several sequences, packed; all tensors are on the model's device."""

    token_ids: Tensor  # [rows] int64
    metadata: AttentionMetadata
    logits_index: Tensor | None  # [n] int64: the rows that are read, sequence by sequence; None:
    # all of them
    row_offsets: Sequences[int]  # [sequences + 1]: sequence i has the rows [i] .. [i + 1] - 1
    logits_offsets: Sequences[int]  # [read sequences + 1]: rows that are read, likewise

    @property
    def num_rows(self) -> int:
        """Rows that the model computes."""
        return self.row_offsets[-1]

    @property
    def num_read(self) -> int:
        """Rows whose logits are read."""
        return self.logits_offsets[-1]

    def read(self, hidden: Tensor) -> Tensor:
        """Return the rows of hidden [rows, n] that are read."""
        return hidden if self.logits_index is None else hidden[self.logits_index]


def build_forward_batch(inputs: Sequences[SequenceInput], backend: KernelBackend) -> ForwardBatch:
    """Pack what the sequences feed into the buffers of one pass, on the backend's device."""
    segments = [segment for each in inputs for segment in each.segments]
    token_ids, metadata = backend.pack_segments(segments)
    row_offsets = _offsets([each.num_rows for each in inputs])
    logits_offsets = _offsets(
        [len(each.logits_rows) for each in inputs if each.logits_rows is not None]
    )
    index: Tensor | None = None
    if logits_offsets[-1] < row_offsets[-1]:
        read = [
            first + row
            for each, first in zip(inputs, row_offsets, strict=False)
            for row in each.logits_rows or ()
        ]
        index = backend.tensor(read, torch.int64)
    return ForwardBatch(token_ids, metadata, index, row_offsets, logits_offsets)


def _offsets(lengths: Iterable[int]) -> list[int]:
    """Return 0 and the running sums of lengths."""
    return list(accumulate(lengths, initial=0))
