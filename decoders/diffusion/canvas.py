"""A canvas: a range of positions, some unmasked, the others masked. Numpy only.

Beside the text before it, a step depends on nothing else. Its methods change it in place; a step
works on a fork. Positions are absolute.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plait.decoders.contract.decoder import TokenLogprobs
from plait.decoders.diffusion.pipeline import UnmaskingPipeline
from plait.decoders.diffusion.protocols import Bools, Floats, Ints

GIVEN = 0  # the step of prompt tokens, and of those that an earlier canvas has unmasked


@dataclass(slots=True)
class Canvas:
    """Positions start..stop-1; its current block is block_start..block_stop-1."""

    start: int
    ids: Ints  # [n] token ids; arbitrary where masked
    masked: Bools  # [n]
    limit: int  # positions from here on are never unmasked
    block_start: int
    block_stop: int = 0  # 0 until the block's first pass has decided how long it is
    block_step: int = 0  # passes whose logits the block has used
    memories: tuple[Any, Any] = (None, None)  # the block's, of selector and scorer
    unmasked_in: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [n] step, or GIVEN
    is_end: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))  # [n] unmasked, ends text
    forced: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))  # [n] by a constraint
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)  # by position, when unmasked
    constraint_end: int | None = None  # where the text ends, if a constraint has ended it

    def __post_init__(self) -> None:
        if len(self.unmasked_in) != len(self.ids):
            self.unmasked_in = np.zeros(len(self.ids), np.int64)
            self.is_end = np.zeros(len(self.ids), np.bool_)
            self.forced = np.zeros(len(self.ids), np.bool_)

    @property
    def stop(self) -> int:
        """One past the last position."""
        return self.start + len(self.ids)

    def fork(self) -> Canvas:
        """Return an independent copy. Memories are immutable values, so they are shared. O(n)."""
        return Canvas(
            self.start,
            self.ids.copy(),
            self.masked.copy(),
            self.limit,
            self.block_start,
            self.block_stop,
            self.block_step,
            self.memories,
            self.unmasked_in.copy(),
            self.is_end.copy(),
            self.forced.copy(),
            dict(self.logprobs),
            self.constraint_end,
        )

    def same_input(self, other: Canvas) -> bool:
        """Return whether the model's input is the same: equal masks, equal tokens elsewhere."""
        if not (self.masked == other.masked).all():
            return False
        return bool(((self.ids == other.ids) | self.masked).all())

    def input_ids(self, mask_id: int) -> Ints:
        """Return the model's input [n]: the mask token at masked positions."""
        return np.where(self.masked, mask_id, self.ids)

    def tokens(self, start: int, stop: int) -> Ints:
        """Return the tokens of positions start..stop-1, -1 where masked."""
        part = slice(start - self.start, stop - self.start)
        return np.where(self.masked[part], -1, self.ids[part])

    def unmask(self, positions: Ints, tokens: Ints, is_end: Bools, step: int) -> None:
        """Set tokens at masked positions, in the sequence's step of this number."""
        at = positions - self.start
        self.ids[at] = tokens
        self.masked[at] = False
        self.is_end[at] = is_end
        self.unmasked_in[at] = step

    def remask(self, positions: Iterable[int]) -> None:
        """Mask unmasked positions again; given tokens must not be among them."""
        for position in positions:
            at = position - self.start
            assert self.unmasked_in[at] != GIVEN, "given tokens are never masked again"
            self.masked[at] = True
            self.is_end[at] = self.forced[at] = False
            self.unmasked_in[at] = GIVEN
            self.logprobs.pop(position, None)

    def open_positions(self, start: int, stop: int) -> Ints:
        """Return the masked positions of start..stop-1 that can become text, rising."""
        low, high = start - self.start, min(stop, self.text_stop) - self.start
        return np.flatnonzero(self.masked[low : max(high, low)]) + start

    @property
    def text_stop(self) -> int:
        """One past the last position that can still become text."""
        if not self.is_end.any():
            return self.emit_stop
        return min(self.emit_stop, self.start + int(self.is_end.argmax()))

    @property
    def emit_stop(self) -> int:
        """One past the last position that may be emitted."""
        end = self.constraint_end
        return self.limit if end is None else min(self.limit, end)

    def lookahead_stop(self, pipeline: UnmaskingPipeline, output_length: int) -> int:
        """Return one past the last position that the next step reads; the first is block_start.

        output_length: positions of the canvas that belong to the output.
        """
        if self.block_stop:
            return self.block_stop
        if pipeline.window is None:
            return min(self.block_start + pipeline.block_size, self.stop)
        remaining = min(self.stop, self.text_stop) - self.block_start
        length = min(pipeline.window.lookahead(remaining, output_length), remaining)
        return max(self.block_start + length, self.first_masked(self.block_start) + 1)

    def first_masked(self, position: int) -> int:
        """Return the first masked position from a position on, or stop."""
        masked = self.masked[position - self.start :]
        return position + int(masked.argmax()) if masked.any() else self.stop

    def end_at(self, position: int) -> None:
        """Drop everything behind a position."""
        self.limit = min(self.limit, position + 1)

    def next_block(self, start: int) -> None:
        """Begin another block, whose length is not known yet."""
        self.block_start, self.block_stop, self.block_step = start, 0, 0
        self.memories = (None, None)


@dataclass(frozen=True, slots=True)
class LiteralDraws:
    """Under a scaffold: the last step's masked positions and the lookahead's tokens there."""

    positions: Ints  # [m] rising
    tokens: Ints  # [m]
    p: Floats  # [m]
    literal: Bools  # [m]


@dataclass(frozen=True, slots=True)
class PendingDraws:
    """What the last step drew at positions that it left masked, best-scored first: for drafts."""

    positions: Ints
    tokens: Ints
    is_end: Bools
    literals: LiteralDraws | None = None  # under a scaffold
