"""PPD's trees against brute force: the best nodes, their worth, and how states follow."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from plait.decoders.speculative.heads.prompt_trees import (
    ROOT,
    PromptTree,
    best_candidates,
    build_trees,
    last_accepted_probs,
    stationary_distribution,
    tokens_per_step,
    trees_for,
)

ACCURACY = np.array([[0.48, 0.14, 0.07, 0.04], [0.35, 0.12, 0.06, 0.03], [0.25, 0.1, 0.05, 0.02]])
WALKS = 20_000


@pytest.mark.parametrize("size", [1, 4, 9, 20])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_candidates_are_the_most_probable_paths(depth: int, size: int) -> None:
    ranks = range(ACCURACY.shape[1])
    paths = [path for length in range(depth) for path in product(ranks, repeat=length + 1)]
    worth = sorted(float(np.prod([ACCURACY[d, r] for d, r in enumerate(p)])) for p in paths)
    want = worth[::-1][:size]
    np.testing.assert_allclose([row.value for row in best_candidates(ACCURACY[:depth], size)], want)


def test_what_is_accepted_last_sums_to_one() -> None:
    last = last_accepted_probs(best_candidates(ACCURACY, 15))
    assert last.min() >= 0
    assert last.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("length", [6, 8, 12, 16, 32, 64])
def test_rows_are_sorted_and_within_the_length(length: int) -> None:
    for state, tree in enumerate(trees_for(ACCURACY, length)):
        assert len(tree.rows) <= length
        for i, row in enumerate(tree.rows):
            assert row.parent < i
            assert row.value <= (1.0 if row.parent == ROOT else tree.rows[row.parent].value)
            assert 0.0 <= tree.acceptance_prob(i) <= 1.0
            assert row.is_prompt or row.depth < state
        assert [row.value for row in tree.rows] == sorted(
            (r.value for r in tree.rows), reverse=True
        )


def test_every_node_can_be_followed_up() -> None:
    """Whichever candidate is the last to be accepted, a prompt hangs on it; on the text, all do."""
    for tree in trees_for(ACCURACY, 16):
        prompts = {row.parent for row in tree.rows if row.is_prompt and row.depth == 0}
        assert prompts == {ROOT, *(i for i, row in enumerate(tree.rows) if not row.is_prompt)}
        assert _chain(tree, ROOT) == len(ACCURACY)


def test_the_least_useful_prompts_are_taken_away() -> None:
    """No prompt that was left out is worth more than one that a node has beyond its first."""
    tree = build_trees(ACCURACY, (4, 6, 6), 20)[3]
    gains = _gains(build_trees(ACCURACY, (4, 6, 6), 20))
    candidates = [i for i, row in enumerate(tree.rows) if not row.is_prompt]
    last = {i: tree.rows[i].value - _below(tree, i) for i in candidates}
    counts = {i: _chain(tree, i) for i in candidates}
    assert sum(counts.values()) + len(candidates) + len(gains) == 20
    kept = [last[i] * gains[counts[i] - 1] for i in candidates if counts[i] > 1]
    left = [last[i] * gains[counts[i]] for i in candidates if counts[i] < len(gains)]
    assert min(kept) >= max(left)


def test_expected_tokens_are_those_of_a_long_walk() -> None:
    """The chain of states against a simulation that knows only A and the trees."""
    trees = build_trees(ACCURACY, (3, 5, 7), 18)
    rng = np.random.default_rng(0)
    state, tokens, visits = 3, 0, np.zeros(len(trees))
    for _ in range(WALKS):
        visits[state] += 1
        right = [rng.choice(5, p=[*row, 1 - row.sum()]) for row in ACCURACY]
        node, tree = ROOT, trees[state]
        while (child := _child(tree, node, right)) is not None:
            node = child
            tokens += 1
        state = _chain(tree, node)
    np.testing.assert_allclose(visits / WALKS, stationary_distribution(trees), atol=0.015)
    assert 1 + tokens / WALKS == pytest.approx(tokens_per_step(trees), abs=0.02)


def test_more_rows_never_give_fewer_tokens() -> None:
    found = [tokens_per_step(trees_for(ACCURACY, length)) for length in (8, 12, 16, 24, 32)]
    assert found == sorted(found)
    assert found[0] > 1.4


def _child(tree: PromptTree, node: int, right: list[int]) -> int | None:
    """Return the candidate below a node whose guess is the right one at its depth."""
    for i, row in enumerate(tree.rows):
        if row.parent == node and not row.is_prompt and right[row.depth] == row.rank:
            return i
    return None


def _chain(tree: PromptTree, node: int) -> int:
    """Return how many prompts hang on a node, one behind the other."""
    count = 0
    for i, row in enumerate(tree.rows):
        if row.is_prompt and row.parent == node and row.depth == count:
            node, count = i, count + 1
    return count


def _below(tree: PromptTree, node: int) -> float:
    return sum(row.value for row in tree.rows if row.parent == node and not row.is_prompt)


def _gains(trees: tuple[PromptTree, ...]) -> list[float]:
    gains = np.diff([tree.accepted for tree in trees])
    return [float(gain) for gain in np.minimum.accumulate(gains)]
