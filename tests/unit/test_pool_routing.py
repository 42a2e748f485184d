"""Routing: the longest known prefix, unless its replica is much busier."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plait.server.pool.routing import (
    MAX_IMBALANCE,
    PREFIX_BLOCK,
    PrefixMap,
    choose_replica,
    prefix_hashes,
)


def test_the_least_loaded_gets_it_when_nobody_knows_the_prompt() -> None:
    assert choose_replica({0: 3, 1: 1, 2: 2}, None) == 1
    assert choose_replica({0: 3, 1: 1, 2: 2}, 7) == 1


def test_a_known_prefix_outweighs_a_bounded_load() -> None:
    assert choose_replica({0: MAX_IMBALANCE, 1: 0}, 0) == 0
    assert choose_replica({0: MAX_IMBALANCE + 1, 1: 0}, 0) == 1


@given(st.lists(st.integers(0, 9), max_size=4 * PREFIX_BLOCK), st.integers(0, 4))
def test_hashes_of_a_prefix_are_a_prefix_of_the_hashes(tokens: list[int], blocks: int) -> None:
    whole = list(prefix_hashes(tokens, "salt"))
    assert len(whole) == len(tokens) // PREFIX_BLOCK
    part = tokens[: blocks * PREFIX_BLOCK]
    assert list(prefix_hashes(part, "salt")) == whole[: len(part) // PREFIX_BLOCK]


def test_the_salt_keeps_tenants_apart() -> None:
    tokens = list(range(PREFIX_BLOCK))
    assert list(prefix_hashes(tokens, "a")) != list(prefix_hashes(tokens, "b"))


def test_the_map_finds_the_longest_prefix_and_forgets_the_oldest() -> None:
    known = PrefixMap(max_prefixes=3)
    known.remember([1, 2], 0)
    known.remember([1, 3], 1)
    assert known.longest([1, 2, 9]) == 0
    assert known.longest([1, 3]) == 1
    assert known.longest([1]) == 1
    assert known.longest([7]) is None
    known.remember([4, 5], 0)
    assert len(known) == 3
    assert known.longest([2]) is None
    assert known.longest([3]) == 1
