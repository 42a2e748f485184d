"""The protocol of a draft model. No torch at import time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class DraftCache:
    """The KV cache of one sequence at the draft model; lowering `length` drops its end."""

    namespace: str = ""  # whose texts may share prefixes
    blocks: list[int] = field(default_factory=list)
    length: int = 0  # tokens
    hashes: list[bytes] = field(default_factory=list)  # of the whole blocks that are shared


class DraftModel(Protocol):
    """A model with the target's vocabulary and a KV cache of its own; one call at a time."""

    def match_prefix(self, cache: DraftCache, text: Sequence[int]) -> None:
        """Fill an empty cache with the known blocks of a prefix of the text, never all of it."""

    def share_prefix(self, cache: DraftCache, text: Sequence[int]) -> None:
        """Let other sequences match the cached prefix; the cache is never cut below it again."""

    def reserve(self, cache: DraftCache, length: int) -> bool:
        """Allocate blocks for `length` tokens; False, and nothing changed, if there are none."""

    def extend(self, feeds: Sequence[tuple[DraftCache, Sequence[int]]]) -> Tensor:
        """Feed tokens at the end of each cache, in one pass, and cache them.

        Args:
            feeds: caches, each once, with blocks for at least one token, and their tokens.
        Returns:
            [feeds, vocab] float32: the logits that follow the last token of each.
        """

    def superpose(
        self, feeds: Sequence[tuple[DraftCache, Sequence[int], Sequence[float]]]
    ) -> Tensor:
        """Feed one weighted sum of embeddings at the end of each cache, in one pass.

        Args:
            feeds: caches, each once, with blocks for it; the tokens whose embeddings are summed,
                equally many for each; their weights.
        Returns:
            [feeds, vocab] float32: the logits that follow each.
        """

    def release(self, cache: DraftCache) -> None:
        """Release all blocks of a cache."""
