"""The step map: what one forward pass makes of a canvas.

Law: the canvas that follows is a function of the canvas, of what was drawn on it and of the chain;
so equal canvases, however they came to be, go on alike. Every step settles at least one hole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.constraints.canvas_constraint import (
    CanvasConstraint,
    ConstrainedDraws,
)
from plait.decoders.diffusion.draws import PositionDraws
from plait.decoders.diffusion.pipeline import UnmaskingPipeline
from plait.decoders.diffusion.protocols import Bools, Floats, Ints, LogitBias, StepView


def outlook(canvas: Canvas, chain: UnmaskingPipeline, answer: int) -> int:
    """Return where the rows end that the next step reads; they begin with the block.

    answer: positions of the canvas that can become text, settled or not (for windows).
    """
    if canvas.end:
        return canvas.end
    if chain.window is None:
        return min(canvas.begin + chain.block_size, canvas.stop)
    remaining = min(canvas.stop, canvas.reach) - canvas.begin
    reach = min(chain.window.reach(remaining, answer), remaining)
    return max(canvas.begin + reach, canvas.first_hole(canvas.begin) + 1)


def wanted(canvas: Canvas, chain: UnmaskingPipeline, stop: int) -> Ints:
    """Return the positions whose rows the next step reads, rising; stop: of its outlook."""
    if "block_p" in chain.needs:
        return np.arange(canvas.begin, stop)
    return canvas.open_holes(canvas.begin, stop)


def view_of(
    canvas: Canvas,
    drawn: PositionDraws,
    stop: int,
    *,
    ends: frozenset[int],
    key: tuple[int, int],
    shadow: Floats | None = None,
) -> StepView:
    """Return what methods see of the block canvas.begin..stop-1, or of a look-ahead."""
    start = canvas.begin
    inside = (drawn.positions >= start) & (drawn.positions < min(stop, canvas.reach))
    inside &= canvas.hole[drawn.positions - canvas.start]
    holes = drawn.only(inside)
    block_p = None
    if drawn.best_p is not None:
        block_p = np.zeros(stop - start)
        read = (drawn.positions >= start) & (drawn.positions < stop)
        block_p[drawn.positions[read] - start] = drawn.best_p[read]
    return StepView(
        holes=holes.positions,
        tokens=holes.tokens,
        p=holes.p,
        is_end=(holes.tokens[:, None] == np.array([*ends], np.int64)).any(axis=1),
        start=start,
        stop=stop,
        settled=canvas.seen(start, stop),
        step=canvas.step,
        key=key,
        p2=holes.p2,
        entropy=holes.entropy,
        top=holes.top,
        block_p=block_p,
        shadow=shadow,
    )


def open_block(canvas: Canvas, chain: UnmaskingPipeline, view: StepView) -> None:
    """Fix how far the block reaches that begins with this look-ahead."""
    length = view.stop - view.start
    if chain.window is not None and len(view.holes):
        length = min(max(chain.window.length(view), 1), length)
        # a block without an open hole would make no step
        length = max(length, int(view.holes[0]) - view.start + 1)
    canvas.end = canvas.begin + length


def bias_of(canvas: Canvas, chain: UnmaskingPipeline, view: StepView) -> LogitBias | None:
    """Return what the scorer adds to the holes' logits, and let the canvas remember it."""
    if chain.scorer is None or not len(view.holes):
        return None
    selector, scorer = canvas.memories
    bias = chain.scorer.bias(view, scorer)
    canvas.memories = (selector, bias.memory)
    return bias


def settle(
    canvas: Canvas,
    chain: UnmaskingPipeline,
    view: StepView,
    number: int,
    ruling: ConstrainedDraws | None = None,
) -> Floats:
    """Make the sequence's step of this number, in place: settle, reopen, end.

    Args:
        canvas, chain, view, number: the step's.
        ruling: what a constraint allows; `view` is its view.

    Returns the scores of the view's holes [h], by which drafts are made; -inf where none is.
    """
    scores = chain.selector.score(view)
    selection = chain.selector.select(view, canvas.memories[0])
    chosen = selection.settle
    if ruling is not None:
        eligible = ruling.admitted & ~ruling.literal
        scores = np.where(eligible, scores, -np.inf)
        chosen = (chosen & eligible) | ruling.must
    chosen = at_least_one(chosen, scores)
    canvas.memories = (selection.memory, canvas.memories[1])
    canvas.step += 1
    canvas.reopen(selection.reopen)
    if chain.scaffold is not None and ruling is not None:
        chosen = chosen | chain.scaffold.place(ruling.literal, np.where(chosen, 1.0, view.p))
    _fill(canvas, view, chosen, number)
    end = _end(canvas, chain, view)
    if end is not None and (ruling is None or ruling.guard.has_room(canvas, end + 1)):
        _fill(canvas, view, (view.holes == end) & ~chosen, number)
        canvas.end_at(end)
    return scores


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a canvas goes on in, beside its chain."""

    answer: int  # as in `outlook`
    number: int  # of the step
    guard: CanvasConstraint | None = None  # under a constraint
    rows: Ints | None = None  # positions it may fill by itself: those whose laws were read, where
    # the logprobs of all tokens are asked for; None: all


def go_on(canvas: Canvas, chain: UnmaskingPipeline, scene: StepContext) -> bool:
    """Let a constraint act on what was settled, and finish blocks; tell whether any was."""
    guard = scene.guard
    if guard is None:
        return finish_block(canvas, chain)
    begin = canvas.begin
    while canvas.begin < canvas.stop:
        stop = min(outlook(canvas, chain, scene.answer), canvas.stop)
        guard.close(canvas, stop, scene.number, scene.rows)
        if len(canvas.open_holes(canvas.begin, stop)):
            break
        canvas.end = stop
        finish_block(canvas, chain)
        if canvas.over is not None:
            break
    return canvas.begin != begin


def finish_block(canvas: Canvas, chain: UnmaskingPipeline) -> bool:
    """Go on to the next block if none of this one's holes is open; tell whether it did."""
    if canvas.end and len(canvas.open_holes(canvas.begin, canvas.end)):
        return False
    begin = canvas.end
    if chain.attention == "full":  # whatever is given between two blocks needs no step
        begin = canvas.first_hole(min(begin, canvas.stop))
    canvas.next_block(begin)
    return True


def at_least_one(chosen: Bools, scores: Floats) -> Bools:
    """Return the choice, or the best-scored hole alone where it is empty; equals: the first."""
    if chosen.any():
        return chosen
    only = np.zeros_like(chosen)
    only[int(np.argmax(scores))] = True
    return only


def _fill(canvas: Canvas, view: StepView, chosen: Bools, number: int) -> None:
    canvas.settle(view.holes[chosen], view.tokens[chosen], view.is_end[chosen], number)


def _end(canvas: Canvas, chain: UnmaskingPipeline, view: StepView) -> int | None:
    """Return where the stopper ends the text; a hole there takes its token."""
    if chain.stopper is None:
        return None
    return chain.stopper.end(replace(view, settled=canvas.seen(view.start, view.stop)))
