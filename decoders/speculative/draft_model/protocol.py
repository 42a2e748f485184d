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

    namespace: str = ""  # whose texts may share their beginnings with this one
    blocks: list[int] = field(default_factory=list)
    length: int = 0  # tokens
    hashes: list[bytes] = field(default_factory=list)  # of whole blocks, as they are known


class DraftModel(Protocol):
    """A model of the target's vocabulary with a cache of its own; one call at a time."""

    def recall(self, cache: DraftCache, text: Sequence[int]) -> None:
        """Let an empty cache hold what is known of a beginning of the text, all but its end."""

    def keep(self, cache: DraftCache, text: Sequence[int]) -> None:
        """Let others recall what the cache holds of a text, which it will never go back behind."""

    def reserve(self, cache: DraftCache, length: int) -> bool:
        """Make room for a text of so many tokens; False (and nothing changed): there is none."""

    def extend(self, feeds: Sequence[tuple[DraftCache, Sequence[int]]]) -> Tensor:
        """Feed tokens behind what each cache holds, all in one pass, and keep them.

        Args:
            feeds: caches with room reserved, each once, and one token or more for each.
        Returns:
            [feeds, vocab] float32: the logits that follow the last token of each.
        """

    def superpose(
        self, feeds: Sequence[tuple[DraftCache, Sequence[int], Sequence[float]]]
    ) -> Tensor:
        """Feed one input behind what each cache holds, all in one pass, and keep it.

        Args:
            feeds: caches with room reserved, each once; the tokens whose embeddings are summed,
                equally many for each; their weights.
        Returns:
            [feeds, vocab] float32: the logits that follow each.
        """

    def release(self, cache: DraftCache) -> None:
        """Give back all that a cache holds."""
