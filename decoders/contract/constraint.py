"""Which tokens may come next: the contract of every constraint. No torch at import time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gap:
    """A run of unknown tokens in a text."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class GapFilling:
    """Whether the gaps of a text can be filled so that it becomes a complete, legal one."""

    exists: bool | None  # None: unknown
    tokens: Sequence[Sequence[int]] = ()  # of each gap, if a filling exists


class NotFinite(ValueError):
    """No finite automaton of a bearable size reads what a constraint accepts; says why."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenDfa:
    """A deterministic finite automaton over tokens. State 0 is the start.

    Its n transitions stand by rising (source, target, token); all its states can be completed.
    """

    source: NDArray[np.int64]  # [n]
    token: NDArray[np.int64]  # [n]
    target: NDArray[np.int64]  # [n]
    accepting: NDArray[np.bool_]  # [states]
    closing: NDArray[np.int64]  # [states] min_tokens() there
    eos_token_ids: frozenset[int]  # tokens that may follow a complete text, and end it


class ConstraintView(Protocol):
    """Which tokens may come next, to read; `fork` gives a copy that may be advanced."""

    def fill_bitmask(self, bitmask: Tensor, row: int) -> bool:
        """Write the legal set as bits of int32 words; False if every token is legal."""

    def fork(self) -> Constraint:
        """Return an independent copy."""

    def is_accepting(self) -> bool:
        """Tell whether the text so far is complete."""

    def is_terminated(self) -> bool:
        """Tell whether nothing but the end can follow."""

    def min_tokens(self) -> int:
        """Return how many tokens complete the text from here (an upper bound that is reachable)."""

    def closing_tokens(self) -> Sequence[int]:
        """Return min_tokens() tokens that complete the text from here."""

    def forced_tokens(self) -> Sequence[int]:
        """Return tokens of the bytes that must follow; no alternative crosses the end of them."""

    def boundary_tokens(self) -> Sequence[int]:
        """Return tokens of the rest of these bytes; alternatives may cross their end."""


class Constraint(ConstraintView, Protocol):
    """Which tokens may come next. The verbs are those of the matcher libraries."""

    def accept_token(self, token_id: int) -> bool:
        """Advance; False (and unchanged) if the token is illegal."""

    def rollback(self, num_tokens: int) -> None:
        """Take back the last accepted tokens."""


def is_exact(constraint: ConstraintView) -> bool:
    """Tell whether every token that the bitmask allows is accepted.

    A constraint with a part that only says yes or no to a token (a checker, a validator) has an
    attribute `is_exact = False`: its bitmask allows more than is legal, and accept_token refuses
    the rest. Its min_tokens() and closing_tokens() may then be too short, and refused.
    """
    return bool(getattr(constraint, "is_exact", True))


def fill_gaps(constraint: ConstraintView, pieces: Sequence[int | Gap]) -> GapFilling:
    """Tell whether a whole text of tokens and gaps, which don't touch, can be filled, and how.

    What the constraint has accepted so far does not matter. Where it has no method `fill_gaps` of
    the same meaning, nothing is known.
    """
    fill = getattr(constraint, "fill_gaps", None)
    return GapFilling(exists=None) if fill is None else fill(pieces)


def token_dfa(constraint: ConstraintView) -> TokenDfa:
    """Return the automaton of the texts that a constraint accepts, from their beginnings.

    Raises:
        NotFinite: there is none; or the constraint has no method `token_dfa` that would make it.
    """
    make = getattr(constraint, "token_dfa", None)
    if make is None:
        raise NotFinite("more than its grammar decides what is legal, such as that items differ")
    made: TokenDfa = make()
    return made
