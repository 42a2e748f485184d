"""One step on a canvas: which positions are unmasked and remasked, and where its blocks end.

Law: the next canvas is a function of the canvas, of the draws on it and of the pipeline, so equal
canvases develop equally, however they were reached. Every step unmasks at least one position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.constraints.canvas_constraint import (
    CanvasConstraint,
    ConstrainedDraws,
)
from plait.decoders.diffusion.pipeline import UnmaskingPipeline
from plait.decoders.diffusion.protocols import Bools, Floats, Ints, StepView


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a step on a canvas depends on, beside the canvas, its draws and the pipeline."""

    output_length: int  # positions of the canvas that belong to the output
    step: int  # number of the step
    constraint: CanvasConstraint | None = None
    fillable: Ints | None = None  # positions that a constraint may fill without a draw; None: all.
    # Where logprobs are due, those whose logits were read


def unmask(
    canvas: Canvas,
    pipeline: UnmaskingPipeline,
    view: StepView,
    context: StepContext,
    constrained: ConstrainedDraws | None = None,
) -> Floats:
    """Make one step in place: unmask, remask, end the text.

    Args:
        canvas: to be changed.
        pipeline: of the sequence.
        view: the draws; under a constraint, the constrained ones.
        context: of the step.
        constrained: what the constraint allows, if there is one.

    Returns the scores [m] that drafts are ordered by; -inf where a position may not be unmasked.
    """
    scores = pipeline.selector.score(view)
    selection = pipeline.selector.select(view, canvas.memories[0])
    chosen = selection.unmask
    if constrained is not None:
        eligible = constrained.allowed & ~constrained.literal
        scores = np.where(eligible, scores, -np.inf)
        chosen = (chosen & eligible) | constrained.required
    chosen = _at_least_one(chosen, scores)
    canvas.memories = (selection.memory, canvas.memories[1])
    canvas.block_step += 1
    canvas.remask(selection.remask)
    if pipeline.scaffold is not None and constrained is not None:
        p = np.where(chosen, 1.0, view.p)
        chosen = chosen | pipeline.scaffold.place(constrained.literal, p)
    if constrained is not None and constrained.admit is not None:
        view, chosen = constrained.admit(view, chosen, scores)
    _fill(canvas, view, chosen, context.step)
    end = _predicted_end(canvas, pipeline, view)
    if end is not None and (context.constraint is None or context.constraint.fits(canvas, end + 1)):
        _fill(canvas, view, (view.positions == end) & ~chosen, context.step)
        canvas.end_at(end)
    return scores


def finish_blocks(canvas: Canvas, pipeline: UnmaskingPipeline, context: StepContext) -> bool:
    """Let a constraint act on what was unmasked, and begin the next block where one is done.

    Changes the canvas in place; returns whether a block was finished.
    """
    if context.constraint is None:
        return _finish_block(canvas, pipeline)
    block_start = canvas.block_start
    while canvas.block_start < canvas.stop:
        stop = min(canvas.lookahead_stop(pipeline, context.output_length), canvas.stop)
        context.constraint.fill_forced(canvas, stop, context.step, context.fillable)
        if len(canvas.open_positions(canvas.block_start, stop)):
            break
        canvas.block_stop = stop
        _finish_block(canvas, pipeline)
        if canvas.constraint_end is not None:
            break
    return canvas.block_start != block_start


def _finish_block(canvas: Canvas, pipeline: UnmaskingPipeline) -> bool:
    """Begin the next block if no position of this one is open; return whether that is so."""
    if canvas.block_stop and len(canvas.open_positions(canvas.block_start, canvas.block_stop)):
        return False
    start = canvas.block_stop
    if pipeline.attention == "full":  # given tokens between two blocks need no step
        start = canvas.first_masked(min(start, canvas.stop))
    canvas.next_block(start)
    return True


def _at_least_one(chosen: Bools, scores: Floats) -> Bools:
    """Return the choice; where it is empty, the best-scored position, ties to the first."""
    if chosen.any():
        return chosen
    only = np.zeros_like(chosen)
    only[int(np.argmax(scores))] = True
    return only


def _fill(canvas: Canvas, view: StepView, chosen: Bools, step: int) -> None:
    canvas.unmask(view.positions[chosen], view.tokens[chosen], view.is_end[chosen], step)


def _predicted_end(canvas: Canvas, pipeline: UnmaskingPipeline, view: StepView) -> int | None:
    """Return the position where the stopper ends the text, if it does."""
    if pipeline.stopper is None:
        return None
    tokens = canvas.tokens(view.start, view.stop)
    return pipeline.stopper.end(replace(view, block_tokens=tokens))
