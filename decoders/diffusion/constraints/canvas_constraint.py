"""A constraint in terms of canvases: what the host of one sequence asks of its frontier."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.constraints.prefix_matcher import (
    MASK,
    AnswerSpan,
    Lookahead,
    LookaheadRun,
    PrefixMatcher,
)
from plait.decoders.diffusion.protocols import Bools, Floats, Ints, StepView

UNSURE = 1e3  # nats; the entropy of what may not be settled, above that of any vocabulary


@dataclass(frozen=True, slots=True)
class ConstrainedDraws:
    """What a constraint allows of one step."""

    view: StepView  # with the witness's tokens; what is not admitted has no probability
    admitted: Bools  # [h] the hole may be settled
    must: Bools  # [h] it has to be
    literal: Bools  # [h] it is one, if a scaffold asks for literals
    guard: CanvasConstraint


class CanvasConstraint:
    """A frontier that is asked about canvases. Positions are absolute."""

    def __init__(self, frontier: PrefixMatcher, ends: frozenset[int], first: int) -> None:
        self._frontier = frontier
        self._ends = sorted(ends)
        self._first = first  # of the answer

    def close(self, canvas: Canvas, stop: int, number: int, rows: Ints | None = None) -> None:
        """Fill what is forced before stop and reopen what is illegal, in place.

        Afterwards canvas.over says where the answer ends, if it does: nothing can follow, or it is
        complete where its limit is.

        Args:
            canvas: to be changed.
            stop: what is settled from here on is not looked at.
            number: of the step that settles what is forced.
            rows: positions that may be filled; None: all.
        """
        start, span = self._span(canvas, stop)
        fillable = None if rows is None else set((rows - start).tolist())
        standing = self._frontier.stand(span, fillable)
        canvas.reopen(start + i for i in standing.reopened)
        if standing.forced:
            at = np.array(standing.forced, np.int64)
            tokens = np.array(standing.tokens, np.int64)[at]
            canvas.settle(at + start, tokens, np.zeros(len(at), np.bool_), number)
            canvas.forced[at + start - canvas.start] = True
        frontier = start + standing.frontier
        is_full = standing.is_complete and frontier == canvas.limit
        canvas.over = frontier if standing.is_over or is_full else None

    def has_room(self, canvas: Canvas, limit: int) -> bool:
        """Tell whether the answer can end before an earlier position than the canvas's limit."""
        return self._frontier.has_room(self._span(canvas, canvas.stop)[1], limit - self._first)

    def bitmask(self, canvas: Canvas, stop: int) -> tuple[int, Tensor]:
        """Return the left-most hole, and [1, words] int32 what may stand there."""
        start, span = self._span(canvas, stop)
        return start + list(span.tokens).index(MASK), self._frontier.bitmask(span)

    def walk(self, canvas: Canvas, view: StepView, *, literals: bool) -> LookaheadRun:
        """Walk through a step's draws; see Frontier.walk. Indices count from `first`."""
        start, span = self._span(canvas, view.stop)
        drawn = [MASK] * len(span.tokens)
        for position, token in zip(view.holes.tolist(), view.tokens.tolist(), strict=True):
            drawn[position - start] = token
        return self._frontier.walk(span, drawn, literals=literals)

    def first(self, canvas: Canvas) -> int:
        """Return the position of the block's first token of the answer."""
        return max(canvas.begin, self._first)

    def rule(self, canvas: Canvas, view: StepView, walk: Lookahead, p: Floats) -> ConstrainedDraws:
        """Return what may be settled of a step's draws after a walk through them.

        p: [h] of the tokens that the walk has for the view's holes.
        """
        start = self.first(canvas)
        holes = (view.holes - start).tolist()
        tokens = np.array([walk.tokens[i] for i in holes], np.int64)
        admitted = np.array([walk.admitted[i] for i in holes])
        ruled = replace(
            view,
            tokens=tokens,
            p=np.where(admitted, p, 0.0),
            is_end=np.isin(tokens, self._ends),
            p2=None if view.p2 is None else np.where(admitted, view.p2, 0.0),
            entropy=None if view.entropy is None else np.where(admitted, view.entropy, UNSURE),
        )
        must, literal = (np.array([marks[i] for i in holes]) for marks in (walk.must, walk.literal))
        return ConstrainedDraws(ruled, admitted, must, literal, self)

    def _span(self, canvas: Canvas, stop: int) -> tuple[int, AnswerSpan]:
        """Return the open part of the answer in the block, up to an end that is settled in it."""
        start, stop = self.first(canvas), min(stop, canvas.limit)
        ends = np.flatnonzero(canvas.is_end[start - canvas.start : stop - canvas.start])
        if len(ends):
            stop = start + int(ends[0]) + 1
        tokens = canvas.seen(start, stop).tolist()
        return start, AnswerSpan(start - self._first, tokens, canvas.limit - self._first)
