"""The hook between the KV cache and a lower tier that keeps the contents of evicted blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol


class Lookup(Enum):
    """What a tier knows about a block hash."""

    MISS = auto()
    HIT = auto()
    PENDING = auto()  # the tier is still searching; ask again in a later step


@dataclass(frozen=True, slots=True)
class FinishedLoad:
    """A load has ended; a failed one leaves arbitrary contents in the block."""

    block_id: int
    succeeded: bool = True


class KVTier(Protocol):
    """A lower tier of the KV cache (host memory, disk, another machine).

    All calls come from the engine's thread and must return quickly; transfers run in the
    background. The tier has access to the cache tensors.
    """

    def evict(self, block_id: int, block_hash: bytes) -> None:
        """Take note that a block will be overwritten; its contents stay until the call returns."""

    def lookup(self, block_hash: bytes) -> Lookup:
        """Tell whether the tier can load the contents of a block.

        After a load has failed the answer is a MISS, until the block is evicted again.
        """

    def load(self, block_hash: bytes, block_id: int) -> None:
        """Start to copy the contents into a block, which is the tier's until the load is finished.

        Called after a HIT in the same step.
        """

    def finished_loads(self, *, wait: bool) -> Sequence[FinishedLoad]:
        """Return the loads that have ended since the last call.

        wait: nothing else can run, so the tier may block for some milliseconds until a load or a
        pending lookup is finished.
        """


class NoTier:
    """The default: evicted blocks are lost."""

    def evict(self, block_id: int, block_hash: bytes) -> None:
        """Drop the contents."""

    def lookup(self, block_hash: bytes) -> Lookup:
        """Return MISS."""
        return Lookup.MISS

    def load(self, block_hash: bytes, block_id: int) -> None:
        """Never called, since every lookup is a miss."""
        raise AssertionError("a tier without contents can't load a block")

    def finished_loads(self, *, wait: bool) -> Sequence[FinishedLoad]:
        """Return nothing."""
        return ()
