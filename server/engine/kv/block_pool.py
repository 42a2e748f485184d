"""Ownership of KV blocks: reference counts, the free list and the prefix cache.

A full block of committed tokens is registered under a hash chain (root: weights' fingerprint and
the tenant's salt), so a later prompt with the same beginning shares it. A registered block that
nobody uses stays until its memory is wanted; the least recently used one goes first.

Law: 1 <= references of every block that a sequence lists; free + evictable + referenced == all.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 16  # tokens per block; fixed by the attention kernels


def root_hash(*parts: str) -> bytes:
    """Return the start of a hash chain; parts are length-prefixed, so they can't run together."""
    digest = blake2b(digest_size=16)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def extend_block_hashes(
    hashes: list[bytes], root: bytes, tokens: Sequence[int], full: int, unit: int = 1
) -> None:
    """Append the hashes of blocks len(hashes)..full-1 of `tokens` to the chain.

    unit: blocks whose tokens see each other whole, so each hash covers all of them; divides full.
    """
    for i in range(len(hashes), full):
        first = i // unit * unit
        seen = tokens[first * BLOCK_SIZE : (first + unit) * BLOCK_SIZE]
        parent = hashes[-1] if hashes else root
        block = np.asarray(seen, dtype=np.int64).tobytes()
        hashes.append(blake2b(parent + block, digest_size=16).digest())


class BlockPool:
    """Allocates, shares and releases the blocks of one KV cache."""

    def __init__(self, num_blocks: int, *, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.prefix_caching = prefix_caching
        self.queries = 0  # tokens looked up in the prefix cache
        self.hits = 0  # tokens found there
        self._free: deque[int] = deque(range(num_blocks))
        self._references = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()  # registered, unreferenced

    @property
    def num_available(self) -> int:
        """Blocks that can be had: free ones and evictable ones."""
        return len(self._free) + len(self._evictable)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence holds."""
        return self.num_blocks - self.num_available

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the cached blocks of the longest known prefix, each with one more reference."""
        found: list[int] = []
        for key in hashes:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        self.share(found)
        return found

    def allocate(self, count: int) -> list[int] | None:
        """Return `count` fresh blocks, or None (and nothing changed) if there aren't enough."""
        if count > self.num_available:
            return None
        return [self._take() for _ in range(count)]

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block."""
        for block in blocks:
            self._references[block] += 1
            self._evictable.pop(block, None)

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference from each block; give the blocks in text order."""
        for block in reversed(list(blocks)):  # a chain is evicted from its end
            self._references[block] -= 1
            if self._references[block] == 0:
                self._retire(block)

    def is_shared(self, block: int) -> bool:
        """Tell whether a write to the block would be seen by somebody else."""
        return self._references[block] > 1 or block in self._hash_of

    def register(self, block: int, key: bytes) -> None:
        """Offer a full block to later prompts; the first block of a key stays."""
        if self.prefix_caching and block not in self._hash_of and key not in self._block_of:
            self._hash_of[block] = key
            self._block_of[key] = block

    def check_integrity(self) -> None:
        """Raise AssertionError unless the class's law holds."""
        held = sum(1 for count in self._references if count > 0)
        assert held + self.num_available == self.num_blocks, "a block is lost or counted twice"
        assert all(self._references[b] == 0 for b in (*self._free, *self._evictable))
        assert all(self._hash_of[b] == key for key, b in self._block_of.items())

    def _take(self) -> int:
        if self._free:
            block = self._free.popleft()
        else:
            block, _ = self._evictable.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        self._references[block] = 1
        return block

    def _retire(self, block: int) -> None:
        if block in self._hash_of:
            self._evictable[block] = None
        else:
            self._free.appendleft(block)  # the next to be taken: its memory is touched already


def blocks_per_unit(block: int) -> int:
    """Return how many KV blocks a decoder's block (Decoder.block) spans, at least 1."""
    return max(block // BLOCK_SIZE, 1)


def num_blocks_for(tokens: int) -> int:
    """Return how many blocks hold that many tokens."""
    return -(-tokens // BLOCK_SIZE)


def as_slots(blocks: Sequence[int], start: int, stop: int) -> NDArray[np.int64]:
    """Return the cache slots of logical positions start..stop-1 of a sequence."""
    return slot_mapping(blocks, np.arange(start, stop, dtype=np.int64))


def slot_mapping(blocks: Sequence[int], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cache slots of some logical positions of a sequence."""
    return (
        np.asarray(blocks, dtype=np.int64)[places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE
    )
