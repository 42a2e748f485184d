"""What constraints make of a step's draws, for all canvases at once.

Each canvas has a walk of its own through its draws (frontier.py), which stops where it needs
another token. The walks advance side by side, and what they need is drawn in one go. Law: the
ruling of a canvas is what it is without the others, its walk being driven by draws of single rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.constraints.canvas_constraint import (
    CanvasConstraint,
    ConstrainedDraws,
)
from plait.decoders.diffusion.constraints.prefix_matcher import (
    CanvasConstraintError,
    Lookahead,
    RedrawRequest,
)
from plait.decoders.diffusion.draws import DrawJob, draw_legal, token_probs
from plait.decoders.diffusion.protocols import Floats, StepView
from plait.kernels.backend import KernelBackend


@dataclass(frozen=True, slots=True)
class LookaheadJob:
    """One canvas under a constraint, and a step's draws on it."""

    guard: CanvasConstraint
    canvas: Canvas
    view: StepView
    scores: Tensor  # [rows, vocab] what was drawn from
    job: DrawJob
    literals: bool = False  # a scaffold asks for them


@dataclass(slots=True)
class _RunningLookahead:
    """A case whose walk is under way."""

    case: LookaheadJob
    advance: Callable[[int], RedrawRequest]  # sends a token to the walk
    asked: RedrawRequest | None = None
    walk: Lookahead | None = None
    fault: str = ""
    drawn: dict[int, tuple[int, float | None]] = field(default_factory=dict)  # by index in the
    # span: the last token drawn again there; with its price where that is under the bitmask

    def go_on(self, token: int) -> None:
        """Advance by a token for what was asked."""
        self.asked = None
        try:
            self.asked = self.advance(token)
        except StopIteration as stop:
            self._end(stop.value)
        except CanvasConstraintError as broken:
            self.fault = str(broken)

    def _end(self, walk: Lookahead) -> None:
        """Take note of the walk, and of what it has put in place of draws."""
        self.walk = walk
        for position, token in zip(self.case.view.holes, self.case.view.tokens, strict=True):
            index = int(position) - self.first
            if walk.literal[index] and walk.tokens[index] != token:
                self.drawn[index] = walk.tokens[index], None

    @property
    def first(self) -> int:
        """The position of the span's first token."""
        return self.case.guard.first(self.case.canvas)

    def row(self, index: int) -> int:
        """Return the entry of the job's positions for an index of the span."""
        return int(np.searchsorted(self.case.job.positions, self.first + index))


def constrain_draws(
    cases: Sequence[LookaheadJob], *, backend: KernelBackend
) -> list[ConstrainedDraws | str]:
    """Return the ruling of each case, or what is wrong with its constraint.

    Cost: one draw for all cases each time that some walk is refused a token.
    """
    begun = [_begin(case) for case in cases]
    while asking := [each for each in begun if each.asked is not None]:
        for alike in _alike(asking):
            _draw_again(alike, backend)
    prices = _prices(begun, backend)
    return [each.fault or _ruling(each, p) for each, p in zip(begun, prices, strict=True)]


def _begin(case: LookaheadJob) -> _RunningLookahead:
    walking = case.guard.walk(case.canvas, case.view, literals=case.literals)
    begun = _RunningLookahead(case, lambda _: next(walking))
    begun.go_on(0)
    begun.advance = walking.send
    return begun


def _alike(cases: Sequence[_RunningLookahead]) -> list[list[_RunningLookahead]]:
    """Group what can be drawn in one go."""
    groups: dict[tuple[int, bool], list[_RunningLookahead]] = {}
    for each in cases:
        groups.setdefault((id(each.case.scores), each.case.job.law.is_plain), []).append(each)
    return list(groups.values())


def _draw_again(cases: Sequence[_RunningLookahead], backend: KernelBackend) -> None:
    """Let each walk go on with a token that is legal for all it knows."""
    asked = [(each, each.asked) for each in cases if each.asked is not None]
    jobs = [each.case.job.at(each.row(refused.index), refused.legal) for each, refused in asked]
    drawn = draw_legal(cases[0].case.scores, jobs, backend=backend)
    again = zip(asked, drawn.tokens.tolist(), drawn.p.tolist(), strict=True)
    for (each, refused), token, p in again:
        is_first = each.first + refused.index == each.case.view.holes[0]
        each.drawn[refused.index] = token, p if is_first else None
        each.go_on(token)


def _prices(cases: Sequence[_RunningLookahead], backend: KernelBackend) -> list[Floats]:
    """Return the probabilities of the walks' tokens at the views' holes."""
    prices = [each.case.view.p.copy() for each in cases]
    asked: dict[int, list[tuple[int, int, int, int]]] = {}  # by scores: case, hole, row, token
    scores = {id(each.case.scores): each.case.scores for each in cases}
    for i, each in enumerate(cases):
        for index, (token, p) in each.drawn.items():
            hole = int(np.searchsorted(each.case.view.holes, each.first + index))
            if p is None:
                row = int(each.case.job.rows[each.row(index)])
                asked.setdefault(id(each.case.scores), []).append((i, hole, row, token))
            else:
                prices[i][hole] = p
    for key, entries in asked.items():
        _, _, rows, tokens = (np.array(column, np.int64) for column in zip(*entries, strict=True))
        found = token_probs(scores[key], rows, tokens, backend=backend)
        for (i, hole, _, _), p in zip(entries, found.tolist(), strict=True):
            prices[i][hole] = p
    return prices


def _ruling(each: _RunningLookahead, p: Floats) -> ConstrainedDraws:
    assert each.walk is not None
    return each.case.guard.rule(each.case.canvas, each.case.view, each.walk, p)
