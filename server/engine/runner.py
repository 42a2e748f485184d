"""Runs forward passes of one model over its KV cache, and says what scheduled sequences feed."""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from plait.decoders.contract.decoder import AttentionMode, Forward
from plait.kernels.backend import KernelBackend
from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import AttentionMetadata, AttentionSegment
from plait.server.engine.forward_batch import ForwardBatch, SequenceInput
from plait.server.engine.kv.block_table import slot_mapping
from plait.server.engine.sequence import ScheduledSequence, Sequence


class RunnableModel(Protocol):
    """What the runner needs of a model (plait.server.models.transformer.Transformer)."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    def forward(
        self,
        token_ids: Tensor,
        metadata: AttentionMetadata,
        kv: KVCache,
        read: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states [rows, hidden]; writes the rows' keys and values.

        Rows that are not `read` may hold anything.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [rows, vocab] float32."""


class Runner:
    """Owns the KV cache of one model and runs forward passes over it."""

    def __init__(self, model: RunnableModel, kv: KVCache, backend: KernelBackend) -> None:
        self.model = model
        self.kv = kv
        self.backend = backend

    def copy_block(self, source: int, destination: int) -> None:
        """Copy one KV block (copy-on-write)."""
        pair = self.backend.tensor([[source], [destination]], torch.int64)
        self.backend.copy_blocks(self.kv, pair[0], pair[1])

    def compact(self, piece: ScheduledSequence, keep: Sequences[int]) -> None:
        """Move the KV of the kept rows of a proposal to where the text continues.

        Nothing moves when they are already the first ones: plain chains and whole canvases.
        """
        if not keep or list(keep) == list(range(len(keep))):
            return
        positions = np.arange(piece.start, piece.start + piece.num_proposed_tokens, dtype=np.int64)
        slots = slot_mapping(piece.sequence.block_table.block_ids, positions)
        source = self.backend.tensor(slots[np.asarray(keep)], torch.int64)
        target = self.backend.tensor(slots[: len(keep)], torch.int64)
        self.backend.move_slots(self.kv, source, target)

    def forward(self, batch: ForwardBatch, *, whole: bool = False) -> Tensor:
        """Run the model over a batch; return hidden states [rows, hidden].

        Only the rows whose logits are read hold them, unless the `whole` is asked for.
        """
        if not batch.num_rows:
            return torch.empty(0, 0, device=self.backend.device)
        read = None if whole else batch.logits_index
        return self.model.forward(batch.token_ids, batch.metadata, self.kv, read)

    def logits(self, batch: ForwardBatch, hidden: Tensor) -> Forward:
        """Return the logits that are read of a batch, from its hidden states [rows, hidden]."""
        if not batch.num_read:
            empty = torch.empty(0, self.model.vocab_size, device=self.backend.device)
            return Forward(empty, batch.logits_offsets)
        read = batch.read(hidden)
        return Forward(self.model.logits(read), batch.logits_offsets, read)


def scheduled_input(piece: ScheduledSequence) -> SequenceInput:
    """Return what a scheduled sequence feeds: pending tokens, then the rows of its proposal."""
    return SequenceInput(_segments(piece), _logits_rows(piece))


def _segments(piece: ScheduledSequence) -> list[AttentionSegment]:
    """Return the segments of one scheduled sequence.

    A proposed chain attends as plain pending tokens do, so both become one segment. With an
    attention block size other than 1, every block of pending tokens is a segment of its own.
    """
    sequence, proposal = piece.sequence, piece.proposal
    first, start = sequence.num_computed_tokens, piece.start
    pending = sequence.text.token_ids[first:start]
    if proposal is None or not proposal.token_ids:
        return _pending_segments(sequence, pending)
    block_ids, proposed = sequence.block_table.block_ids, list(proposal.token_ids)
    if proposal.attend is AttentionMode.CONTEXT:
        assert sequence.attention_block_size == 0, "only sequences without cached text refresh rows"
        length, mode = proposal.length, AttentionMode.CONTEXT
        return [AttentionSegment(proposed, length, block_ids, mode, positions=proposal.positions)]
    if proposal.attend is AttentionMode.CAUSAL and sequence.attention_block_size == 1:
        return [AttentionSegment(pending + proposed, first, block_ids)]
    positions = proposal.positions
    if positions is None and proposal.attend is AttentionMode.TREE:
        parents = proposal.parents or [-1] * len(proposed)
        positions = [start + depth for depth in _depths(parents)]
    tail = AttentionSegment(
        proposed, start, block_ids, proposal.attend, proposal.parents, positions
    )
    return [*_pending_segments(sequence, pending), tail]


def _pending_segments(sequence: Sequence, tokens: list[int]) -> list[AttentionSegment]:
    if not tokens:
        return []
    first, size = sequence.num_computed_tokens, sequence.attention_block_size
    block_ids = sequence.block_table.block_ids
    if size == 1:
        return [AttentionSegment(tokens, first, block_ids)]
    return [
        AttentionSegment(tokens[i : i + size], first + i, block_ids, AttentionMode.FULL)
        for i in range(0, len(tokens), size)
    ]


def _logits_rows(piece: ScheduledSequence) -> Sequences[int] | None:
    """Return the rows of a scheduled sequence whose logits its decoder reads; None: no decoder."""
    proposal, last = piece.proposal, piece.num_pending - 1
    if proposal is None:
        return None
    if proposal.read is None:
        return range(max(last, 0), piece.num_rows)
    assert last >= 0 or -1 not in proposal.read, "no pending row is fed, so none can be read"
    return [piece.num_pending + row for row in proposal.read]


def _depths(parents: Sequences[int]) -> list[int]:
    """Return the depth of each row of a tree, 0 for its roots."""
    depths: list[int] = []
    for parent in parents:  # parents come before their children
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths
