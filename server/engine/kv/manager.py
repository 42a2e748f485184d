"""The KV cache manager: what the scheduler asks of the block tables of its sequences.

It matches prefixes, reserves blocks before a step writes them (copy-on-write for shared ones),
registers full blocks, forks, truncates and releases tables.

Law: no block that another table lists, or that the prefix index knows, is ever written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plait.server.engine.kv.block_pool import BlockPool
from plait.server.engine.kv.block_table import BLOCK_SIZE, BlockTable, num_blocks_for
from plait.server.engine.kv.prefix_index import extend_block_hashes
from plait.server.engine.kv.tier import KVTier, Lookup, NoTier

CopyBlock = Callable[[int, int], None]  # (source block, destination block)


class KVCacheManager:
    """Owns the block pool of one KV cache and changes block tables."""

    def __init__(
        self,
        num_blocks: int,
        copy_block: CopyBlock,
        *,
        prefix_caching: bool = True,
        num_kept: int | None = None,
        tier: KVTier | None = None,
    ) -> None:
        """Start with free blocks.

        Args:
            num_blocks: of the cache.
            copy_block: copies the contents of one block.
            prefix_caching: whether full blocks are kept for later prompts.
            num_kept: blocks that are used before known prefixes are evicted; None: all.
            tier: takes evicted blocks and gives them back; without one they are lost.
        """
        self._tier = tier or NoTier()
        self.pool = BlockPool(
            num_blocks,
            prefix_caching=prefix_caching,
            num_kept=num_kept,
            on_evict=self._tier.evict,
        )
        self.num_queried_tokens = 0  # looked up in the prefix index
        self.num_hit_tokens = 0  # found there
        self._copy_block = copy_block

    def match_prefix(self, table: BlockTable, tokens: Sequence[int], limit: int) -> int | None:
        """Fill an empty table with the known blocks of the longest prefix of the tokens.

        limit: match at most so many tokens.
        Returns the number of matched tokens. None: a lower tier will answer later; the table stays
        empty. Some of the blocks may be loading (see is_loading).
        """
        if not self.pool.prefix_caching:
            return 0
        chain: list[bytes] = []
        span = table.hash_span
        extend_block_hashes(chain, table.root, tokens, limit // BLOCK_SIZE, span)
        block_ids = self.pool.match(chain)
        if not self._load_rest(chain, block_ids):
            self.pool.release(block_ids)
            return None
        num_whole = len(block_ids) // span * span
        self.pool.release(block_ids[num_whole:])
        table.block_ids, table.block_hashes = block_ids[:num_whole], chain[:num_whole]
        return num_whole * BLOCK_SIZE

    def note_query(self, num_tokens: int, num_hits: int) -> None:
        """Count a request's prefix lookup."""
        self.num_queried_tokens += num_tokens
        self.num_hit_tokens += num_hits

    def fork(self, table: BlockTable, num_tokens: int) -> BlockTable:
        """Return a table that shares the blocks of the first num_tokens tokens.

        The last of them may be partly filled: whoever writes to it first gets a copy.
        """
        block_ids = table.block_ids[: num_blocks_for(num_tokens)]
        self.pool.share(block_ids)
        hashes = table.block_hashes[: _num_hashes(table, num_tokens)]
        return BlockTable(table.root, table.hash_span, block_ids, hashes)

    def num_needed(self, table: BlockTable, start: int, stop: int) -> int:
        """Return how many blocks `reserve` would allocate."""
        return len(self._shared(table, start, stop)) + _num_missing(table, stop)

    def reserve(self, table: BlockTable, start: int, stop: int) -> bool:
        """Give the table blocks of its own for the positions start..stop-1.

        Missing blocks are allocated, shared ones are copied. Returns False, and changes nothing, if
        there aren't enough blocks.
        """
        shared = self._shared(table, start, stop)
        fresh = self.pool.allocate(len(shared) + _num_missing(table, stop))
        if fresh is None:
            return False
        for i in shared:
            own = fresh.pop()
            self._copy_block(table.block_ids[i], own)
            self.pool.release([table.block_ids[i]])
            table.block_ids[i] = own
        table.block_ids.extend(fresh)
        return True

    def register(self, table: BlockTable, tokens: Sequence[int], num_computed_tokens: int) -> None:
        """Offer the table's full blocks to later prompts."""
        num_full, first = num_computed_tokens // BLOCK_SIZE, len(table.block_hashes)
        if not self.pool.prefix_caching or num_full <= first:
            return
        extend_block_hashes(table.block_hashes, table.root, tokens, num_full, table.hash_span)
        for i in range(first, num_full):
            self.pool.register(table.block_ids[i], table.block_hashes[i])

    def truncate(self, table: BlockTable, num_tokens: int) -> None:
        """Release the blocks that the first num_tokens tokens don't need."""
        needed = num_blocks_for(num_tokens)
        self.pool.release(table.block_ids[needed:])
        del table.block_ids[needed:]
        del table.block_hashes[_num_hashes(table, num_tokens) :]

    def release(self, table: BlockTable) -> None:
        """Release all blocks of a table."""
        self.truncate(table, 0)

    def is_loading(self, table: BlockTable) -> bool:
        """Tell whether a block of the table is loading, so that its sequence can't run yet."""
        return self.pool.is_loading(table.block_ids)

    def finish_loads(self, *, wait: bool) -> set[int]:
        """Take note of the loads that have ended; return the blocks whose load has failed.

        Tables that list one of those must be released. wait: see KVTier.finished_loads.
        """
        finished = self._tier.finished_loads(wait=wait)
        for load in finished:
            self.pool.end_load(load.block_id, succeeded=load.succeeded)
        return {load.block_id for load in finished if not load.succeeded}

    def _load_rest(self, chain: Sequence[bytes], block_ids: list[int]) -> bool:
        """Extend the prefix by blocks that the tier can load.

        Returns False if the tier can't tell yet.
        """
        for block_hash in chain[len(block_ids) :]:
            if known := self.pool.match([block_hash]):
                block_ids += known
                continue
            found = self._tier.lookup(block_hash)
            if found is Lookup.PENDING:
                return False
            block_id = self.pool.begin_load(block_hash) if found is Lookup.HIT else None
            if block_id is None:
                break
            self._tier.load(block_hash, block_id)
            block_ids += self.pool.match([block_hash])
        return True

    def _shared(self, table: BlockTable, start: int, stop: int) -> list[int]:
        """Return the indices of the blocks to copy before positions start..stop-1 are written."""
        block_ids = table.block_ids
        written = range(start // BLOCK_SIZE, min(len(block_ids), num_blocks_for(stop)))
        return [i for i in written if self.pool.is_shared(block_ids[i])]


def _num_missing(table: BlockTable, stop: int) -> int:
    return max(num_blocks_for(stop) - len(table.block_ids), 0)


def _num_hashes(table: BlockTable, num_tokens: int) -> int:
    """Return how many block hashes depend on nothing but the first num_tokens tokens."""
    return num_tokens // (BLOCK_SIZE * table.hash_span) * table.hash_span
