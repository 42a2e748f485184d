"""What drafting needs of a second model. No torch at import time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class DraftCache:
    """The keys and values of one text; what lies behind `length` is forgotten by lowering it."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0  # tokens


class DraftModel(Protocol):
    """A model of the target's vocabulary with a cache of its own; one call at a time."""

    def reserve(self, cache: DraftCache, length: int) -> bool:
        """Make room for a text of so many tokens; False (and nothing changed): there is none."""

    def extend(self, feeds: Sequence[tuple[DraftCache, Sequence[int]]]) -> Tensor:
        """Feed tokens behind what each cache holds, all in one pass, and keep them.

        Args:
            feeds: caches with room reserved, each once, and one token or more for each.
        Returns:
            [feeds, vocab] float32: the logits that follow the last token of each.
        """

    def release(self, cache: DraftCache) -> None:
        """Give back all that a cache holds."""
