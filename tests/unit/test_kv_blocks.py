"""Block ownership: nothing is lost, shared or evicted that should not be."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plait.server.engine.kv.block_pool import BlockPool
from plait.server.engine.kv.block_table import BLOCK_SIZE, num_blocks_for, slot_mapping
from plait.server.engine.kv.prefix_index import extend_block_hashes, root_hash


def chain(tokens: list[int], *, salt: str = "") -> list[bytes]:
    hashes: list[bytes] = []
    extend_block_hashes(hashes, root_hash("weights", salt), tokens, len(tokens) // BLOCK_SIZE)
    return hashes


def test_allocation_is_all_or_nothing() -> None:
    blocks = BlockPool(4)
    assert blocks.allocate(5) is None
    assert blocks.num_available == 4
    assert len(set(blocks.allocate(4) or ())) == 4
    assert blocks.allocate(1) is None


def test_memory_that_was_touched_is_used_again_first() -> None:
    blocks = BlockPool(100)
    for _ in range(50):
        held = blocks.allocate(3) or []
        assert held == [0, 1, 2]
        blocks.release(held)


def test_prefix_is_found_by_content_and_salt() -> None:
    blocks = BlockPool(8)
    text = list(range(40))
    held = blocks.allocate(2) or []
    for block, key in zip(held, chain(text), strict=True):
        blocks.register(block, key)
    assert blocks.match(chain(text)) == held
    assert blocks.match(chain([*text[:16], *[0] * 16])) == held[:1]
    assert blocks.match(chain([7, *text[1:]])) == []
    assert blocks.match(chain(text, salt="other")) == []


def test_a_block_is_named_by_all_that_its_tokens_see() -> None:
    """Two KV blocks whose tokens see each other whole differ if either's tokens do."""
    root, text = root_hash("weights"), list(range(64))
    chains: list[list[bytes]] = [[], [], []]
    extend_block_hashes(chains[0], root, text, 4, 2)
    extend_block_hashes(chains[1], root, [*text[:31], 99, *text[32:]], 4, 2)
    extend_block_hashes(chains[2], root, [*text[:63], 99], 2, 2)
    extend_block_hashes(chains[2], root, [*text[:63], 99], 4, 2)  # as the text grows
    assert len(set(chains[0])) == 4
    assert not set(chains[0]) & set(chains[1])
    assert chains[2][:2] == chains[0][:2]
    assert not set(chains[2][2:]) & set(chains[0])


def test_unused_prefixes_stay_until_their_memory_is_wanted() -> None:
    blocks = BlockPool(3)
    hashes = chain(list(range(32)))
    held = blocks.allocate(2) or []
    for block, key in zip(held, hashes, strict=True):
        blocks.register(block, key)
    blocks.release(held)
    assert blocks.num_used == 0
    assert len(blocks.allocate(2) or ()) == 2  # the free block, then the end of the chain
    assert blocks.match(hashes) == held[:1]


def test_registered_and_shared_blocks_are_not_to_be_written() -> None:
    blocks = BlockPool(3)
    mine, full, both = blocks.allocate(3) or []
    blocks.register(full, chain(list(range(16)))[0])
    blocks.share([both])
    assert [blocks.is_shared(b) for b in (mine, full, both)] == [False, True, True]


def test_salts_cannot_run_together() -> None:
    assert root_hash("ab", "c") != root_hash("a", "bc")


def test_slots_follow_the_table() -> None:
    want = [5 * BLOCK_SIZE + 14, 5 * BLOCK_SIZE + 15, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 1]
    assert np.array_equal(slot_mapping([5, 2], np.arange(14, 18)), want)
    assert [num_blocks_for(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_prefixes_are_evicted_before_more_memory_is_taken_than_is_to_be_kept() -> None:
    evicted: list[bytes] = []
    blocks = BlockPool(100, num_kept=3, on_evict=lambda _, block_hash: evicted.append(block_hash))
    chains = [chain([text] * 32) for text in range(3)]
    for hashes in chains[:2]:
        held = blocks.allocate(2) or []
        for block, key in zip(held, hashes, strict=True):
            blocks.register(block, key)
        blocks.release(held)
    assert evicted == [chains[0][1]]  # a prefix goes from its end
    assert blocks.num_touched == 3
    known = blocks.match(chains[1])
    assert len(known) == 2
    assert len(blocks.match(chains[0])) == 1  # so that nothing is left to evict
    assert len(blocks.allocate(50) or ()) == 50
    assert blocks.num_touched == 53


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "free", "register", "match"]),
            st.integers(0, 5),
            st.integers(0, 3),
        ),
        max_size=80,
    ),
    st.sampled_from([None, 0, 2]),
)
def test_every_block_is_accounted_for(
    actions: list[tuple[str, int, int]], num_kept: int | None
) -> None:
    blocks = BlockPool(6, num_kept=num_kept)
    most = num_kept or 0
    held: list[list[int]] = []
    for verb, which, text in actions:
        tokens = [text] * 48
        if verb == "take" and (fresh := blocks.allocate(which)) is not None:
            held.append(fresh)
        elif verb == "free" and which < len(held):
            blocks.release(held.pop(which))
        elif verb == "register" and which < len(held):
            for block, key in zip(held[which], chain(tokens), strict=False):
                blocks.register(block, key)
        elif verb == "match":
            held.append(blocks.match(chain(tokens)))
        blocks.check_integrity()
        assert blocks.num_used == len({block for each in held for block in each})
        most = max(most, blocks.num_used)
        assert num_kept is None or blocks.num_touched <= most
