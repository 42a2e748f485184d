"""A canvas: a run of positions, some settled, the others holes. Numpy only.

It is all that a step is a function of, beside the text before it. Its verbs change it in place; a
branch works on a fork. Positions are absolute.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plait.decoders.contract.decoder import TokenLogprobs
from plait.decoders.diffusion.protocols import Bools, Floats, Ints

GIVEN = 0  # the step of prompt tokens, and of those that an earlier canvas has settled


@dataclass(slots=True)
class Canvas:
    """Positions start..stop-1; its current block is begin..end-1."""

    start: int
    ids: Ints  # [n] token ids; what stands at a hole means nothing
    hole: Bools  # [n]
    limit: int  # no position from here on is ever settled
    begin: int  # first position of the current block
    end: int = 0  # one past its last; 0 until the block's first pass has said how far it reaches
    step: int = 0  # passes whose logits the block has used
    memories: tuple[Any, Any] = (None, None)  # what selector and scorer remember of the block
    settled_in: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [n] step, or GIVEN
    is_end: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))  # [n] settled, ends text
    forced: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))  # [n] by a constraint
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)  # position -> when settled
    over: int | None = None  # where the text ends, if a constraint says so

    def __post_init__(self) -> None:
        if len(self.settled_in) != len(self.ids):
            self.settled_in = np.zeros(len(self.ids), np.int64)
            self.is_end = np.zeros(len(self.ids), np.bool_)
            self.forced = np.zeros(len(self.ids), np.bool_)

    @property
    def stop(self) -> int:
        """One past the last position."""
        return self.start + len(self.ids)

    def fork(self) -> Canvas:
        """Return an independent copy. Memories are values, so they are shared. Cost: O(n)."""
        return Canvas(
            self.start,
            self.ids.copy(),
            self.hole.copy(),
            self.limit,
            self.begin,
            self.end,
            self.step,
            self.memories,
            self.settled_in.copy(),
            self.is_end.copy(),
            self.forced.copy(),
            dict(self.logprobs),
            self.over,
        )

    def shows_as(self, other: Canvas) -> bool:
        """Tell whether a model would see the same: equal holes, equal tokens elsewhere."""
        return bool((self.hole == other.hole).all() and ((self.ids == other.ids) | self.hole).all())

    def shown(self, mask_id: int) -> Ints:
        """Return what the model is fed: the mask token at holes."""
        return np.where(self.hole, mask_id, self.ids)

    def seen(self, start: int, stop: int) -> Ints:
        """Return the tokens of some positions, -1 at holes."""
        part = slice(start - self.start, stop - self.start)
        return np.where(self.hole[part], -1, self.ids[part])

    def settle(self, positions: Ints, tokens: Ints, is_end: Bools, number: int) -> None:
        """Fill holes, in the sequence's step of this number."""
        at = positions - self.start
        self.ids[at] = tokens
        self.hole[at] = False
        self.is_end[at] = is_end
        self.settled_in[at] = number

    def reopen(self, positions: Iterable[int]) -> None:
        """Make settled positions holes again."""
        for position in positions:
            at = position - self.start
            assert self.settled_in[at] != GIVEN, "what was given stays"
            self.hole[at] = True
            self.is_end[at] = self.forced[at] = False
            self.settled_in[at] = GIVEN
            self.logprobs.pop(position, None)

    def open_holes(self, start: int, stop: int) -> Ints:
        """Return the holes that may be settled, rising: before the limit and the first end."""
        low, high = start - self.start, min(stop, self.reach) - self.start
        return np.flatnonzero(self.hole[low : max(high, low)]) + start

    @property
    def reach(self) -> int:
        """One past the last position that can still become text."""
        if not self.is_end.any():
            return self.edge
        return min(self.edge, self.start + int(self.is_end.argmax()))

    @property
    def edge(self) -> int:
        """One past the last position that may be emitted."""
        return self.limit if self.over is None else min(self.limit, self.over)

    def first_hole(self, position: int) -> int:
        """Return the first hole from a position on, or stop."""
        holes = self.hole[position - self.start :]
        return position + int(holes.argmax()) if holes.any() else self.stop

    def end_at(self, position: int) -> None:
        """Give up everything behind a position."""
        self.limit = min(self.limit, position + 1)

    def next_block(self, begin: int) -> None:
        """Forget the block; another begins, its length yet unknown."""
        self.begin, self.end, self.step, self.memories = begin, 0, 0, (None, None)


@dataclass(frozen=True, slots=True)
class LiteralDraws:
    """The holes that the last step has left open, rising, and what a walk through them found."""

    positions: Ints  # [h]
    tokens: Ints  # [h]
    p: Floats  # [h]
    literal: Bools  # [h]


@dataclass(frozen=True, slots=True)
class PendingDraws:
    """What the last step drew for holes that it left open; best-scored first."""

    positions: Ints
    tokens: Ints
    is_end: Bools
    literals: LiteralDraws | None = None  # under a scaffold
