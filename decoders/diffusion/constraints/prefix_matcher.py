"""Follows a constraint along the unmasked prefix of an answer, and looks ahead behind it.

The constraint has accepted the answer up to its first masked position. Tokens unmasked behind that
position are provisional. A position there may only be unmasked with a token on the *lookahead*: the
text that follows if every masked position takes its drawn token, each accepted in turn, with enough
positions left to complete the answer. If the constraint rejects a provisional token when the prefix
reaches it, that position and all unmasked ones behind it are masked again. Law: the prefix never
gets shorter, except for positions that a method remasks. The prefix is always a legal beginning
that can be completed within the limit. So if min_tokens() <= max_tokens at the start, every answer
is complete, whatever the methods select.

Source: LAVE and Dgrammar (constraint masks, lookahead and forced tokens for diffusion models).
Differences: a legal completion is not searched for; the lookahead itself is one, and behind its end
no position may be unmasked.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from plait.decoders.contract.constraint import Constraint, Gap, GapFilling, fill_gaps

MASK = -1
MAX_REDRAWS = 8  # at the first masked position; then the shortest known completion is taken
MAX_REDRAWS_AHEAD = 4  # behind it, in one lookahead


class CanvasConstraintError(RuntimeError):
    """A constraint contradicts itself; its request fails, the others continue."""


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """The part of an answer that is not final yet, up to the end of its block."""

    first: int  # tokens of the answer before it
    tokens: Sequence[int]  # MASK where masked
    limit: int  # most tokens of the whole answer; the span doesn't reach beyond


@dataclass(frozen=True, slots=True)
class FilledSpan:
    """A span with its forced tokens filled in: all that is certain without a forward pass."""

    tokens: list[int]
    first_masked: int  # index of the first masked position; len(tokens) if there is none
    forced: list[int]  # indices of positions filled because there is no alternative
    remasked: list[int]  # indices of provisional tokens that turned out to be illegal
    is_over: bool  # nothing follows the prefix: the constraint ends there, or a stop token stands
    is_complete: bool  # the prefix would be a complete answer


@dataclass(frozen=True, slots=True)
class Lookahead:
    """What the constraint allows of one draw for every masked position of a span."""

    tokens: list[int]  # the lookahead as far as it goes; behind it what was drawn
    allowed: list[bool]  # the position may be unmasked with its token
    required: list[bool]  # it must be, because the limit leaves no alternative
    literal: list[bool]  # nothing else could stand there, given the lookahead before it


@dataclass(frozen=True, slots=True)
class RedrawRequest:
    """A draw that the constraint rejects; the lookahead continues with the token sent to it."""

    index: int  # of the masked position in the span
    legal: Tensor  # [1, words] int32 on the CPU: legal tokens that were not rejected yet; owned by
    # the lookahead and valid until it continues


LookaheadRun: TypeAlias = Generator[RedrawRequest, int, Lookahead]


class PrefixMatcher:
    """The constraint of one sequence, behind the prefix of the last span it was given."""

    def __init__(
        self,
        constraint: Constraint,
        stop_token_ids: Collection[int],
        vocab_size: int,
        accepted: Sequence[int] = (),
    ) -> None:
        """Wrap a constraint, which this object changes from now on.

        Args:
            constraint: has accepted the tokens `accepted`.
            stop_token_ids: tokens that end the answer.
            vocab_size: of the model.
            accepted: the output so far.
        """
        self._constraint = constraint
        self._stops = frozenset(stop_token_ids)
        self._num_words = -(-vocab_size // 32)
        self._accepted = list(accepted)  # what the constraint has accepted of some span's answer
        # before the first and behind each of them: (tokens to complete the answer, whether it is
        # over); only the last entry of those that came with the constraint is ever read
        self._marks = [self._mark(MASK)] * (len(self._accepted) + 1)

    def fork(self) -> PrefixMatcher:
        """Return an independent copy. Cost: a fork of the constraint, and O(accepted tokens)."""
        twin = copy(self)
        twin._constraint = self._constraint.fork()
        twin._accepted, twin._marks = self._accepted.copy(), self._marks.copy()
        return twin

    @property
    def constraint(self) -> Constraint:
        """The constraint, to be read."""
        return self._constraint

    def before(self, span: AnswerSpan) -> list[int]:
        """Return the tokens of the answer in front of a span."""
        return self._accepted[: span.first]

    def constraint_at(self, output: Sequence[int]) -> Constraint | None:
        """Return an independent constraint that has accepted these tokens; None: they are illegal.

        Cost: one fork, and one rollback or accept_token for each token that differs.
        """
        fork, shared = self._constraint.fork(), _num_shared(self._accepted, output)
        if len(self._accepted) > shared:
            fork.rollback(len(self._accepted) - shared)
        return fork if all(fork.accept_token(token) for token in output[shared:]) else None

    def fill_forced(self, span: AnswerSpan, fillable: Collection[int] | None = None) -> FilledSpan:
        """Return the span with forced tokens filled in and illegal provisional tokens masked.

        A function of its arguments alone. Cost: one accept_token for each token that differs from
        the last span.

        Args:
            span: of the canvas.
            fillable: indices of the positions that may be filled; None: all.
        """
        tokens = list(span.tokens)
        forced: list[int] = []
        remasked: list[int] = []
        while True:
            first = self._follow(span, tokens)
            if self._is_over or first == len(tokens):
                break
            if tokens[first] != MASK:
                remasked += _remask(tokens, first)
            following = self._forced(span.limit, len(tokens) - first)
            if not following or not (fillable is None or first in fillable):
                break
            for i, token in enumerate(following, first):
                if tokens[i] not in (MASK, token):
                    remasked += _remask(tokens, i)
                if tokens[i] == MASK and not (fillable is None or i in fillable):
                    break
                forced += [i] if tokens[i] == MASK else []
                tokens[i] = token
        first = self._follow(span, tokens)  # takes back what is forced but not fillable
        is_complete = self._constraint.is_accepting()
        return FilledSpan(tokens, first, forced, remasked, self._is_over, is_complete)

    def bitmask(self, span: AnswerSpan) -> Tensor:
        """Return [1, words] int32 on the CPU: legal tokens of the span's first masked position."""
        self._follow(span, span.tokens)
        return self._bitmask()

    def fill_gaps(self, span: AnswerSpan) -> GapFilling:
        """Return whether the masked positions of the answer can be filled, and those behind it.

        Masked positions between tokens take one token each; behind the last token the answer may
        end anywhere, and with a stop token it does.
        """
        return self.fill_gaps_of(pieces_of(self.before(span), span, self._stops))

    def fill_gaps_of(self, pieces: Sequence[int | Gap]) -> GapFilling:
        """Return whether the gaps of a whole text can be filled; nothing is accepted."""
        return fill_gaps(self._constraint, pieces)

    def fits(self, span: AnswerSpan, limit: int) -> bool:
        """Return whether the answer can be completed within a limit lower than the span's."""
        self._follow(span, span.tokens)
        return self._is_over or self._marks[-1][0] <= limit - len(self._accepted)

    def look_ahead(
        self, span: AnswerSpan, drawn: Sequence[int], *, literals: bool = False
    ) -> LookaheadRun:
        """Accept the draws from the first masked position on, as long as they are legal together.

        An illegal draw is replaced by one that the caller makes under the constraint: MAX_REDRAWS
        times at the first masked position, and at MAX_REDRAWS_AHEAD positions behind it. No other
        method may be called until the generator has ended.

        Args:
            span: a result of fill_forced with a masked position.
            drawn: [tokens of the span] the token drawn at each masked position, the first one's
                under its bitmask; MASK where there is none, which ends the lookahead.
            literals: replace draws that have no legal alternative by the only legal token, and
                mark them.

        Raises:
            CanvasConstraintError: the first masked position can't be filled at all.
        """
        tokens = [new if old == MASK else old for old, new in zip(span.tokens, drawn, strict=True)]
        ahead = Lookahead(tokens, *([False] * len(tokens) for _ in range(3)))
        first = self._follow(span, span.tokens)
        redraws, forced = MAX_REDRAWS_AHEAD, list[int]()
        for i in range(first, len(tokens)):
            if self._is_over or tokens[i] == MASK:
                break
            if literals:
                forced = forced[1:] or list(self._constraint.forced_tokens())
                if forced and span.tokens[i] == MASK and self._take(forced[0], span.limit):
                    tokens[i] = forced[0]
                    ahead.allowed[i] = ahead.literal[i] = True
                    continue
                forced = forced if forced[:1] == [tokens[i]] else []
            if span.tokens[i] != MASK:
                if not self._take(tokens[i], span.limit):
                    break
                continue
            tries = MAX_REDRAWS if i == first else min(redraws, 1)
            token = yield from self._take_or_redraw(i, tokens[i], span.limit, tries)
            if token is None:
                break
            redraws -= i > first and token != tokens[i]
            tokens[i], ahead.allowed[i] = token, True
        if not ahead.allowed[first]:
            self._complete(span, ahead, first)
        return ahead

    def _take_or_redraw(
        self, i: int, token: int, limit: int, tries: int
    ) -> Generator[RedrawRequest, int, int | None]:
        """Accept the token, or one drawn in its place; return it, None if no draw was legal."""
        rejected: set[int] = set()
        while not self._take(token, limit):
            if len(rejected) == tries or token in rejected:
                return None
            if not rejected:
                legal = self._bitmask()
            rejected.add(token)
            legal.numpy().view(np.uint32)[0, token // 32] &= ~np.uint32(1 << token % 32)
            token = yield RedrawRequest(i, legal)
        return token

    def _complete(self, span: AnswerSpan, ahead: Lookahead, first: int) -> None:
        """Require the shortest known completion, up to a different unmasked token."""
        closing = self._constraint.closing_tokens() or [self._any_legal(span.limit)]
        for i, token in enumerate(closing[: len(ahead.tokens) - first], first):
            if span.tokens[i] not in (MASK, token):
                break
            if not self._take(token, span.limit):
                raise CanvasConstraintError(f"the constraint refuses token {token} of its own end")
            ahead.tokens[i] = token
            ahead.allowed[i] = ahead.required[i] = span.tokens[i] == MASK

    def _any_legal(self, limit: int) -> int:
        """Return the first legal token that fits: a stop token of a complete answer."""
        legal = self._bitmask()[0].numpy().view("uint8")
        for token in np.flatnonzero(np.unpackbits(legal, bitorder="little")).tolist():
            if self._take(token, limit):
                self._rollback(1)
                return int(token)
        raise CanvasConstraintError("the constraint leaves no token that fits")

    def _bitmask(self) -> Tensor:
        bitmask = torch.from_numpy(np.full((1, self._num_words), -1, np.int32))
        self._constraint.fill_bitmask(bitmask, 0)
        return bitmask

    def _forced(self, limit: int, most: int) -> list[int]:
        """Accept the tokens that have no alternative and fit; return them."""
        taken = []
        for token in self._constraint.forced_tokens()[:most]:
            if not self._take(token, limit):
                break
            taken.append(token)
        return taken

    def _follow(self, span: AnswerSpan, tokens: Sequence[int]) -> int:
        """Accept the unmasked prefix of the tokens as far as it is legal; return its length."""
        behind = self._accepted[span.first :]
        shared = _num_shared(behind, tokens)
        self._rollback(len(behind) - shared)
        for i in range(shared, len(tokens)):
            if self._is_over or not self._take(tokens[i], span.limit):
                return i
        return len(tokens)

    def _take(self, token: int, limit: int) -> bool:
        """Accept a token if the answer can still be completed within the limit; return whether.

        Where no completion is short enough any more, accept a token that brings it nearer.
        """
        if token == MASK or self._is_over or not self._constraint.accept_token(token):
            return False
        before = self._marks[-1][0]
        self._accepted.append(token)
        self._marks.append(self._mark(token))
        if self._marks[-1][0] <= max(limit - len(self._accepted), before - 1):
            return True
        self._rollback(1)
        return False

    def _mark(self, token: int) -> tuple[int, bool]:
        """Return how many tokens complete the answer behind a token, and whether it is over."""
        if token in self._stops:
            return 0, True
        left = self._constraint.min_tokens()
        return left, left == 0 and self._constraint.is_terminated()

    def _rollback(self, num_tokens: int) -> None:
        if num_tokens:
            self._constraint.rollback(num_tokens)
            del self._accepted[-num_tokens:]
            del self._marks[-num_tokens:]

    @property
    def _is_over(self) -> bool:
        """Whether nothing can follow what was accepted."""
        return self._marks[-1][1]


def pieces_of(before: Sequence[int], span: AnswerSpan, stops: Collection[int]) -> list[int | Gap]:
    """Return a whole answer as tokens and gaps, up to its first stop token."""
    tokens, left = list(span.tokens), span.limit - span.first - len(span.tokens)
    stop = next((i for i, token in enumerate(tokens) if token in stops), None)
    if stop is not None:
        tokens, left = tokens[:stop], 0
    pieces: list[int | Gap] = [*before]
    for is_masked, run in groupby(tokens, lambda token: token == MASK):
        own = list(run)
        pieces += [Gap(len(own), len(own))] if is_masked else own
    if stop is None and tokens and tokens[-1] == MASK:
        last = pieces.pop()
        left += last.most if isinstance(last, Gap) else 0
    return [*pieces, Gap(0, left)] if left else pieces


def _num_shared(one: Sequence[int], two: Sequence[int]) -> int:
    """Return the length of the longest common beginning."""
    shared = 0
    while shared < min(len(one), len(two)) and one[shared] == two[shared]:
        shared += 1
    return shared


def _remask(tokens: list[int], start: int) -> list[int]:
    """Mask what is unmasked from an index on; return where."""
    found = [i for i in range(start, len(tokens)) if tokens[i] != MASK]
    for i in found:
        tokens[i] = MASK
    return found
