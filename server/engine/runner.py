"""One ragged forward pass: slices in, packed logits out."""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.decoders.contract.decoder import AttentionMode, Forward, Proposal
from plait.kernels.backend import KernelBackend
from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import AttentionMetadata
from plait.server.engine.kv.block_table import num_blocks_for, slot_mapping
from plait.server.engine.sequence import ScheduledSequence, Sequence


class RunnableModel(Protocol):
    """What the runner needs of a model (plait.server.models.transformer.Transformer)."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    def forward(self, token_ids: Tensor, metadata: AttentionMetadata, kv: KVCache) -> Tensor:
        """Return hidden states [rows, hidden]; writes the rows' keys and values."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [rows, vocab] float32."""


@dataclass(frozen=True, slots=True)
class AttentionSegment:
    """Rows of one sequence that attend alike: one entry of AttentionMetadata."""

    token_ids: Sequences[int]
    context: int  # positions of the sequence that all rows see
    attend: AttentionMode
    parents: Sequences[int]  # [rows]
    positions: NDArray[np.int64]  # [rows] rotary
    places: NDArray[np.int64]  # [rows] where in the sequence each row's key and value are stored
    blocks: Sequences[int]

    @property
    def stop(self) -> int:
        """One past the last place that is read or written."""
        own = 0 if self.attend is AttentionMode.CONTEXT else len(self.token_ids)
        return self.context + own


class Runner:
    """Owns the KV cache of one model and runs steps over it."""

    def __init__(self, model: RunnableModel, kv: KVCache, backend: KernelBackend) -> None:
        self.model = model
        self.kv = kv
        self.backend = backend

    def copy_block(self, source: int, destination: int) -> None:
        """Copy one KV block (copy-on-write)."""
        pair = self.backend.tensor([[source], [destination]], torch.int64)
        self.backend.copy_blocks(self.kv, pair[0], pair[1])

    def compact(self, piece: ScheduledSequence, keep: Sequences[int]) -> None:
        """Move the kept rows of a proposal to where the text continues.

        Nothing moves when they are already the first ones: plain chains and whole canvases.
        """
        if list(keep) == list(range(len(keep))):
            return
        positions = np.arange(piece.start, piece.start + piece.num_proposed_tokens, dtype=np.int64)
        slots = slot_mapping(piece.sequence.block_table.block_ids, positions)
        source = self.backend.tensor(slots[np.asarray(keep)], torch.int64)
        target = self.backend.tensor(slots[: len(keep)], torch.int64)
        self.backend.move_slots(self.kv, source, target)

    def forward(self, slices: Sequences[ScheduledSequence]) -> tuple[Tensor, NDArray[np.int64]]:
        """Run the model; return hidden states [rows, hidden] and row offsets [slices + 1]."""
        pieces = [piece for each in slices for piece in pieces_of(each)]
        offsets = _offsets([each.num_rows for each in slices])
        if not pieces:
            return torch.empty(0, 0, device=self.backend.device), offsets
        token_ids = [token for piece in pieces for token in piece.token_ids]
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self.backend.device)
        return self.model.forward(ids, segments_of(pieces, self.backend.device), self.kv), offsets

    def logits(
        self, slices: Sequences[ScheduledSequence], hidden: Tensor, offsets: NDArray[np.int64]
    ) -> Forward:
        """Return logits for the rows that decoders read."""
        rows: list[int] = []
        starts = [0]
        for each, first in zip(slices, offsets[:-1].tolist(), strict=True):
            if each.proposal is not None:
                rows.extend(first + row for row in rows_read(each))
                starts.append(len(rows))
        if not rows:
            return Forward(
                torch.empty(0, self.model.vocab_size, device=self.backend.device), starts
            )
        index = torch.tensor(rows, dtype=torch.int64, device=self.backend.device)
        read = hidden[index]
        return Forward(self.model.logits(read), starts, read)


def pieces_of(piece: ScheduledSequence) -> list[AttentionSegment]:
    """Return the segments of one slice: pending rows, then proposed rows.

    A proposed chain attends as plain pending rows do, so both become one segment. With a block
    other than 1, every block of pending rows is a segment whose rows all see each other.
    """
    sequence, proposal = piece.sequence, piece.proposal
    first = sequence.num_computed_tokens
    pending = sequence.text[first : piece.start]
    proposed = list(proposal.token_ids) if proposal else []
    if proposal is None or not proposed:
        return _pending_pieces(sequence, pending)
    if proposal.attend is AttentionMode.CONTEXT:
        return [_in_place(sequence, proposal)]
    if proposal.attend is AttentionMode.CAUSAL and sequence.attention_block_size == 1:
        return [_piece(sequence, first, pending + proposed)]
    parents = [-1] * len(proposed) if proposal.parents is None else proposal.parents
    tail = _piece(sequence, piece.start, proposed, proposal.attend, parents)
    if proposal.positions is not None:
        tail = replace(tail, positions=np.asarray(proposal.positions, dtype=np.int64))
    elif proposal.attend is AttentionMode.TREE:
        tail = replace(tail, positions=piece.start + _depths(parents))
    return [*_pending_pieces(sequence, pending), tail]


def rows_read(piece: ScheduledSequence) -> Sequences[int]:
    """Return the rows of a slice whose logits its decoder reads."""
    proposal, last = piece.proposal, piece.num_pending - 1
    if proposal is None:
        return ()
    if proposal.read is None:
        return range(max(last, 0), piece.num_rows)
    assert last >= 0 or -1 not in proposal.read, "no pending row is fed, so none can be read"
    return [piece.num_pending + row for row in proposal.read]


def _pending_pieces(sequence: Sequence, tokens: list[int]) -> list[AttentionSegment]:
    if not tokens:
        return []
    first, size = sequence.num_computed_tokens, sequence.attention_block_size
    if size == 1:
        return [_piece(sequence, first, tokens)]
    return [
        _piece(sequence, first + i, tokens[i : i + size], AttentionMode.FULL)
        for i in range(0, len(tokens), size)
    ]


def _piece(
    sequence: Sequence,
    start: int,
    token_ids: list[int],
    attend: AttentionMode = AttentionMode.CAUSAL,
    parents: Sequences[int] | None = None,
) -> AttentionSegment:
    """Return rows that are stored one after the other behind the first `start` tokens."""
    places = np.arange(start, start + len(token_ids), dtype=np.int64)
    parents = [-1] * len(token_ids) if parents is None else parents
    return AttentionSegment(
        token_ids, start, attend, parents, places, places, sequence.block_table.block_ids
    )


def _in_place(sequence: Sequence, proposal: Proposal) -> AttentionSegment:
    assert sequence.attention_block_size == 0, (
        "only a sequence without cached text refreshes rows in place"
    )
    places = np.asarray(proposal.positions, dtype=np.int64)
    parents = [-1] * len(places)
    return AttentionSegment(
        proposal.token_ids,
        proposal.length,
        AttentionMode.CONTEXT,
        parents,
        places,
        places,
        sequence.block_table.block_ids,
    )


def segments_of(pieces: Sequences[AttentionSegment], device: torch.device) -> AttentionMetadata:
    """Return the attention kernel's description of the pieces, on the device."""
    tables = np.zeros((len(pieces), num_blocks_for(max(p.stop for p in pieces))), dtype=np.int32)
    for row, piece in zip(tables, pieces, strict=True):
        held = num_blocks_for(piece.stop)
        row[:held] = piece.blocks[:held]

    def tensor(array: NDArray[np.generic] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.asarray(array)).to(device=device, dtype=dtype)

    slots = [slot_mapping(piece.blocks, piece.places) for piece in pieces]
    return AttentionMetadata(
        cu_seqlens_q=tensor(_offsets([len(piece.token_ids) for piece in pieces]), torch.int32),
        context_lens=tensor([piece.context for piece in pieces], torch.int32),
        block_tables=tensor(tables, torch.int32),
        attention_modes=tensor([int(piece.attend) for piece in pieces], torch.int32),
        parents=tensor([p for piece in pieces for p in piece.parents], torch.int32),
        positions=tensor(np.concatenate([piece.positions for piece in pieces]), torch.int32),
        slot_mapping=tensor(np.concatenate(slots), torch.int64),
    )


def _depths(parents: Sequences[int]) -> NDArray[np.int64]:
    """Return how far below the text each row of a tree stands."""
    depths: list[int] = []
    for parent in parents:  # parents come before their children
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return np.asarray(depths, dtype=np.int64)


def _offsets(lengths: Sequences[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
