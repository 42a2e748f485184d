"""A constraint on the canvases of one sequence, and what it allows of a step's draws.

The draws of each canvas are checked by a lookahead (prefix_matcher.py), which pauses where it needs
another token. The lookaheads of all canvases run side by side, and the tokens they need are drawn
together. Law: the result for a canvas is the same without the others, when single rows are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
from torch import Tensor

from plait.decoders.contract.constraint import Constraint, GapFilling
from plait.decoders.contract.registry import Options
from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.constraints.prefix_matcher import (
    MASK,
    AnswerSpan,
    CanvasConstraintError,
    Lookahead,
    LookaheadRun,
    PrefixMatcher,
    RedrawRequest,
)
from plait.decoders.diffusion.draws import DrawJob, draw_legal, token_probs
from plait.decoders.diffusion.protocols import Bools, Floats, Ints, StepView
from plait.kernels.backend import KernelBackend

DISALLOWED = 1e3  # nats: entropy of positions that may not be unmasked, above any vocabulary's


# What a step unmasks of its view, [m]; returned is what may be unmasked of it, in which order they
# were preferred by scores [m], and the view with the tokens that take the place of refused ones.
Admit: TypeAlias = Callable[[StepView, Bools, Floats], tuple[StepView, Bools]]


@dataclass(frozen=True, slots=True)
class ConstrainedDraws:
    """What a constraint allows of one step's draws."""

    view: StepView  # with the lookahead's tokens; p is 0 where not allowed
    allowed: Bools  # [m] the position may be unmasked
    required: Bools  # [m] it must be
    literal: Bools  # [m] it has no alternative, if a scaffold asks for literals
    admit: Admit | None = None  # checks together what a step has selected; None: allowed is enough


class CanvasConstraint:
    """Applies a PrefixMatcher to canvases. Positions are absolute."""

    def __init__(
        self, matcher: PrefixMatcher, stop_token_ids: frozenset[int], first_output: int
    ) -> None:
        self.matcher = matcher
        self.stops = sorted(stop_token_ids)
        self._first_output = first_output  # position of the first output token

    def fork(self) -> CanvasConstraint:
        """Return an independent copy."""
        twin = copy(self)
        twin.matcher = self.matcher.fork()
        return twin

    def fill_forced(self, canvas: Canvas, stop: int, step: int, rows: Ints | None = None) -> None:
        """Unmask what is forced before `stop` and remask what is illegal, in place.

        Afterwards canvas.constraint_end says where the answer ends, if it does: nothing can follow,
        or it is complete and its limit is reached.

        Args:
            canvas: to be changed.
            stop: unmasked tokens from here on are not checked.
            step: number of the step that unmasks what is forced.
            rows: positions that may be filled; None: all.
        """
        start, span = self._span(canvas, stop)
        fillable = None if rows is None else set((rows - start).tolist())
        filled = self.matcher.fill_forced(span, fillable)
        canvas.remask(start + i for i in filled.remasked)
        if filled.forced:
            at = np.array(filled.forced, np.int64)
            tokens = np.array(filled.tokens, np.int64)[at]
            canvas.unmask(at + start, tokens, np.zeros(len(at), np.bool_), step)
            canvas.forced[at + start - canvas.start] = True
        first_masked = start + filled.first_masked
        is_full = filled.is_complete and first_masked == canvas.limit
        canvas.constraint_end = first_masked if filled.is_over or is_full else None

    def fits(self, canvas: Canvas, limit: int) -> bool:
        """Return whether the answer can be completed before a position below the canvas's limit."""
        return self.matcher.fits(self._span(canvas, canvas.stop)[1], limit - self._first_output)

    def bitmask(self, canvas: Canvas, stop: int) -> tuple[int, Tensor]:
        """Return the first masked position, and its legal tokens [1, words] int32 on the CPU."""
        start, span = self._span(canvas, stop)
        return start + list(span.tokens).index(MASK), self.matcher.bitmask(span)

    def look_ahead(self, canvas: Canvas, view: StepView, *, literals: bool) -> LookaheadRun:
        """Look ahead through a step's draws; indices count from span_start."""
        start, span = self._span(canvas, view.stop)
        drawn = [MASK] * len(span.tokens)
        for position, token in zip(view.positions.tolist(), view.tokens.tolist(), strict=True):
            drawn[position - start] = token
        return self.matcher.look_ahead(span, drawn, literals=literals)

    def fill_gaps(self, canvas: Canvas, stop: int, placed: Mapping[int, int]) -> GapFilling:
        """Return whether the answer can be completed with tokens placed at masked positions.

        Args:
            canvas: whose unmasked tokens before `stop` stay as they are.
            stop: one past the last position that may hold a token.
            placed: token by position, before `stop`.
        """
        start, span = self._span(canvas, stop)
        tokens = list(span.tokens)
        for position, token in placed.items():
            if position - start < len(tokens):  # else the text ends before it
                tokens[position - start] = token
        return self.matcher.fill_gaps(replace(span, tokens=tokens))

    def next_of(self, canvas: Canvas, stop: int) -> int | None:
        """Return the token of the first masked position in a filling; None if none is known."""
        tokens = self.fill_gaps(canvas, stop, {}).tokens
        return tokens[0][0] if tokens and tokens[0] else None

    def constraint_at(self, output: Sequence[int]) -> Constraint | None:
        """Return a constraint for a state that is built again; None: this output is illegal."""
        return self.matcher.constraint_at(output)

    def answer(self, canvas: Canvas, stop: int) -> tuple[list[int], AnswerSpan]:
        """Return the answer's tokens before the block's output, and that output up to `stop`."""
        span = self._span(canvas, stop)[1]
        return self.matcher.before(span), span

    def span_start(self, canvas: Canvas) -> int:
        """Return the position of the block's first output token."""
        return max(canvas.block_start, self._first_output)

    def apply(
        self, canvas: Canvas, view: StepView, ahead: Lookahead, p: Floats
    ) -> ConstrainedDraws:
        """Return what may be unmasked of a step's draws after their lookahead.

        p: [m] probability of the lookahead's tokens at the view's positions.
        """
        start = self.span_start(canvas)
        at = (view.positions - start).tolist()
        tokens = np.array([ahead.tokens[i] for i in at], np.int64)
        allowed = np.array([ahead.allowed[i] for i in at])
        entropy = view.entropy
        constrained = replace(
            view,
            tokens=tokens,
            p=np.where(allowed, p, 0.0),
            is_end=np.isin(tokens, self.stops),
            p2=None if view.p2 is None else np.where(allowed, view.p2, 0.0),
            entropy=None if entropy is None else np.where(allowed, entropy, DISALLOWED),
        )
        marks = (ahead.required, ahead.literal)
        required, literal = (np.array([each[i] for i in at]) for each in marks)
        return ConstrainedDraws(constrained, allowed, required, literal)

    def _span(self, canvas: Canvas, stop: int) -> tuple[int, AnswerSpan]:
        """Return the start and the tokens of the block's output, up to an unmasked end token."""
        start, stop = self.span_start(canvas), min(stop, canvas.limit)
        ends = np.flatnonzero(canvas.is_end[start - canvas.start : stop - canvas.start])
        if len(ends):
            stop = start + int(ends[0]) + 1
        first, limit = start - self._first_output, canvas.limit - self._first_output
        return start, AnswerSpan(first, canvas.tokens(start, stop).tolist(), limit)


@dataclass(frozen=True, slots=True)
class LookaheadJob:
    """One canvas under a constraint, and a step's draws on it."""

    constraint: CanvasConstraint
    canvas: Canvas
    view: StepView
    scores: Tensor  # [rows, vocab] that the draws were made from
    job: DrawJob
    literals: bool = False  # a scaffold asks for them


@dataclass(slots=True)
class _RunningLookahead:
    """A job whose lookahead has begun."""

    work: LookaheadJob
    send: Callable[[int], RedrawRequest]  # sends a token to the lookahead
    request: RedrawRequest | None = None
    result: Lookahead | None = None
    fault: str = ""
    redrawn: dict[int, tuple[int, float | None]] = field(default_factory=dict)  # by index in the
    # span: the last replacement of a draw, and its probability where it is the bitmask's

    def resume(self, token: int) -> None:
        """Continue with a token for the request."""
        self.request = None
        try:
            self.request = self.send(token)
        except StopIteration as stop:
            self._end(stop.value)
        except CanvasConstraintError as error:
            self.fault = str(error)

    def _end(self, ahead: Lookahead) -> None:
        """Store the result, and which literals replace draws."""
        self.result = ahead
        view = self.work.view
        for position, token in zip(view.positions, view.tokens, strict=True):
            index = int(position) - self.start
            if ahead.literal[index] and ahead.tokens[index] != token:
                self.redrawn[index] = ahead.tokens[index], None

    @property
    def start(self) -> int:
        """The position of the span's first token."""
        return self.work.constraint.span_start(self.work.canvas)

    def row(self, index: int) -> int:
        """Return the index in the job's positions of an index of the span."""
        return int(np.searchsorted(self.work.job.positions, self.start + index))


def constrain_draws(
    jobs: Sequence[LookaheadJob], *, backend: KernelBackend
) -> list[ConstrainedDraws | str]:
    """Return what each job's constraint allows, or the message of its error.

    Cost: one draw for all jobs each time that any lookahead requests a token.
    """
    running = [_begin(job) for job in jobs]
    while waiting := [each for each in running if each.request is not None]:
        for group in _by_kind(waiting):
            _redraw(group, backend)
    probs = _lookahead_probs(running, backend)
    return [each.fault or _apply(each, p) for each, p in zip(running, probs, strict=True)]


def _begin(job: LookaheadJob) -> _RunningLookahead:
    run = job.constraint.look_ahead(job.canvas, job.view, literals=job.literals)
    begun = _RunningLookahead(job, lambda _: next(run))
    begun.resume(0)
    begun.send = run.send
    return begun


def _by_kind(running: Sequence[_RunningLookahead]) -> list[list[_RunningLookahead]]:
    """Group the requests that can be drawn together."""
    groups: dict[tuple[int, bool], list[_RunningLookahead]] = {}
    for each in running:
        key = id(each.work.scores), each.work.job.settings.is_plain
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def _redraw(running: Sequence[_RunningLookahead], backend: KernelBackend) -> None:
    """Draw the token that each lookahead requests, and resume it."""
    asked = [(each, each.request) for each in running if each.request is not None]
    jobs = [each.work.job.at(each.row(request.index), request.legal) for each, request in asked]
    draws = draw_legal(running[0].work.scores, jobs, backend=backend)
    redraws = zip(asked, draws.tokens.tolist(), draws.p.tolist(), strict=True)
    for (each, request), token, p in redraws:
        is_first = each.start + request.index == each.work.view.positions[0]
        each.redrawn[request.index] = token, p if is_first else None
        each.resume(token)


def _lookahead_probs(running: Sequence[_RunningLookahead], backend: KernelBackend) -> list[Floats]:
    """Return the probabilities of the lookaheads' tokens at the views' positions."""
    probs = [each.work.view.p.copy() for each in running]
    asked: dict[int, list[tuple[int, int, int, int]]] = {}  # by scores: job, entry, row, token
    scores = {id(each.work.scores): each.work.scores for each in running}
    for i, each in enumerate(running):
        for index, (token, p) in each.redrawn.items():
            entry = int(np.searchsorted(each.work.view.positions, each.start + index))
            if p is None:
                row = int(each.work.job.rows[each.row(index)])
                asked.setdefault(id(each.work.scores), []).append((i, entry, row, token))
            else:
                probs[i][entry] = p
    for key, entries in asked.items():
        _, _, rows, tokens = (np.array(column, np.int64) for column in zip(*entries, strict=True))
        found = token_probs(scores[key], rows, tokens, backend=backend)
        for (i, entry, _, _), p in zip(entries, found.tolist(), strict=True):
            probs[i][entry] = p
    return probs


def _apply(each: _RunningLookahead, p: Floats) -> ConstrainedDraws:
    assert each.result is not None
    return each.work.constraint.apply(each.work.canvas, each.work.view, each.result, p)


class LookaheadMethod:
    """What decides under a constraint by default: constrain_draws."""

    fills_forced: ClassVar[bool] = True

    def check(self, constraint: Constraint) -> None:
        """Do nothing: a lookahead goes with every constraint."""

    def constrain(
        self, jobs: Sequence[LookaheadJob], *, backend: KernelBackend
    ) -> Sequence[ConstrainedDraws | str]:
        """Return what each job's lookahead accepts."""
        return constrain_draws(jobs, backend=backend)


def make_lookahead(options: Options, **context: Any) -> LookaheadMethod:
    """Return the method, which has no options."""
    return LookaheadMethod()
