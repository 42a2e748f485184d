"""The step map: what one forward pass makes of a canvas.

Law: the canvas that follows is a function of the canvas, of what was drawn on it and of the chain;
so equal canvases, however they came to be, go on alike. Every step settles at least one hole.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.chain import Chain
from plait.decoders.diffusion.draws import Drawn
from plait.decoders.diffusion.step import Bias, Bools, Floats, Ints, StepView


def outlook(canvas: Canvas, chain: Chain, answer: int) -> tuple[int, int]:
    """Return the positions start..stop-1 whose rows the next step reads.

    answer: positions of the canvas that can become text, settled or not (for windows).
    """
    if canvas.end:
        return canvas.begin, canvas.end
    if chain.window is None:
        return canvas.begin, min(canvas.begin + chain.block_size, canvas.stop)
    remaining = min(canvas.stop, canvas.reach) - canvas.begin
    reach = min(chain.window.reach(remaining, answer), remaining)
    return canvas.begin, max(canvas.begin + reach, canvas.first_hole(canvas.begin) + 1)


def wanted(canvas: Canvas, chain: Chain, answer: int) -> Ints:
    """Return the positions whose rows the next step reads, rising."""
    start, stop = outlook(canvas, chain, answer)
    if "block_p" in chain.needs:
        return np.arange(start, stop)
    return canvas.open_holes(start, stop)


def view_of(
    canvas: Canvas,
    drawn: Drawn,
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
        is_end=np.isin(holes.tokens, list(ends)) if ends else np.zeros(len(holes.p), np.bool_),
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


def open_block(canvas: Canvas, chain: Chain, view: StepView) -> None:
    """Fix how far the block reaches that begins with this look-ahead."""
    length = view.stop - view.start
    if chain.window is not None and len(view.holes):
        length = min(max(chain.window.length(view), 1), length)
        # a block without an open hole would make no step
        length = max(length, int(view.holes[0]) - view.start + 1)
    canvas.end = canvas.begin + length


def bias_of(canvas: Canvas, chain: Chain, view: StepView) -> Bias | None:
    """Return what the scorer adds to the holes' logits, and let the canvas remember it."""
    if chain.scorer is None or not len(view.holes):
        return None
    selector, scorer = canvas.memories
    bias = chain.scorer.bias(view, scorer)
    canvas.memories = (selector, bias.memory)
    return bias


def settle(canvas: Canvas, chain: Chain, view: StepView, number: int) -> Floats:
    """Make the sequence's step of this number, in place: settle, reopen, end.

    Returns the scores of the view's holes [h], by which drafts are made.
    """
    scores = chain.selector.score(view)
    selection = chain.selector.select(view, canvas.memories[0])
    chosen = at_least_one(selection.settle, scores)
    canvas.memories = (selection.memory, canvas.memories[1])
    canvas.step += 1
    canvas.reopen(selection.reopen)
    _fill(canvas, view, chosen, number)
    _maybe_end(canvas, chain, view, chosen, number)
    return scores


def finish_block(canvas: Canvas, chain: Chain) -> bool:
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


def _maybe_end(canvas: Canvas, chain: Chain, view: StepView, chosen: Bools, number: int) -> None:
    """Let the stopper end the text; a hole that becomes the end takes its token."""
    if chain.stopper is None:
        return
    end = chain.stopper.end(replace(view, settled=canvas.seen(view.start, view.stop)))
    if end is None:
        return
    at_end = (view.holes == end) & ~chosen
    _fill(canvas, view, at_end, number)
    canvas.end_at(end)
