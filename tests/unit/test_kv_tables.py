"""Block tables: no sequence ever sees what another one wrote, whatever they share."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from plait.server.engine.kv.block_table import BLOCK_SIZE, BlockTable, num_blocks_for
from plait.server.engine.kv.manager import KVCacheManager
from plait.server.engine.kv.prefix_index import PrefixIndex, root_hash


@dataclass
class Cache:
    """A KV cache whose slots hold the tokens themselves."""

    num_blocks: int
    slots: list[int] = field(default_factory=list)
    num_copies: int = 0

    def __post_init__(self) -> None:
        self.slots = [-1] * (self.num_blocks * BLOCK_SIZE)
        self.kv = KVCacheManager(self.num_blocks, self.copy_block)

    def copy_block(self, source: int, destination: int) -> None:
        for offset in range(BLOCK_SIZE):
            self.slots[destination * BLOCK_SIZE + offset] = self.slots[source * BLOCK_SIZE + offset]
        self.num_copies += 1


@dataclass(eq=False)
class Text:
    """A sequence of the cache; all its tokens are computed."""

    cache: Cache
    table: BlockTable = field(default_factory=lambda: BlockTable(root_hash("weights")))
    tokens: list[int] = field(default_factory=list)

    def append(self, tokens: list[int]) -> bool:
        start, stop = len(self.tokens), len(self.tokens) + len(tokens)
        if not self.cache.kv.reserve(self.table, start, stop):
            return False
        for position, token in enumerate(tokens, start):
            self.cache.slots[self._slot(position)] = token
        self.tokens += tokens
        self.cache.kv.register(self.table, self.tokens, stop)
        return True

    def truncate(self, length: int) -> None:
        del self.tokens[length:]
        self.cache.kv.truncate(self.table, length)

    def fork(self, length: int) -> Text:
        return Text(self.cache, self.cache.kv.fork(self.table, length), self.tokens[:length])

    def stored(self) -> list[int]:
        return [self.cache.slots[self._slot(i)] for i in range(len(self.tokens))]

    def _slot(self, position: int) -> int:
        block = self.table.block_ids[position // BLOCK_SIZE]
        return block * BLOCK_SIZE + position % BLOCK_SIZE


def test_a_fork_shares_blocks_and_copies_the_last_partial_one() -> None:
    cache = Cache(8)
    parent = Text(cache)
    assert parent.append(list(range(40)))
    child = parent.fork(36)
    assert child.table.block_ids == parent.table.block_ids
    assert cache.kv.pool.num_used == 3
    assert cache.kv.num_needed(child.table, 36, 37) == 1
    assert child.append([7])
    assert (cache.num_copies, cache.kv.pool.num_used) == (1, 4)
    assert child.table.block_ids[:2] == parent.table.block_ids[:2]
    assert parent.append([8])
    assert cache.num_copies == 1  # the block is the parent's alone again
    assert child.stored() == [*range(36), 7]
    assert parent.stored() == [*range(40), 8]


def test_whoever_writes_first_copies_the_shared_block() -> None:
    cache = Cache(4)
    parent = Text(cache)
    parent.append([1, 2, 3])
    child = parent.fork(3)
    parent.append([4])
    child.append([5])
    assert cache.num_copies == 1
    assert (parent.stored(), child.stored()) == ([1, 2, 3, 4], [1, 2, 3, 5])


def test_a_truncated_text_leaves_what_is_registered_alone() -> None:
    """A full block stays known to later prompts when its own sequence goes another way."""
    cache, text = Cache(6), list(range(32))
    first = Text(cache)
    first.append(text)
    first.truncate(20)
    assert len(first.table.block_ids) == 2
    assert len(first.table.block_hashes) == 1
    first.append([99])
    later = Text(cache)
    assert cache.kv.match_prefix(later.table, [*text, 0], 32) == 32
    later.tokens = text
    assert later.stored() == text
    assert first.stored() == [*text[:20], 99]


def test_reserve_is_all_or_nothing() -> None:
    cache = Cache(2)
    text = Text(cache)
    text.append([0] * 20)
    held = list(text.table.block_ids)
    assert not cache.kv.reserve(text.table, 20, 33)
    assert text.table.block_ids == held
    cache.kv.release(text.table)
    assert text.table == BlockTable(root_hash("weights"))
    assert cache.kv.pool.num_used == 0


def test_a_match_ends_with_a_whole_diffusion_block() -> None:
    cache, tokens = Cache(8), list(range(64))
    whole = Text(cache, BlockTable(hash_span=2))
    whole.append(tokens)
    cache.kv.release(whole.table)
    later = BlockTable(hash_span=2)
    assert cache.kv.match_prefix(later, tokens, 48) == 32
    assert len(later.block_ids) == len(later.block_hashes) == 2
    fork = cache.kv.fork(later, 16)  # half a span: its hash would depend on tokens behind the cut
    assert (len(fork.block_ids), fork.block_hashes) == (1, [])


def test_the_first_block_of_a_hash_stays() -> None:
    index = PrefixIndex()
    index.add(b"a", 1)
    index.add(b"a", 2)
    index.add(b"b", 1)
    assert index.longest_prefix([b"a", b"b"]) == [1]
    assert [block in index for block in (1, 2)] == [True, False]
    assert index.remove(1) == b"a"
    assert index.longest_prefix([b"a"]) == []
    index.check_integrity()


STEP = st.tuples(
    st.sampled_from(["begin", "append", "append", "fork", "truncate", "end", "match"]),
    st.integers(0, 7),
    st.integers(0, 40),
)


@given(st.lists(STEP, max_size=60))
def test_every_sequence_reads_its_own_text(steps: list[tuple[str, int, int]]) -> None:
    """Over random forks, writes, truncations and prefix hits; and no block is lost."""
    cache = Cache(12)
    texts: list[Text] = []
    for number, (verb, which, length) in enumerate(steps):
        text = texts[which % len(texts)] if texts else None
        if verb == "begin" or text is None:
            texts.append(Text(cache))
        elif verb == "append":
            text.append([number % 3] * length)
        elif verb == "fork":
            texts.append(text.fork(min(length, len(text.tokens))))
        elif verb == "truncate":
            text.truncate(min(length, len(text.tokens)))
        elif verb == "end":
            texts.remove(text)
            cache.kv.release(text.table)
        else:
            again = Text(cache)
            known = cache.kv.match_prefix(again.table, text.tokens, len(text.tokens))
            again.tokens = text.tokens[: known or 0]
            texts.append(again)
        cache.kv.pool.check_integrity()
        assert all(text.stored() == text.tokens for text in texts)
        held = {block for text in texts for block in text.table.block_ids}
        assert cache.kv.pool.num_used == len(held)
        assert all(len(t.table.block_ids) == num_blocks_for(len(t.tokens)) for t in texts)
