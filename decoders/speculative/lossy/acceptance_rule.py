"""The protocol of lossy acceptance rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class AcceptanceRule(Protocol):
    """Accepts draft tokens that were not sampled. The request names it; the response says so."""

    name: ClassVar[str]

    def select(self, distribution: Tensor, token_ids: Sequence[int]) -> int | None:
        """Return the draft token that replaces the sampled one; None: keep the sampled token.

        Args:
            distribution: [vocab] float32, the request's probabilities at this row.
            token_ids: of the draft; the sampled token is not among them.
        """

    def accepts_unverified(self, distribution: Tensor, token_id: int, before: int) -> bool:
        """Tell whether a guess may be emitted without a pass that has read the token before it.

        Args:
            distribution: [vocab] float32, of the row that guesses.
            token_id: the guess.
            before: the token before it.
        """
