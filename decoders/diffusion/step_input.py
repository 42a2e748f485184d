"""The rows that a canvas feeds in one pass, and which rows of logits predict its positions.

Block attention: the canvas stands behind the tokens that the engine feeds by itself. Drafts of it
are branches, its leave-one-out view is a second half; none of it stays cached. Full attention: rows
are computed in place, all of them or those that a cache policy names; branches and leave-one-out
views repeat the whole canvas. A model with a shift predicts position i in row i - 1. Then the row
before the canvas is read in the pass that feeds it, and its logits are kept (PRECEDING_ROW).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.decoders.contract.decoder import AttentionMode, Proposal
from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.protocols import Ints
from plait.decoders.diffusion.spec import DiffusionSpec

PRECEDING_ROW = -1  # the row before the canvas, whose logits are kept from an earlier pass


@dataclass(frozen=True, slots=True)
class LogitsIndex:
    """The positions of one canvas that are read, and the rows of logits that predict them."""

    positions: Ints  # [r] rising
    rows: Ints  # [r] of the sequence's logits; PRECEDING_ROW: the kept ones


@dataclass(frozen=True, slots=True)
class StepInput:
    """What a sequence feeds and reads in one pass."""

    proposal: Proposal
    canvases: Sequence[Canvas]  # the current one first, then drafts
    logits: Sequence[LogitsIndex]  # one for each canvas
    leave_one_out: LogitsIndex | None = None  # unmasked positions in the view without them
    reads_preceding: bool = False  # row 0 of the logits is the row before the canvas: keep it


def block_input(
    canvases: Sequence[Canvas], positions: Ints, spec: DiffusionSpec, *, has_preceding: bool
) -> StepInput:
    """Return the input of a canvas with block attention, and of drafts of it.

    Args:
        canvases: equal except for the positions that drafts fill.
        positions: to be read off each canvas.
        spec: of the model.
        has_preceding: the logits of the row before the canvas are kept.
    """
    current = canvases[0]
    size = len(current.ids)
    at = positions - current.start - spec.shift  # rows of one copy; -1 is before it
    before = at < 0
    reads_preceding = bool(before.any()) and not has_preceding
    inside = at[~before]
    logits = []
    for i in range(len(canvases)):
        first = int(reads_preceding) + i * len(inside)
        rows = np.full(len(at), 0 if reads_preceding else PRECEDING_ROW)
        rows[~before] = np.arange(first, first + len(inside))
        logits.append(LogitsIndex(positions, rows))
    read = [PRECEDING_ROW] * reads_preceding
    read += [int(row) for i in range(len(canvases)) for row in inside + i * size]
    if size == 1:
        fed = [] if spec.shift else current.input_ids(spec.mask_id).tolist()
        proposal = Proposal(fed, AttentionMode.CAUSAL, read=read)
    else:
        proposal = _copies(canvases, spec, read)
    return StepInput(proposal, canvases, logits, reads_preceding=reads_preceding)


def leave_one_out_input(
    canvas: Canvas, positions: Ints, revisable: Ints, spec: DiffusionSpec
) -> StepInput:
    """Return the input of a canvas and of its leave-one-out view.

    The view is a second copy of masks only; the row of a position sees the canvas without it.

    Args:
        canvas: with block or full attention.
        positions: to be read off the canvas itself.
        revisable: unmasked positions to be read off the view.
        spec: of the model, whose rows predict their own position.
    """
    size = len(canvas.ids)
    rows, view_rows = positions - canvas.start, revisable - canvas.start + size
    proposal = Proposal(
        [*canvas.input_ids(spec.mask_id).tolist(), *[spec.mask_id] * size],
        AttentionMode.SHADOW,
        positions=list(range(canvas.start, canvas.stop)) * 2,
        read=[*rows.tolist(), *view_rows.tolist()],
    )
    middle = len(rows)
    view = LogitsIndex(revisable, np.arange(middle, middle + len(view_rows)))
    return StepInput(proposal, [canvas], [LogitsIndex(positions, np.arange(middle))], view)


def full_input(
    canvases: Sequence[Canvas], positions: Ints, computed: Ints | None, spec: DiffusionSpec
) -> StepInput:
    """Return the input of a canvas with full attention.

    Args:
        canvases: as in block_input; drafts only where all positions are computed.
        positions: as in block_input.
        computed: positions to compute again; None: all.
        spec: of the model.
    """
    predicting = np.maximum(positions - spec.shift, 0)  # nothing stands before position 0
    size = len(canvases[0].ids)
    if len(canvases) > 1:
        read = np.unique(predicting)
        index = np.searchsorted(read, predicting)
        all_rows = [int(row) for i in range(len(canvases)) for row in read + i * size]
        logits = [LogitsIndex(positions, index + i * len(read)) for i in range(len(canvases))]
        return StepInput(_copies(canvases, spec, all_rows), canvases, logits)
    if computed is None:
        rows = np.arange(size)
    else:
        rows = np.union1d(computed, np.union1d(positions, predicting))
    read = np.searchsorted(rows, np.unique(predicting))
    proposal = Proposal(
        canvases[0].input_ids(spec.mask_id)[rows].tolist(),
        AttentionMode.CONTEXT,
        positions=rows.tolist(),
        length=size,
        read=read.tolist(),
    )
    index = np.searchsorted(read, np.searchsorted(rows, predicting))
    return StepInput(proposal, canvases, [LogitsIndex(positions, index)])


def _copies(canvases: Sequence[Canvas], spec: DiffusionSpec, read: Sequence[int]) -> Proposal:
    """Feed every canvas whole; each sees itself and what is before the canvas."""
    current = canvases[0]
    size, count = len(current.ids), len(canvases)
    fed = np.concatenate([canvas.input_ids(spec.mask_id) for canvas in canvases]).tolist()
    if count == 1:
        return Proposal(fed, AttentionMode.FULL, read=read)
    return Proposal(
        fed,
        AttentionMode.BRANCHES,
        parents=np.repeat(np.arange(count), size).tolist(),
        positions=list(range(current.start, current.stop)) * count,
        read=read,
    )
