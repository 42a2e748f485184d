"""The KV block pool: allocation, reference counts and eviction.

A block is referenced, free, or cached: indexed under its hash with no reference. Cached blocks are
evicted in least-recently-used order when no free block is left, or when one that was never used,
and so takes no memory yet, would be used beyond num_kept. A block that is being loaded from a lower
tier is referenced by the load until the load has ended.

Law: every block that a sequence lists has at least one reference; free + cached + referenced
blocks are all blocks; no more than num_kept were ever used, or than were referenced at once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from plait.server.engine.kv.prefix_index import PrefixIndex

OnEvict = Callable[[int, bytes], None]  # (block id, block hash)


def _drop(block_id: int, block_hash: bytes) -> None:
    """Forget the contents of an evicted block."""


class BlockPool:
    """Allocates, shares and releases the blocks of one KV cache."""

    def __init__(
        self,
        num_blocks: int,
        *,
        prefix_caching: bool = True,
        num_kept: int | None = None,
        on_evict: OnEvict = _drop,
    ) -> None:
        """Start with free blocks.

        Args:
            num_blocks: of the cache.
            prefix_caching: whether full blocks are indexed.
            num_kept: blocks that are used before cached ones are evicted; None: all.
            on_evict: is called before a cached block is reused.
        """
        self.num_blocks = num_blocks
        self.prefix_caching = prefix_caching
        self._num_kept = num_blocks if num_kept is None else num_kept
        self._on_evict = on_evict
        self._index = PrefixIndex()
        self.num_touched = 0  # blocks that were ever used: those below this id
        self._free: deque[int] = deque(range(num_blocks))  # the touched ones first
        self._references = [0] * num_blocks
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._loading: set[int] = set()

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks with references."""
        return self.num_blocks - self.num_available

    @property
    def num_loading(self) -> int:
        """Blocks that are being loaded."""
        return len(self._loading)

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the indexed blocks of the longest known prefix, each with one more reference."""
        found = self._index.longest_prefix(hashes)
        self.share(found)
        return found

    def allocate(self, count: int) -> list[int] | None:
        """Return `count` blocks, or None (and nothing changed) if there aren't enough.

        Their contents are undefined.
        """
        if count > self.num_available:
            return None
        return [self._take() for _ in range(count)]

    def share(self, block_ids: Iterable[int]) -> None:
        """Add one reference to each block."""
        for block_id in block_ids:
            self._references[block_id] += 1
            self._cached.pop(block_id, None)

    def release(self, block_ids: Iterable[int]) -> None:
        """Drop one reference from each block; block_ids are in text order."""
        for block_id in reversed(list(block_ids)):  # a prefix is evicted from its end
            self._references[block_id] -= 1
            if self._references[block_id] == 0:
                self._retire(block_id)

    def is_shared(self, block_id: int) -> bool:
        """Tell whether a write to the block could be seen by another sequence."""
        return self._references[block_id] > 1 or block_id in self._index

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Add a full block to the prefix index; the first block of a hash stays."""
        if self.prefix_caching:
            self._index.add(block_hash, block_id)

    def begin_load(self, block_hash: bytes) -> int | None:
        """Return a block that is indexed under a new hash and loading; None: there is no block."""
        if self.num_available == 0:
            return None
        block_id = self._take()
        self._index.add(block_hash, block_id)
        self._loading.add(block_id)
        return block_id

    def end_load(self, block_id: int, *, succeeded: bool) -> None:
        """Drop the load's reference; a block whose load has failed leaves the index."""
        self._loading.remove(block_id)
        if not succeeded:
            self._index.remove(block_id)
        self.release([block_id])

    def is_loading(self, block_ids: Iterable[int]) -> bool:
        """Tell whether one of the blocks may not be read yet."""
        return bool(self._loading) and not self._loading.isdisjoint(block_ids)

    def check_integrity(self) -> None:
        """Raise AssertionError unless the module's law holds."""
        held = sum(1 for count in self._references if count > 0)
        assert held + self.num_available == self.num_blocks, "a block is lost or counted twice"
        assert all(self._references[b] == 0 for b in (*self._free, *self._cached))
        assert all(self._references[b] > 0 and b in self._index for b in self._loading)
        assert all(b in self._index for b in self._cached)
        assert not any(b in self._index for b in self._free)
        assert [b < self.num_touched for b in self._free] == sorted(
            (b < self.num_touched for b in self._free), reverse=True
        )
        self._index.check_integrity()

    def _take(self) -> int:
        if self._cached and self._is_spare(self._free[0] if self._free else None):
            block_id = self._evict()
        else:
            block_id = self._free.popleft()
        self._references[block_id] = 1
        self.num_touched = max(self.num_touched, block_id + 1)
        return block_id

    def _is_spare(self, free: int | None) -> bool:
        """Tell whether a cached block is to be evicted rather than the next free one used."""
        return free is None or free >= self.num_touched >= self._num_kept

    def _evict(self) -> int:
        """Return the cached block that was used least recently, which is indexed no more."""
        block_id, _ = self._cached.popitem(last=False)
        self._on_evict(block_id, self._index.remove(block_id))
        return block_id

    def _retire(self, block_id: int) -> None:
        if block_id in self._index:
            self._cached[block_id] = None
        else:
            self._free.appendleft(block_id)  # reused first: its memory has been touched already
