"""A constraint on a canvas: it stands at the left-most hole and vouches for what is left of it.

What is settled to the right of the frontier is provisional. A hole there may only be settled with a
token on a *witness*: the text that follows when every hole takes its drawn token, from the frontier
on, each accepted in turn, with enough positions left after it to end the answer. What the frontier
refuses once it gets there becomes a hole again, with all that is settled behind it. Law: the
frontier never moves back but for holes that a method reopens; a text that it has passed is a legal
beginning, and one that can end within its limit stays so. Hence if min_tokens() <= max_tokens at
the start, every answer is complete, whatever the methods choose.

Source: diffusion cards, 14.4 (frontier masks, look-ahead, forced commits). Differences: a legal
completion is not searched for; the walk itself is one, and where it ends nothing is admitted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.step import Bools, Ints, StepView
from plait.decoders.protocol import Constraint

HOLE = -1
UNSURE = 1e3  # nats; the entropy of what may not be settled, above that of any vocabulary
MAX_REDRAWS = 8  # at the frontier; then the shortest end known is followed
MAX_DETOURS = 4  # redraws beyond it, in one walk

# Draws again for the hole at an index of the span: from the legal tokens, a bitmask [1, words], but
# for the banned ones.
Redraw = Callable[[int, Tensor, Collection[int]], int]


class ConstraintBroken(RuntimeError):
    """A constraint contradicts itself; its request fails, the others go on."""


@dataclass(frozen=True, slots=True)
class Span:
    """The part of an answer that isn't settled for good, up to its block's end."""

    first: int  # tokens of the answer before it
    tokens: Sequence[int]  # HOLE where one is open
    limit: int  # tokens that the whole answer may have; the span doesn't reach beyond


# As Redraw, for the hole at a position; with the token's probability: under the bitmask if the last
# argument is true, else by the model's own law.
PricedRedraw = Callable[[int, Tensor, Collection[int], bool], tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a constraint allows of one step."""

    view: StepView  # with the witness's tokens; what is not admitted has no probability
    admitted: Bools  # [h] the hole may be settled
    must: Bools  # [h] it has to be
    guard: Guard


@dataclass(frozen=True, slots=True)
class Standing:
    """What is certain of a span without another forward pass."""

    tokens: list[int]
    frontier: int  # index of the left-most hole; their number if there is none
    forced: list[int]  # indices of holes filled because there is no alternative
    reopened: list[int]  # indices of provisional tokens that turned out to be illegal
    is_over: (
        bool  # nothing follows tokens[frontier - 1]: the constraint ends there, or a stop token
    )
    is_complete: bool  # what is left of the frontier would be a whole answer


@dataclass(frozen=True, slots=True)
class Walk:
    """What the constraint makes of one draw for every hole of a span."""

    tokens: list[int]  # the witness as far as it goes; at other holes what was drawn
    admitted: list[bool]  # the hole may be settled with its token
    must: list[bool]  # it has to be, since no time is left for anything else


class Frontier:
    """The constraint of one sequence; it follows whichever of its canvases it is asked about."""

    def __init__(
        self, constraint: Constraint, stop_token_ids: Collection[int], vocab_size: int
    ) -> None:
        self._constraint = constraint
        self._stops = frozenset(stop_token_ids)
        self._num_words = -(-vocab_size // 32)
        self._accepted: list[int] = []  # what the constraint has accepted: some text's beginning
        self._marks = [self._mark(HOLE)]  # before and after each of them: tokens to an end, is over

    def stand(self, span: Span, fillable: Collection[int] | None = None) -> Standing:
        """Return the span with everything forced filled in and nothing illegal before the frontier.

        A function of its arguments alone. Cost: one accept_token for each token that differs from
        what was asked about before.

        Args:
            span: as the host sees it.
            fillable: indices of the holes that may be filled; None: all.
        """
        tokens = list(span.tokens)
        forced: list[int] = []
        reopened: list[int] = []
        while True:
            frontier = self._follow(span, tokens)
            if self._is_over or frontier == len(tokens):
                break
            if tokens[frontier] != HOLE:
                reopened += _reopen(tokens, frontier)
            following = self._forced(span.limit, len(tokens) - frontier)
            if not following or not (fillable is None or frontier in fillable):
                break
            for i, token in enumerate(following, frontier):
                if tokens[i] not in (HOLE, token):
                    reopened += _reopen(tokens, i)
                if tokens[i] == HOLE and not (fillable is None or i in fillable):
                    break
                forced += [i] if tokens[i] == HOLE else []
                tokens[i] = token
        frontier = self._follow(span, tokens)  # what is forced but not fillable is taken back
        is_complete = self._constraint.is_accepting()
        return Standing(tokens, frontier, forced, reopened, self._is_over, is_complete)

    def bitmask(self, span: Span) -> Tensor:
        """Return [1, words] int32: what may stand at the span's left-most hole."""
        self._follow(span, span.tokens)
        return self._bitmask()

    def has_room(self, span: Span, limit: int) -> bool:
        """Tell whether the answer can end within a limit that is lower than the span's."""
        self._follow(span, span.tokens)
        return self._is_over or self._marks[-1][0] <= limit - len(self._accepted)

    def walk(self, span: Span, drawn: Sequence[int], redraw: Redraw) -> Walk:
        """Walk from the frontier through the draws as long as they are legal together.

        Where a draw is illegal the hole is drawn again under the constraint: MAX_REDRAWS times at
        the frontier, and for MAX_DETOURS holes beyond it.

        Args:
            span: as `stand` has left it, with a hole.
            drawn: [tokens of the span] a draw for each hole; the left-most one's under its bitmask.
            redraw: see Redraw.

        Raises:
            ConstraintBroken: the left-most hole can't be filled at all.
        """
        tokens = [new if old == HOLE else old for old, new in zip(span.tokens, drawn, strict=True)]
        walk = Walk(tokens, [False] * len(tokens), [False] * len(tokens))
        frontier = self._follow(span, span.tokens)
        detours = MAX_DETOURS
        for i in range(frontier, len(tokens)):
            if self._is_over:
                break
            if span.tokens[i] != HOLE:
                if not self._take(tokens[i], span.limit):
                    break
                continue
            tries = MAX_REDRAWS if i == frontier else min(detours, 1)
            token = self._choose(i, tokens[i], span.limit, redraw, tries)
            if token is None:
                break
            detours -= i > frontier and token != tokens[i]
            tokens[i], walk.admitted[i] = token, True
        if not walk.admitted[frontier]:
            self._close(span, walk, frontier)
        return walk

    def _choose(self, i: int, token: int, limit: int, redraw: Redraw, tries: int) -> int | None:
        """Advance by the token, or by one drawn in its place; None: none was found."""
        banned: set[int] = set()
        while not self._take(token, limit):
            if len(banned) == tries or token in banned:
                return None
            banned.add(token)
            token = redraw(i, self._bitmask(), banned)
        return token

    def _close(self, span: Span, walk: Walk, frontier: int) -> None:
        """Follow the shortest end known from the frontier, as far as nothing else stands there."""
        closing = self._constraint.closing_tokens() or [self._any(span.limit)]
        for i, token in enumerate(closing[: len(walk.tokens) - frontier], frontier):
            if span.tokens[i] not in (HOLE, token):
                break
            if not self._take(token, span.limit):
                raise ConstraintBroken(f"the constraint refuses token {token} of its own end")
            walk.tokens[i] = token
            walk.admitted[i] = walk.must[i] = span.tokens[i] == HOLE

    def _any(self, limit: int) -> int:
        """Return the first legal token that fits: the end of a text that is complete."""
        legal = self._bitmask()[0].numpy().view("uint8")
        for token in np.flatnonzero(np.unpackbits(legal, bitorder="little")).tolist():
            if self._take(token, limit):
                self._drop(1)
                return int(token)
        raise ConstraintBroken("the constraint leaves no token that fits")

    def _bitmask(self) -> Tensor:
        bitmask = torch.full((1, self._num_words), -1, dtype=torch.int32)
        self._constraint.fill_bitmask(bitmask, 0)
        return bitmask

    def _forced(self, limit: int, most: int) -> list[int]:
        """Advance by what has no alternative and fits, and return it."""
        taken = []
        for token in self._constraint.forced_tokens()[:most]:
            if not self._take(token, limit):
                break
            taken.append(token)
        return taken

    def _follow(self, span: Span, tokens: Sequence[int]) -> int:
        """Stand behind the settled beginning of the tokens as far as it is legal; return where."""
        behind = self._accepted[span.first :]
        shared = 0
        while shared < min(len(behind), len(tokens)) and behind[shared] == tokens[shared]:
            shared += 1
        self._drop(len(behind) - shared)
        for i in range(shared, len(tokens)):
            if self._is_over or not self._take(tokens[i], span.limit):
                return i
        return len(tokens)

    def _take(self, token: int, limit: int) -> bool:
        """Advance by a token after which the answer can still end within the limit.

        Where no end is near enough, by one that brings it nearer.
        """
        if token == HOLE or self._is_over or not self._constraint.accept_token(token):
            return False
        before = self._marks[-1][0]
        self._accepted.append(token)
        self._marks.append(self._mark(token))
        if self._marks[-1][0] <= max(limit - len(self._accepted), before - 1):
            return True
        self._drop(1)
        return False

    def _mark(self, token: int) -> tuple[int, bool]:
        """Return the tokens to the nearest end after a token, and whether nothing follows it."""
        if token in self._stops:
            return 0, True
        left = self._constraint.min_tokens()
        return left, left == 0 and self._constraint.is_terminated()

    def _drop(self, num_tokens: int) -> None:
        if num_tokens:
            self._constraint.rollback(num_tokens)
            del self._accepted[-num_tokens:]
            del self._marks[-num_tokens:]

    @property
    def _is_over(self) -> bool:
        """Whether nothing can follow what was accepted."""
        return self._marks[-1][1]


def _reopen(tokens: list[int], start: int) -> list[int]:
    """Make holes of what is settled from here on; return where."""
    found = [i for i in range(start, len(tokens)) if tokens[i] != HOLE]
    for i in found:
        tokens[i] = HOLE
    return found


class Guard:
    """What the host asks of a frontier, in terms of canvases. Positions are absolute."""

    def __init__(self, frontier: Frontier, ends: frozenset[int], first: int) -> None:
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
        return start + list(span.tokens).index(HOLE), self._frontier.bitmask(span)

    def judge(self, canvas: Canvas, view: StepView, redraw: PricedRedraw) -> Ruling:
        """Return what may be settled of a step's draws."""
        start, span = self._span(canvas, view.stop)
        holes = (view.holes - start).tolist()
        drawn = [HOLE] * len(span.tokens)
        for i, token in zip(holes, view.tokens.tolist(), strict=True):
            drawn[i] = token
        prices: dict[int, float] = {}

        def again(i: int, bitmask: Tensor, banned: Collection[int]) -> int:
            token, prices[i] = redraw(start + i, bitmask, banned, i == holes[0])
            return token

        walk = self._frontier.walk(span, drawn, again)
        tokens = np.array([walk.tokens[i] for i in holes], np.int64)
        admitted = np.array([walk.admitted[i] for i in holes])
        p = np.array([prices.get(i, own) for i, own in zip(holes, view.p, strict=True)])
        ruled = replace(
            view,
            tokens=tokens,
            p=np.where(admitted, p, 0.0),
            is_end=np.isin(tokens, self._ends),
            p2=None if view.p2 is None else np.where(admitted, view.p2, 0.0),
            entropy=None if view.entropy is None else np.where(admitted, view.entropy, UNSURE),
        )
        return Ruling(ruled, admitted, np.array([walk.must[i] for i in holes]), self)

    def _span(self, canvas: Canvas, stop: int) -> tuple[int, Span]:
        """Return the open part of the answer in the block, up to an end that is settled in it."""
        start, stop = max(canvas.begin, self._first), min(stop, canvas.limit)
        ends = np.flatnonzero(canvas.is_end[start - canvas.start : stop - canvas.start])
        if len(ends):
            stop = start + int(ends[0]) + 1
        tokens = canvas.seen(start, stop).tolist()
        return start, Span(start - self._first, tokens, canvas.limit - self._first)
