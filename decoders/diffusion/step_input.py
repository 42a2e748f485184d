"""Which rows a canvas feeds, and in which row of logits the law of each position stands.

Block attention: the canvas stands behind what the engine feeds by itself, drafts of it are
branches, its shadow is a second half; nothing of it stays cached. Full attention: rows are
refreshed in place, all of them or those that a cache policy names; branches and shadows repeat the
whole canvas. A model with a shift predicts position i in row i - 1. The row before a canvas is read
in the pass that feeds it, and kept by the host (see ANCHOR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.decoders.contract.decoder import AttentionMode, Proposal
from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.protocols import Ints
from plait.decoders.diffusion.spec import DiffusionSpec

PRECEDING_ROW = -1  # the row before the canvas, kept from an earlier pass


@dataclass(frozen=True, slots=True)
class LogitsIndex:
    """Positions whose laws are read off one canvas, and where."""

    positions: Ints  # rising
    rows: Ints  # of the sequence's logits; ANCHOR: the kept one


@dataclass(frozen=True, slots=True)
class StepInput:
    """What a sequence feeds and reads in one pass."""

    proposal: Proposal
    canvases: Sequence[Canvas]  # the certain one first, then drafts
    readings: Sequence[LogitsIndex]  # one for each
    shadow: LogitsIndex | None = None  # settled positions, and their shadow rows
    reads_anchor: bool = False  # logits row 0 is the row before the canvas: keep it


def block_input(
    canvases: Sequence[Canvas], wanted: Ints, spec: DiffusionSpec, *, has_anchor: bool
) -> StepInput:
    """Plan a canvas of a block-causal model, with drafts of it.

    Args:
        canvases: equal but for the holes that drafts fill.
        wanted: positions whose laws are read off each canvas.
        spec: of the model.
        has_anchor: the host keeps the row before the canvas.
    """
    certain = canvases[0]
    size = len(certain.ids)
    at = wanted - certain.start - spec.shift  # rows of one copy; -1 is before it
    before = at < 0
    reads_anchor = bool(before.any()) and not has_anchor
    inside = at[~before]
    readings = []
    for i in range(len(canvases)):
        first = int(reads_anchor) + i * len(inside)
        rows = np.full(len(at), 0 if reads_anchor else PRECEDING_ROW)
        rows[~before] = np.arange(first, first + len(inside))
        readings.append(LogitsIndex(wanted, rows))
    read = [PRECEDING_ROW] * reads_anchor
    read += [int(row) for i in range(len(canvases)) for row in inside + i * size]
    if size == 1:
        shows = [] if spec.shift else certain.shown(spec.mask_id).tolist()
        proposal = Proposal(shows, AttentionMode.CAUSAL, read=read)
    else:
        proposal = _copies(canvases, spec, read)
    return StepInput(proposal, canvases, readings, reads_anchor=reads_anchor)


def leave_one_out_input(
    canvas: Canvas, wanted: Ints, revisable: Ints, spec: DiffusionSpec
) -> StepInput:
    """Plan a canvas and its shadow: a second copy, all holes, that sees the first.

    Args:
        canvas: of either attention.
        wanted: positions whose laws are read off the canvas itself.
        revisable: settled positions whose laws are read off the shadow.
        spec: of the model; its rows predict their own position.
    """
    size = len(canvas.ids)
    rows, ghosts = wanted - canvas.start, revisable - canvas.start + size
    positions = list(range(canvas.start, canvas.stop)) * 2
    proposal = Proposal(
        [*canvas.shown(spec.mask_id).tolist(), *[spec.mask_id] * size],
        AttentionMode.SHADOW,
        positions=positions,
        read=[*rows.tolist(), *ghosts.tolist()],
    )
    middle = len(rows)
    return StepInput(
        proposal,
        [canvas],
        [LogitsIndex(wanted, np.arange(middle))],
        LogitsIndex(revisable, np.arange(middle, middle + len(ghosts))),
    )


def full_input(
    canvases: Sequence[Canvas], wanted: Ints, fed: Ints | None, spec: DiffusionSpec
) -> StepInput:
    """Plan a canvas with full attention.

    Args:
        canvases: as in block_plan; drafts only where all rows are fed.
        wanted: as in block_plan.
        fed: positions to compute again; None: all.
        spec: of the model.
    """
    law_rows = np.maximum(wanted - spec.shift, 0)  # nothing stands before position 0
    size = len(canvases[0].ids)
    if len(canvases) > 1:
        read = np.unique(law_rows)
        index = np.searchsorted(read, law_rows)
        all_rows = [int(row) for i in range(len(canvases)) for row in read + i * size]
        readings = [LogitsIndex(wanted, index + i * len(read)) for i in range(len(canvases))]
        return StepInput(_copies(canvases, spec, all_rows), canvases, readings)
    rows = np.arange(size) if fed is None else np.union1d(fed, np.union1d(wanted, law_rows))
    read = np.searchsorted(rows, np.unique(law_rows))
    proposal = Proposal(
        canvases[0].shown(spec.mask_id)[rows].tolist(),
        AttentionMode.CONTEXT,
        positions=rows.tolist(),
        length=size,
        read=read.tolist(),
    )
    return StepInput(
        proposal,
        canvases,
        [LogitsIndex(wanted, np.searchsorted(read, np.searchsorted(rows, law_rows)))],
    )


def _copies(canvases: Sequence[Canvas], spec: DiffusionSpec, read: Sequence[int]) -> Proposal:
    """Feed every canvas whole; each sees itself and what is before the canvas."""
    certain = canvases[0]
    size, count = len(certain.ids), len(canvases)
    shown = np.concatenate([canvas.shown(spec.mask_id) for canvas in canvases]).tolist()
    if count == 1:
        return Proposal(shown, AttentionMode.FULL, read=read)
    return Proposal(
        shown,
        AttentionMode.BRANCHES,
        parents=np.repeat(np.arange(count), size).tolist(),
        positions=list(range(certain.start, certain.stop)) * count,
        read=read,
    )
