"""The prefix index: full KV blocks by the hash of the text up to their end.

The hash of a block covers its own tokens and the hash of the block before it, so equal hashes mean
equal prefixes. The chain starts at a root hash that holds the weights' fingerprint and the
tenant's salt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from plait.server.engine.kv.block_table import BLOCK_SIZE


def root_hash(*parts: str) -> bytes:
    """Return the start of a hash chain; parts are length-prefixed, so they can't run together."""
    digest = blake2b(digest_size=16)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def hash_span(diffusion_block: int) -> int:
    """Return how many KV blocks one diffusion block (Decoder.block) spans, at least 1."""
    return max(diffusion_block // BLOCK_SIZE, 1)


def extend_block_hashes(
    hashes: list[bytes], root: bytes, tokens: Sequence[int], num_full: int, span: int = 1
) -> None:
    """Append the hashes of blocks len(hashes)..num_full-1 of `tokens` to the chain.

    span: number of consecutive blocks whose tokens attend to each other; the hash of each covers
    the tokens of all of them. num_full is a multiple of it.
    """
    for i in range(len(hashes), num_full):
        first = i // span * span
        seen = tokens[first * BLOCK_SIZE : (first + span) * BLOCK_SIZE]
        parent = hashes[-1] if hashes else root
        block = np.asarray(seen, dtype=np.int64).tobytes()
        hashes.append(blake2b(parent + block, digest_size=16).digest())


class PrefixIndex:
    """A one-to-one map between block hashes and block ids."""

    def __init__(self) -> None:
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._hash_of

    def longest_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the blocks of the longest indexed prefix of a hash chain."""
        found: list[int] = []
        for block_hash in hashes:
            block_id = self._block_of.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def add(self, block_hash: bytes, block_id: int) -> None:
        """Index a block; nothing changes if the hash or the block is indexed already."""
        if block_id not in self._hash_of and block_hash not in self._block_of:
            self._hash_of[block_id] = block_hash
            self._block_of[block_hash] = block_id

    def remove(self, block_id: int) -> bytes:
        """Forget an indexed block; return its hash."""
        block_hash = self._hash_of.pop(block_id)
        del self._block_of[block_hash]
        return block_hash

    def check_integrity(self) -> None:
        """Raise AssertionError unless the map is one-to-one."""
        assert len(self._hash_of) == len(self._block_of)
        assert all(self._hash_of[b] == block_hash for block_hash, b in self._block_of.items())
