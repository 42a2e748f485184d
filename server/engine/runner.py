"""One ragged forward pass: slices in, packed logits out."""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.decoders.protocol import Attend, Forward
from plait.kernels.kv_copy import copy_blocks, move_slots
from plait.kernels.paged_attention import Segments
from plait.server.engine.kv_blocks import as_slots, num_blocks_for
from plait.server.engine.sequence import Slice
from plait.server.models.transformer import KVCache


class Model(Protocol):
    """What the runner needs of a model (plait.server.models.transformer.Model)."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    def forward(self, token_ids: Tensor, segments: Segments, kv: KVCache) -> Tensor:
        """Return hidden states [rows, hidden]; writes the rows' keys and values."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [rows, vocab] float32."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one sequence that attend alike: one entry of Segments."""

    token_ids: Sequences[int]
    start: int  # logical position of the first row; all before it is context
    attend: Attend
    parents: Sequences[int]  # [rows]
    blocks: Sequences[int]


class Runner:
    """Owns the KV cache of one model and runs steps over it."""

    def __init__(self, model: Model, kv: KVCache, device: torch.device) -> None:
        self.model = model
        self.kv = kv
        self.device = device

    def copy_block(self, source: int, destination: int) -> None:
        """Copy one KV block (copy-on-write)."""
        pair = torch.tensor([[source], [destination]], dtype=torch.int64, device=self.device)
        copy_blocks(self.kv.k, self.kv.v, pair[0], pair[1])

    def compact(self, piece: Slice, keep: Sequences[int]) -> None:
        """Move the kept rows of a proposal to where the text continues.

        Nothing moves when they are already the first ones: plain chains and whole canvases.
        """
        if list(keep) == list(range(len(keep))):
            return
        sequence = piece.sequence
        start = sequence.num_cached + piece.num_pending
        slots = as_slots(sequence.blocks, start, start + piece.num_rows - piece.num_pending)
        source = torch.from_numpy(slots[np.asarray(keep)]).to(self.device)
        target = torch.from_numpy(slots[: len(keep)]).to(self.device)
        move_slots(self.kv.k, self.kv.v, source, target)

    def forward(self, slices: Sequences[Slice]) -> tuple[Tensor, NDArray[np.int64]]:
        """Run the model; return hidden states [rows, hidden] and row offsets [slices + 1]."""
        pieces = [piece for each in slices for piece in pieces_of(each)]
        token_ids = [token for piece in pieces for token in piece.token_ids]
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self.device)
        hidden = self.model.forward(ids, segments_of(pieces, self.device), self.kv)
        return hidden, _offsets([each.num_rows for each in slices])

    def logits(
        self, slices: Sequences[Slice], hidden: Tensor, offsets: NDArray[np.int64]
    ) -> Forward:
        """Return logits for the rows that decoders read: the last pending and the proposed ones."""
        rows: list[int] = []
        starts = [0]
        for each, first in zip(slices, offsets[:-1].tolist(), strict=True):
            if each.proposal is not None:
                rows.extend(range(first + max(each.num_pending - 1, 0), first + each.num_rows))
                starts.append(len(rows))
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        return Forward(self.model.logits(hidden[index]), starts)


def pieces_of(piece: Slice) -> list[Piece]:
    """Return the segments of one slice: pending rows, then proposed rows.

    A proposed chain attends as pending rows do, so both become one segment.
    """
    sequence, proposal = piece.sequence, piece.proposal
    start, middle = sequence.num_cached, sequence.num_cached + piece.num_pending
    pending = sequence.tokens[start:middle]
    proposed = list(proposal.token_ids) if proposal else []
    if proposal is None or proposal.attend is Attend.CAUSAL or not proposed:
        rows = pending + proposed
        return [Piece(rows, start, Attend.CAUSAL, [-1] * len(rows), sequence.blocks)]
    parents = [-1] * len(proposed) if proposal.parents is None else proposal.parents
    head = [Piece(pending, start, Attend.CAUSAL, [-1] * len(pending), sequence.blocks)]
    tail = Piece(proposed, middle, proposal.attend, parents, sequence.blocks)
    return [*(head if pending else []), tail]


def segments_of(pieces: Sequences[Piece], device: torch.device) -> Segments:
    """Return the attention kernel's description of the pieces, on the device."""
    lengths = [len(piece.token_ids) for piece in pieces]
    stops = [piece.start + rows for piece, rows in zip(pieces, lengths, strict=True)]
    tables = np.zeros((len(pieces), num_blocks_for(max(stops))), dtype=np.int32)
    for row, piece, stop in zip(tables, pieces, stops, strict=True):
        held = num_blocks_for(stop)
        row[:held] = piece.blocks[:held]

    def tensor(array: NDArray[np.generic] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.asarray(array)).to(device=device, dtype=dtype)

    return Segments(
        row_start=tensor(_offsets(lengths), torch.int32),
        context_len=tensor([piece.start for piece in pieces], torch.int32),
        block_tables=tensor(tables, torch.int32),
        attend=tensor([int(piece.attend) for piece in pieces], torch.int32),
        parents=tensor([p for piece in pieces for p in piece.parents], torch.int32),
        positions=tensor(np.concatenate([_positions(piece) for piece in pieces]), torch.int32),
        slots=tensor(
            np.concatenate(
                [
                    as_slots(piece.blocks, piece.start, stop)
                    for piece, stop in zip(pieces, stops, strict=True)
                ]
            ),
            torch.int64,
        ),
    )


def _positions(piece: Piece) -> NDArray[np.int64]:
    """Rotary positions: a tree row stands at its depth, all others where they are stored."""
    if piece.attend is not Attend.TREE:
        return np.arange(piece.start, piece.start + len(piece.token_ids), dtype=np.int64)
    depths: list[int] = []
    for parent in piece.parents:  # parents come before their children
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return piece.start + np.asarray(depths, dtype=np.int64)


def _offsets(lengths: Sequences[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
