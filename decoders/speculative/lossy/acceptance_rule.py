"""Who lets tokens stand that the request's law did not draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class AcceptanceRule(Protocol):
    """A lossy rule of acceptance; the request has named it, and its answer says so."""

    name: ClassVar[str]

    def pick(self, distribution: Tensor, token_ids: Sequence[int]) -> int | None:
        """Return a draft token that may stand in place of what was drawn; None: what was drawn.

        Args:
            law: [vocab] float32, the request's own at this row: its probabilities sum to 1.
            token_ids: the draft's, none of them drawn.
        """

    def trusts(self, distribution: Tensor, token_id: int, before: int) -> bool:
        """Tell whether a token guessed ahead may stand unverified behind the token before it.

        law: [vocab] float32, of the row that guesses it without having seen the token before.
        """
