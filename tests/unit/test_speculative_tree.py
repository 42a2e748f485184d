"""Draft trees: what may become one, what is kept of one, and what is fed."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.decoders.contract.decoder import AttentionMode
from plait.decoders.contract.drafter import Draft
from plait.decoders.speculative.tree import (
    ROOT,
    DraftTree,
    MalformedDraft,
    is_chain,
    parents_of,
    validate_draft,
)

Entry = tuple[int, int, float]  # which earlier node, or none; token; probability


def grown(entries: Sequence[Entry]) -> DraftTree:
    tree = DraftTree()
    for above, token, acceptance_prob in entries:
        tree.add(
            above % (len(tree) + 1) - 1,
            token,
            "a" if token % 2 else "b",
            acceptance_prob,
            acceptance_prob,
        )
    return tree


ENTRIES = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 5), st.floats(0.1, 0.9)))


def path(tree: DraftTree, node: int) -> list[int]:
    return [] if node == ROOT else [*path(tree, tree.parents[node]), node]


@given(ENTRIES)
def test_siblings_differ_and_parents_come_first(entries: list[Entry]) -> None:
    tree = grown(entries)
    assert all(ROOT <= parent < node for node, parent in enumerate(tree.parents))
    assert len(set(zip(tree.parents, tree.token_ids, strict=True))) == len(tree)
    for node, (parent, token) in enumerate(zip(tree.parents, tree.token_ids, strict=True)):
        assert tree.child(parent, token) == node
        assert tree.child(node, 6) is None


@given(ENTRIES)
def test_a_path_probability_is_the_product_of_its_path(entries: list[Entry]) -> None:
    tree = grown(entries)
    want = [
        prod(tree.acceptance_probs[each] for each in path(tree, node)) for node in range(len(tree))
    ]
    assert tree.path_probs() == pytest.approx(want)


@given(ENTRIES, st.sets(st.integers(0, 40)))
def test_a_part_of_a_tree_keeps_its_paths(entries: list[Entry], leaves: set[int]) -> None:
    tree = grown(entries)
    nodes = sorted({each for leaf in leaves if leaf < len(tree) for each in path(tree, leaf)})
    part = tree.only(nodes)

    def words(whole: DraftTree, kept: Sequence[int]) -> list[list[int]]:
        return [[whole.token_ids[each] for each in path(whole, node)] for node in kept]

    assert words(part, range(len(part))) == words(tree, nodes)
    for name in ("acceptance_probs", "stated_probs", "sources"):
        assert getattr(part, name) == [getattr(tree, name)[node] for node in nodes]
    assert part.count() == tree.count(nodes)


def test_a_chain_is_fed_causally_and_a_tree_by_ancestors() -> None:
    chain, tree = grown([(0, 1, 0.5), (1, 2, 0.5)]), grown([(0, 1, 0.5), (0, 2, 0.5)])
    assert (chain.proposal().attend, chain.proposal().parents) == (AttentionMode.CAUSAL, None)
    assert (tree.proposal().attend, tree.proposal().parents) == (AttentionMode.TREE, [ROOT, ROOT])
    assert DraftTree().is_chain
    assert not is_chain([0])  # its own parent


def test_a_draft_is_cut_to_what_is_of_use() -> None:
    cut = validate_draft(Draft([3, 4, 5], [1.0, 0.5, 0.25], [-1, -1, 0]), 2)
    assert (list(cut.token_ids), cut.acceptance_probs, cut.parents) == (
        [3, 4],
        [1.0, 0.5],
        [-1, -1],
    )
    cut = validate_draft(Draft([3, 4], [1.0, 0.5]), 5)
    assert list(parents_of(cut)) == [-1, 0]


def test_probabilities_come_into_their_range() -> None:
    stated_probs = [nan, -1.0, 0.0, 1.0, 7.0, float("inf"), -float("inf")]
    assert validate_draft(Draft([1] * 7, stated_probs), 9).acceptance_probs == [
        0.0,
        0.0,
        0.0,
        1.0,
        1.0,
        1.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("draft", "want"),
    [
        (Draft([1, 2], [1.0]), "2 tokens have 1 probabilities"),
        (Draft([1], [1.0, 1.0]), "1 tokens have 2 probabilities"),
        (Draft([1, 2], [1.0, 1.0], [-1]), "1 parents"),
        (Draft([1, 2], [1.0, 1.0], [1, 0]), "token 0 has parent 1"),  # a cycle
        (Draft([1, 2], [1.0, 1.0], [-1, 1]), "token 1 has parent 1"),
        (Draft([1, 2], [1.0, 1.0], [-1, -2]), "token 1 has parent -2"),
        (Draft([1, 2, 3], [1.0] * 3, [-1, 2, 0]), "token 1 has parent 2"),  # looks ahead
    ],
)
def test_what_is_no_tree_is_no_draft(draft: Draft, want: str) -> None:
    with pytest.raises(MalformedDraft, match=want):
        validate_draft(draft, 1)
