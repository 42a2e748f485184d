"""What a sequence feeds in its next pass: its canvas, and drafts of the canvases to come.

A draft is the canvas that the next steps would leave if they drew what the last step has drawn: the
current canvas with 1, 2, .. more of its positions unmasked, the best-scored first. All are fed in
one pass. If a step turns the current canvas into exactly a draft, the draft's logits are those of
the next pass, and the next step uses them at once (step.py). Law: tokens and steps are those of one
canvas per pass, because a step is a function of the canvas; there are never more passes.

Source: FreeDave, arXiv:2510.00294, algorithm 1. Differences: equality instead of inclusion, so
every selector keeps its own steps; sampling works too, because noise is a function of the position.
"""

from __future__ import annotations

import numpy as np

from plait.decoders.contract.decoder import Proposal
from plait.decoders.diffusion.canvas import GIVEN, Canvas, LiteralDraws, PendingDraws
from plait.decoders.diffusion.constraints.canvas_constraint import CanvasConstraint
from plait.decoders.diffusion.protocols import CacheView, Ints, Scaffold
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.diffusion.state import DiffusionState
from plait.decoders.diffusion.step_input import (
    StepInput,
    block_input,
    full_input,
    leave_one_out_input,
)

DRAFTED = -1  # the step of a token that no step has unmasked
EMPTY = StepInput(Proposal(), (), ())


def step_input(state: DiffusionState, spec: DiffusionSpec, budget: int) -> StepInput:
    """Return what a sequence feeds and reads in the next pass; budget: rows for its drafts."""
    if state.fault or not state.output_positions:
        return EMPTY
    pipeline, canvas = state.pipeline, state.canvas
    stop = canvas.lookahead_stop(pipeline, state.num_canvas_outputs)
    positions = canvas.open_positions(canvas.block_start, stop)
    if "block_p" in pipeline.needs:
        positions = np.arange(canvas.block_start, stop)
    if pipeline.revises and len(revisable := _revisable(canvas)):
        return leave_one_out_input(canvas, positions, revisable, spec)
    canvases = _canvases(state, len(positions), budget)
    if pipeline.attention == "block":
        has_preceding = state.preceding_logits is not None
        return block_input(canvases, positions, spec, has_preceding=has_preceding)
    computed = _computed(state, stop)
    return full_input(canvases, _readable(state, positions, computed), computed, spec)


def draft_canvases(
    canvas: Canvas,
    pending: PendingDraws,
    count: int,
    constraint: CanvasConstraint | None,
    scaffold: Scaffold | None = None,
) -> list[Canvas]:
    """Return the canvas and up to `count` drafts of it, each with more positions unmasked.

    There is no draft without a masked position, which would have nothing to predict, and none in
    which a constraint masks positions again, whose rows are not read.
    """
    canvases = [canvas]
    for i, position in enumerate(pending.positions.tolist()):
        if len(canvases) > count:
            break
        last = canvases[-1]
        if not last.masked[position - last.start] or position >= last.text_stop:
            continue
        draft = last.fork()
        at = slice(i, i + 1)
        draft.unmask(pending.positions[at], pending.tokens[at], pending.is_end[at], DRAFTED)
        _place_literals(draft, pending.literals, scaffold)
        if constraint is not None:
            constraint.fill_forced(draft, canvas.block_stop, DRAFTED)
        is_open = len(draft.open_positions(canvas.block_start, canvas.block_stop)) > 0
        if not is_open or (draft.masked & ~canvas.masked).any():
            break
        canvases.append(draft)
    return canvases


def _place_literals(
    draft: Canvas, literals: LiteralDraws | None, scaffold: Scaffold | None
) -> None:
    """Unmask the literals that the draft's step would unmask with the same draws."""
    if literals is None or scaffold is None:
        return
    is_open = draft.masked[literals.positions - draft.start]
    p = np.where(is_open, literals.p, 1.0)
    at = is_open & scaffold.place(literals.literal, p)
    positions = literals.positions[at]
    draft.unmask(positions, literals.tokens[at], np.zeros(len(positions), np.bool_), DRAFTED)


def _revisable(canvas: Canvas) -> Ints:
    """Return the unmasked positions of the block that may be masked again."""
    stop = max(canvas.block_stop, canvas.block_start)
    at = slice(canvas.block_start - canvas.start, stop - canvas.start)
    return np.flatnonzero(canvas.unmasked_in[at] != GIVEN) + canvas.block_start


def _canvases(state: DiffusionState, num_positions: int, budget: int) -> list[Canvas]:
    """Return the canvas and as many drafts of it as the verifier wants."""
    verifier, pending = state.pipeline.verifier, state.progress.pending
    if verifier is None or pending is None:
        return [state.canvas]
    width = verifier.width(num_positions, len(state.canvas.ids), budget)
    scaffold = state.pipeline.scaffold
    return draft_canvases(state.canvas, pending, width - 1, state.constraint, scaffold)


def _computed(state: DiffusionState, stop: int) -> Ints | None:
    """Return the positions that the cache policy computes again; None: all.

    stop: one past the block's last position.
    """
    pipeline, canvas, progress = state.pipeline, state.canvas, state.progress
    if pipeline.cache is None or progress.passes_since_refresh == 0:
        return None
    positions = canvas.open_positions(canvas.block_start, stop)
    view = CacheView(
        length=len(canvas.ids),
        prompt=state.output_positions[0],
        start=canvas.block_start,
        stop=stop,
        positions=positions,
        newly_unmasked=progress.newly_unmasked,
        p=progress.p[positions] if len(progress.p) else np.zeros(len(positions)),
        step=canvas.block_step,
        passes_since_refresh=progress.passes_since_refresh,
    )
    return pipeline.cache.active_positions(view)


def _readable(state: DiffusionState, positions: Ints, computed: Ints | None) -> Ints:
    """Return the positions that are read: a cache policy may leave some of the block out."""
    if computed is None:
        return positions
    canvas = state.canvas
    kept = np.isin(positions, computed)
    if state.constraint is not None:  # its bitmask is for the first masked position
        kept |= positions == canvas.first_masked(canvas.block_start)
    is_masked = canvas.masked[positions - canvas.start]
    return positions[kept] if (kept & is_masked).any() else positions
