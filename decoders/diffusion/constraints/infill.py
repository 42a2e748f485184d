"""A constraint on a text with holes: given tokens stand between the masked positions.

The constrained text is what stands around the holes, up to the nearest special token on either
side, with the text of the holes in between. A hole of n positions takes up to n tokens: end tokens
are padding, without text. Law: at every step some filling of the masked positions is known that
gives a text of the constraint's language (`Constraint.fill_gaps`), so every result is one. A token
is unmasked only if a filling is found with it; where none that was selected stands, the first
masked position takes the next token of the filling that is known.

Source: multi-region infilling of Mündler et al. 2025, arXiv:2508.10111, section 5. Differences: a
hole's length bounds its text; what is unknown never stands, since given text can't be masked again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.decoders.contract.constraint import Constraint, Gap, GapFilling
from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.constraints.canvas_constraint import CanvasConstraint
from plait.decoders.diffusion.constraints.prefix_matcher import MASK, PrefixMatcher
from plait.decoders.diffusion.protocols import Ints

PADDING = -2  # among a text's tokens: a position without text


@dataclass(frozen=True, slots=True)
class ConstrainedSpan:
    """Which positions of a canvas the constrained text has."""

    start: int
    stop: int
    padding: frozenset[int]  # tokens without text that may stand in a hole


class InfillConstraint(CanvasConstraint):
    """Applies a constraint to a canvas with holes. Holds nothing that changes."""

    def __init__(self, constraint: Constraint, span: ConstrainedSpan, vocab_size: int) -> None:
        super().__init__(PrefixMatcher(constraint, (), vocab_size), frozenset(), span.start)
        self._constrained = span
        self._num_words = -(-vocab_size // 32)

    def fork(self) -> InfillConstraint:
        """Return itself."""
        return self

    def constraint_at(self, output: Sequence[int]) -> Constraint | None:
        """Return the constraint, which has accepted no token of any text."""
        return self.matcher.constraint

    def fill_forced(self, canvas: Canvas, stop: int, step: int, rows: Ints | None = None) -> None:
        """Do nothing: what is forced is drawn."""

    def fits(self, canvas: Canvas, limit: int) -> bool:
        """Return False: nothing but the end of the canvas ends an infill."""
        return False

    def bitmask(self, canvas: Canvas, stop: int) -> tuple[int, Tensor]:
        """Return the first masked position, and its legal tokens [1, words] int32 on the CPU.

        They are those that go on with the text before it, and padding.
        """
        span, tokens = self._constrained, self._tokens(canvas, {})
        first = tokens.index(MASK)
        text = [token for token in tokens[:first] if token != PADDING]
        bitmask = torch.full((1, self._num_words), -1, dtype=torch.int32)
        constraint = self.matcher.constraint_at(text)
        assert constraint is not None, "a canvas that can be filled begins as its constraint wants"
        constraint.fill_bitmask(bitmask, 0)
        words = bitmask.numpy().view(np.uint32)
        for token in span.padding:
            words[0, token // 32] |= np.uint32(1 << token % 32)
        return span.start + first, bitmask

    def fill_gaps(self, canvas: Canvas, stop: int, placed: Mapping[int, int]) -> GapFilling:
        """Return whether all holes can be filled, with tokens placed at masked positions."""
        pieces: list[int | Gap] = []
        tokens = [token for token in self._tokens(canvas, placed) if token != PADDING]
        for is_masked, run in groupby(tokens, lambda token: token == MASK):
            own = list(run)
            least = 0 if self._constrained.padding else len(own)
            pieces += [Gap(least, len(own))] if is_masked else own
        return self.matcher.fill_gaps_of(pieces)

    def next_of(self, canvas: Canvas, stop: int) -> int | None:
        """Return the token of the first masked position in a filling; None if none is known."""
        filling = self.fill_gaps(canvas, stop, {})
        if not filling.exists:
            return None
        return next(iter([*filling.tokens[0], *self._constrained.padding]))

    def _tokens(self, canvas: Canvas, placed: Mapping[int, int]) -> list[int]:
        """Return the tokens of the constrained text: MASK where masked, PADDING in place of it."""
        span = self._constrained
        found: list[int] = canvas.tokens(span.start, span.stop).tolist()
        for position, token in placed.items():
            found[position - span.start] = token
        return [PADDING if token in span.padding else token for token in found]


def constrained_span(
    constraint: Any, ids: Sequence[int], positions: Sequence[int], ends: Collection[int]
) -> ConstrainedSpan:
    """Return the constrained text's positions: up to a token without text on either side.

    Args:
        constraint: its `text_of` gives the bytes of a token.
        ids: of the whole canvas.
        positions: of the holes, rising.
        ends: end tokens; those without text are the padding of holes.
    """
    text_of: Callable[[int], bytes] = constraint.text_of
    start, stop = positions[0], positions[-1] + 1
    while start and text_of(ids[start - 1]):
        start -= 1
    while stop < len(ids) and text_of(ids[stop]):
        stop += 1
    return ConstrainedSpan(start, stop, frozenset(t for t in ends if not text_of(t)))
