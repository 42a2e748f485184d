"""A constraint on a canvas: it stands at the left-most hole and vouches for what is left of it.

What is settled to the right of the frontier is provisional. A hole there may only be settled with a
token on a *witness*: the text that follows when every hole takes its drawn token, from the frontier
on, each accepted in turn, with enough positions left after it to end the answer. What the frontier
refuses once it gets there becomes a hole again, with all that is settled behind it. Law: the
frontier never moves back but for holes that a method reopens; a text that it has passed is a legal
beginning, and one that can end within its limit stays so. Hence if min_tokens() <= max_tokens at
the start, every answer is complete, whatever the methods choose.

Source: LAVE and Dgrammar (frontier masks, look-ahead, forced commits on diffusion models).
Differences: a legal completion is not searched for; the walk itself is one, and where it ends
nothing is admitted.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from plait.decoders.contract.constraint import Constraint

MASK = -1
MAX_REDRAWS = 8  # at the frontier; then the shortest end known is followed
MAX_REDRAWS_AHEAD = 4  # redraws beyond it, in one walk


class CanvasConstraintError(RuntimeError):
    """A constraint contradicts itself; its request fails, the others go on."""


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """The part of an answer that isn't settled for good, up to its block's end."""

    first: int  # tokens of the answer before it
    tokens: Sequence[int]  # HOLE where one is open
    limit: int  # tokens that the whole answer may have; the span doesn't reach beyond


@dataclass(frozen=True, slots=True)
class FilledSpan:
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
class Lookahead:
    """What the constraint makes of one draw for every hole of a span."""

    tokens: list[int]  # the witness as far as it goes; at other holes what was drawn
    admitted: list[bool]  # the hole may be settled with its token
    must: list[bool]  # it has to be, since no time is left for anything else
    literal: list[bool]  # nothing else could stand there, given what the walk has before it


@dataclass(frozen=True, slots=True)
class RedrawRequest:
    """A draw that the constraint refuses; the walk goes on with the token that it is sent."""

    index: int  # of the hole in the span
    legal: Tensor  # [1, words] int32: what may stand there, without what was refused; the walk's
    # own, so it is good until the walk goes on


LookaheadRun: TypeAlias = Generator[RedrawRequest, int, Lookahead]


class PrefixMatcher:
    """The constraint of one sequence; it follows whichever of its canvases it is asked about."""

    def __init__(
        self, constraint: Constraint, stop_token_ids: Collection[int], vocab_size: int
    ) -> None:
        self._constraint = constraint
        self._stops = frozenset(stop_token_ids)
        self._num_words = -(-vocab_size // 32)
        self._accepted: list[int] = []  # what the constraint has accepted: some text's beginning
        self._marks = [self._mark(MASK)]  # before and after each of them: tokens to an end, is over

    def stand(self, span: AnswerSpan, fillable: Collection[int] | None = None) -> FilledSpan:
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
            if tokens[frontier] != MASK:
                reopened += _reopen(tokens, frontier)
            following = self._forced(span.limit, len(tokens) - frontier)
            if not following or not (fillable is None or frontier in fillable):
                break
            for i, token in enumerate(following, frontier):
                if tokens[i] not in (MASK, token):
                    reopened += _reopen(tokens, i)
                if tokens[i] == MASK and not (fillable is None or i in fillable):
                    break
                forced += [i] if tokens[i] == MASK else []
                tokens[i] = token
        frontier = self._follow(span, tokens)  # what is forced but not fillable is taken back
        is_complete = self._constraint.is_accepting()
        return FilledSpan(tokens, frontier, forced, reopened, self._is_over, is_complete)

    def bitmask(self, span: AnswerSpan) -> Tensor:
        """Return [1, words] int32: what may stand at the span's left-most hole."""
        self._follow(span, span.tokens)
        return self._bitmask()

    def has_room(self, span: AnswerSpan, limit: int) -> bool:
        """Tell whether the answer can end within a limit that is lower than the span's."""
        self._follow(span, span.tokens)
        return self._is_over or self._marks[-1][0] <= limit - len(self._accepted)

    def walk(
        self, span: AnswerSpan, drawn: Sequence[int], *, literals: bool = False
    ) -> LookaheadRun:
        """Walk from the frontier through the draws as long as they are legal together.

        Where a draw is illegal the hole is drawn again under the constraint, by whoever drives the
        walk: MAX_REDRAWS times at the frontier, and for MAX_DETOURS holes beyond it. Nobody may ask
        this frontier anything else until the walk has ended.

        Args:
            span: as `stand` has left it, with a hole.
            drawn: [tokens of the span] a draw for each hole, HOLE if there is none, which ends the
                walk; the left-most one's under its bitmask.
            literals: put what has no alternative in place of what was drawn, and mark it.

        Raises:
            CanvasConstraintError: the left-most hole can't be filled at all.
        """
        tokens = [new if old == MASK else old for old, new in zip(span.tokens, drawn, strict=True)]
        walk = Lookahead(tokens, *([False] * len(tokens) for _ in range(3)))
        frontier = self._follow(span, span.tokens)
        detours, forced = MAX_REDRAWS_AHEAD, list[int]()
        for i in range(frontier, len(tokens)):
            if self._is_over or tokens[i] == MASK:
                break
            if literals:
                forced = forced[1:] or list(self._constraint.forced_tokens())
                if forced and span.tokens[i] == MASK and self._take(forced[0], span.limit):
                    tokens[i] = forced[0]
                    walk.admitted[i] = walk.literal[i] = True
                    continue
                forced = forced if forced[:1] == [tokens[i]] else []
            if span.tokens[i] != MASK:
                if not self._take(tokens[i], span.limit):
                    break
                continue
            tries = MAX_REDRAWS if i == frontier else min(detours, 1)
            token = yield from self._choose(i, tokens[i], span.limit, tries)
            if token is None:
                break
            detours -= i > frontier and token != tokens[i]
            tokens[i], walk.admitted[i] = token, True
        if not walk.admitted[frontier]:
            self._close(span, walk, frontier)
        return walk

    def _choose(
        self, i: int, token: int, limit: int, tries: int
    ) -> Generator[RedrawRequest, int, int | None]:
        """Advance by the token, or by one drawn in its place; None: none was found."""
        refused: set[int] = set()
        while not self._take(token, limit):
            if len(refused) == tries or token in refused:
                return None
            if not refused:
                legal = self._bitmask()
            refused.add(token)
            legal.numpy().view(np.uint32)[0, token // 32] &= ~np.uint32(1 << token % 32)
            token = yield RedrawRequest(i, legal)
        return token

    def _close(self, span: AnswerSpan, walk: Lookahead, frontier: int) -> None:
        """Follow the shortest end known from the frontier, as far as nothing else stands there."""
        closing = self._constraint.closing_tokens() or [self._any(span.limit)]
        for i, token in enumerate(closing[: len(walk.tokens) - frontier], frontier):
            if span.tokens[i] not in (MASK, token):
                break
            if not self._take(token, span.limit):
                raise CanvasConstraintError(f"the constraint refuses token {token} of its own end")
            walk.tokens[i] = token
            walk.admitted[i] = walk.must[i] = span.tokens[i] == MASK

    def _any(self, limit: int) -> int:
        """Return the first legal token that fits: the end of a text that is complete."""
        legal = self._bitmask()[0].numpy().view("uint8")
        for token in np.flatnonzero(np.unpackbits(legal, bitorder="little")).tolist():
            if self._take(token, limit):
                self._drop(1)
                return int(token)
        raise CanvasConstraintError("the constraint leaves no token that fits")

    def _bitmask(self) -> Tensor:
        bitmask = torch.from_numpy(np.full((1, self._num_words), -1, np.int32))
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

    def _follow(self, span: AnswerSpan, tokens: Sequence[int]) -> int:
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
        if token == MASK or self._is_over or not self._constraint.accept_token(token):
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
    found = [i for i in range(start, len(tokens)) if tokens[i] != MASK]
    for i in found:
        tokens[i] = MASK
    return found
