"""What the sequences of a pass feed, segment by segment, packed into the tensors of the pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plait.kernels.paged_attention.metadata import BLOCK_SIZE, CAUSAL, CONTEXT, AttentionMetadata


class AttentionSegment(NamedTuple):
    """Consecutive rows of one sequence with one attention mode: one entry of AttentionMetadata.

    A tuple, since every step makes one for each sequence.
    """

    token_ids: Sequence[int]
    context_len: int  # tokens of the sequence that all rows see
    block_ids: Sequence[int]  # of the sequence
    mode: int = CAUSAL
    parents: Sequence[int] | None = None  # [rows], see AttentionMetadata; None: -1 everywhere
    positions: Sequence[int] | None = None  # [rows] rotary positions; None: behind the context.
    # CONTEXT: also where each row's KV is stored; it is stored behind the context otherwise

    @property
    def stop(self) -> int:
        """One past the last cache position that is read or written."""
        return self.context_len + (0 if self.mode == CONTEXT else len(self.token_ids))


def pack_segments(segments: Sequence[AttentionSegment]) -> tuple[Tensor, AttentionMetadata]:
    """Return the token ids [rows] int64 of all segments, and their metadata, on the CPU.

    Raises:
        ValueError, IndexError: a segment has too few blocks, or fields that do not fit its rows.
    """
    tokens, parents, positions, slots = list[int](), list[int](), list[int](), list[int]()
    starts, max_blocks = [0], max((_num_blocks(segment) for segment in segments), default=0)
    tables = torch.zeros(len(segments), max_blocks, dtype=torch.int32)
    for table, segment in zip(tables, segments, strict=True):
        rows, held = len(segment.token_ids), _num_blocks(segment)
        if held > len(segment.block_ids):
            raise ValueError(
                f"a segment of {segment.stop} tokens has {len(segment.block_ids)} blocks"
            )
        behind = range(segment.context_len, segment.context_len + rows)
        own = behind if segment.positions is None else segment.positions
        above = [-1] * rows if segment.parents is None else segment.parents
        if not rows == len(own) == len(above):
            raise ValueError(f"{rows} rows have {len(own)} positions and {len(above)} parents")
        table[:held] = _ints(segment.block_ids[:held])
        tokens.extend(segment.token_ids)
        positions.extend(own)
        parents.extend(above)
        slots.extend(_slots(segment.block_ids, own if segment.mode == CONTEXT else behind))
        starts.append(starts[-1] + rows)
    return torch.tensor(tokens, dtype=torch.int64), AttentionMetadata(
        cu_seqlens_q=_ints(starts),
        context_lens=_ints(segment.context_len for segment in segments),
        block_tables=tables,
        attention_modes=_ints(segment.mode for segment in segments),
        parents=_ints(parents),
        positions=_ints(positions),
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
    )


def _num_blocks(segment: AttentionSegment) -> int:
    return -(-segment.stop // BLOCK_SIZE)


def _slots(block_ids: Sequence[int], positions: Iterable[int]) -> list[int]:
    return [block_ids[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for at in positions]


def _ints(values: Iterable[int]) -> Tensor:
    return torch.tensor([int(value) for value in values], dtype=torch.int32)
