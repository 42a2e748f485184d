"""ADED: the arithmetic of its store, and its searches against enumeration and their invariants."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import compose
from plait.decoders.contract.text import Text
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.drafters.aded import AdedDrafter, AdedState
from plait.decoders.speculative.stores.namespaces import DraftStores
from plait.decoders.speculative.stores.trigrams import MAX_CANDIDATES, MAX_SUCCESSORS, TriGrams
from plait.decoders.speculative.tree_search import (
    MIN_PATH_PROB,
    MctsConfig,
    MctsNode,
    TokenPath,
    TreeLimits,
    best_first,
    grow_mcts_tree,
    monte_carlo,
    paths_to_draft,
    prune_paths,
)
from tests.fixtures.drafting import drafted_by, speculating, texts
from tests.fixtures.engines import request

STEP, CAP, WINDOW = 0.04, 3.0, 16
PAPER = MctsConfig(150, 32.0, 8.0, 24)
TEXT = st.lists(st.integers(0, 3), min_size=3, max_size=60)


def weights(store: TriGrams, pair: Sequence[int]) -> dict[int, float]:
    return dict(store.successors((pair[0], pair[1])))


def test_adaptation_adds_steps_up_to_the_cap() -> None:
    store = TriGrams(100)
    store.read([1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2, 3], is_imported=True)
    assert weights(store, (1, 2)) == {3: 3 / 4, 4: 1 / 4}
    store.adapt([1, 2, 3, 1, 2], STEP, CAP)
    assert weights(store, (1, 2))[3] == pytest.approx(0.79)
    for _ in range(100):
        store.adapt([9, 1, 2, 4], STEP, CAP)
    assert weights(store, (1, 2))[4] == pytest.approx(3.0)
    assert weights(store, (9, 1)) == {2: pytest.approx(3.0)}
    assert store.successors((1, 2))[0][0] == 4


def test_a_tri_gram_gains_once_a_step_while_it_is_in_the_window() -> None:
    """What a text written token by token adds to a tri-gram is a step for each of its windows."""
    text = list(range(100, 140))
    store = TriGrams(1_000)
    for stop in range(1, len(text) + 1):
        store.adapt(text[max(stop - WINDOW, 0) : stop], STEP, CAP)
    assert weights(store, (100, 101))[102] == pytest.approx(14 * STEP)
    assert weights(store, (137, 138))[139] == pytest.approx(STEP)


@given(TEXT)
def test_a_prompt_counts_as_if_it_had_been_written(text: list[int]) -> None:
    read, written = TriGrams(1_000), TriGrams(1_000)
    read.adapt_to_text(text, WINDOW, STEP, CAP)
    read.adapt(text[-WINDOW:], STEP, CAP)
    for stop in range(1, len(text) + 1):
        written.adapt(text[max(stop - WINDOW, 0) : stop], STEP, CAP)
    for pair in pairwise(text):
        assert weights(read, pair) == pytest.approx(weights(written, pair))


def test_stores_are_bounded() -> None:
    store = TriGrams(50)
    for token in range(1_000):
        store.adapt([token, 0, token, 1, 2, token], STEP, CAP)
        store.read([token, 0, token, 7, 8, token], is_imported=True)
        assert len(store) <= 50
    assert len(store.successors((1, 2))) == len(store.successors((7, 8))) == MAX_SUCCESSORS
    assert len(store._pairs[1, 2].steps) <= MAX_SUCCESSORS
    assert len(store._pairs[7, 8].counts) <= MAX_CANDIDATES
    assert weights(store, (1, 2))[999] == STEP
    assert not store.successors((3, 0))  # long untouched


def test_the_twelve_most_frequent_successors_are_kept() -> None:
    store = TriGrams(50)
    for token in range(20):
        for _ in range(token + 1):
            store.read([1, 2, token], is_imported=True)
    assert [token for token, _ in store.successors((1, 2))] == list(range(19, 7, -1))


def brute_force(store: TriGrams, pair: tuple[int, int], depth: int) -> dict[TokenPath, float]:
    """Return the path probability of every path of at most `depth` tokens."""
    found: dict[TokenPath, float] = {}
    level: dict[TokenPath, float] = {(): 1.0}
    for _ in range(depth):
        deeper: dict[TokenPath, float] = {}
        for path, path_prob in level.items():
            known = weights(store, (*pair, *path)[-2:])
            total = sum(known.values()) + 0.5
            for token, weight in known.items():
                deeper[(*path, token)] = path_prob * weight / total
        found |= deeper
        level = deeper
    return found


def paths_of(draft: Draft) -> list[TokenPath]:
    paths: list[TokenPath] = []
    for token, parent in zip(draft.token_ids, draft.parents or (), strict=True):
        assert parent < len(paths)
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


@given(TEXT, st.integers(1, 20), st.integers(1, 4))
def test_best_first_takes_the_highest_path_probabilities(
    text: list[int], nodes: int, depth: int
) -> None:
    store = TriGrams(1_000)
    store.read(text, is_imported=True)
    store.adapt_to_text(text, WINDOW, STEP, CAP)
    pair = text[-2], text[-1]
    every = brute_force(store, pair, depth)
    draft = best_first(store.successors, pair, TreeLimits(nodes, depth), 0.5)
    have = paths_of(draft)
    assert len(set(have)) == len(have)
    want = sorted((s for s in every.values() if s >= MIN_PATH_PROB), reverse=True)[:nodes]
    assert [every[path] for path in have] == pytest.approx(want)
    for path, acceptance_prob in zip(have, draft.acceptance_probs, strict=True):
        assert acceptance_prob == pytest.approx(every[path] / every.get(path[:-1], 1.0))


def visited(node: MctsNode) -> list[MctsNode]:
    return [node, *(each for child in node.children for each in visited(child))]


@given(TEXT, st.integers(1, 4), st.integers(1, 60))
def test_invariants_of_the_monte_carlo_search(text: list[int], depth: int, iterations: int) -> None:
    store = TriGrams(1_000)
    store.read(text, is_imported=True)
    pair = text[0], text[1]
    how = MctsConfig(iterations, 32.0, 8.0, 24)
    root = grow_mcts_tree(store.successors, pair, depth, how, Random(1))
    assert root.visits == iterations
    for node in visited(root):
        assert len(node.path) <= depth
        if node.children:
            assert {child.path[-1] for child in node.children} == set(
                weights(store, (*pair, *node.path)[-2:])
            )
            # One roll-out at most has begun here: when the node itself had just been made.
            rolled_out = node.visits - sum(child.visits for child in node.children)
            assert rolled_out in ((0, 1) if node.path else (0,))
        if node.visits:  # a score is 1 and at least the edges on the way, at most 1 an edge here
            way = sum(
                weights(store, (*pair, *node.path)[i : i + 2])[token]
                for i, token in enumerate(node.path)
            )
            mean = node.score / node.visits
            assert 1 + way - 1e-9 <= mean <= 1 + depth + 1e-9


@given(TEXT, st.integers(1, 12))
def test_the_papers_tree_is_within_its_budget(text: list[int], nodes: int) -> None:
    store = TriGrams(1_000)
    store.adapt_to_text(text, WINDOW, STEP, CAP)
    pair, bounds = (text[0], text[1]), TreeLimits(nodes, 4)
    paths = monte_carlo(store.successors, pair, bounds, PAPER, Random(1))
    draft = paths_to_draft(store.successors, pair, paths, 0.5)
    assert len(draft.token_ids) <= nodes
    have = paths_of(draft)
    assert set(have) == {path[:stop] for path in paths for stop in range(1, len(path) + 1)}
    assert all(len(path) <= 5 for path in have)
    assert all(
        token in weights(store, (*pair, *path)[-3:-1]) for path in have for token in path[-1:]
    )
    assert monte_carlo(store.successors, pair, bounds, PAPER, Random(1)) == paths


def test_paths_with_the_most_tokens_of_their_own_go_first() -> None:
    paths: list[TokenPath] = [(1, 2, 3), (1, 2), (4, 5, 6, 7), (1, 8), (9,)]
    assert prune_paths(paths, 100) == paths
    assert prune_paths(paths, 6) == [(1, 2, 3), (1, 2), (1, 8), (9,)]
    assert prune_paths(paths, 4) == [(1, 2, 3), (1, 2), (1, 8)]
    assert prune_paths(paths, 1) == []


def drafter(stores: DraftStores | None = None, **options: Any) -> AdedDrafter:
    choice = compose({"drafter": {"name": "aded", **options}}, "drafter")[0]
    context = DrafterContext(100, stores=stores or DraftStores())
    made: AdedDrafter = choice.method.make(choice.options, context=context)
    return made


def begin(made: AdedDrafter, namespace: str = "") -> AdedState:
    return made.start(
        DecodeRequest(Text([]), SamplingParams(), 1, frozenset(), None, namespace=namespace)
    )


def ask(
    made: AdedDrafter, state: AdedState, text: Sequence[int], draft_prefix: Sequence[int] = ()
) -> list[int]:
    return list(made.propose([DraftRequest(state, text, draft_prefix, 8, None)])[0].token_ids)


def emitted(made: AdedDrafter, state: AdedState, text: Sequence[int]) -> None:
    """Tell the drafter that a pass has emitted the last token of a text."""
    made.observe(
        state,
        text,
        VerificationResult([], [], [0], [text[-1]], [text[-1]], torch.empty(1, 1), None),
    )


@pytest.mark.parametrize("options", [{}, {"preset": "paper"}])
def test_learns_from_corpora_and_from_what_is_written(options: dict[str, Any]) -> None:
    stores = DraftStores()
    made = drafter(stores, **options)
    stores.add("", [1, 2, 3, 4, 5], is_imported=True)
    state = begin(made)
    assert ask(made, state, [9, 1, 2]) == [3, 4, 5]
    assert ask(made, state, [9, 1], [2, 3]) == [4, 5]
    for stop in range(1, 30):
        emitted(made, state, ([7, 8] * 15)[:stop])
    assert ask(made, begin(made), [1, 7, 8])[:4] == [7, 8, 7, 8]
    assert ask(made, begin(made, "other"), [1, 7, 8]) == []


def test_reads_the_prompt_unless_told_not_to() -> None:
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]
    made = drafter()
    assert ask(made, begin(made), prompt)[:2] == [3, 4]
    made = drafter(preset="paper")
    assert ask(made, begin(made), prompt) == []


def test_sequences_of_a_request_read_their_prompt_once() -> None:
    stores = DraftStores()
    made, prompt = drafter(stores), [1, 2, 3, *range(10, 40)]
    asked = DecodeRequest(Text(prompt), SamplingParams(), 1, frozenset(), None)
    states = [made.start(asked) for _ in range(3)]
    for state in states:
        ask(made, state, prompt)
    space = stores.find("")
    assert space is not None
    store = space.index("tri-grams", TriGrams)
    assert weights(store, (1, 2))[3] == pytest.approx(14 * STEP)


def test_keeps_to_itself_if_it_is_not_to_be_learnt_from() -> None:
    stores = DraftStores()
    made = drafter(stores, learn=False)
    assert ask(made, begin(made), [1, 2, 3, 4, 5, 1, 2])[:2] == [3, 4]
    assert ask(made, begin(made), [9, 1, 2]) == []
    assert not list(stores.spaces())


def test_presets_are_the_published_defaults() -> None:
    options = drafter(preset="paper")._options.model_dump()
    want = {"window": 16, "step": 0.04, "cap": 3.0, "iterations": 150, "depth": 4}
    want |= {"prefixes": 24, "explore": 32, "base": 8, "max_draft": 64}
    assert {name: options[name] for name in want} == want
    assert (options["search"], MAX_SUCCESSORS) == ("monte-carlo", 12)


@pytest.mark.parametrize("options", [{}, {"preset": "paper", "iterations": 20}])
def test_text_is_the_one_without_drafts(options: dict[str, Any]) -> None:
    sampling = SamplingParams(temperature=0.3, seed=3)
    asked = [request(f"r{i}", [1, 2, 3, 1, 2, i], 20, sampling=sampling) for i in range(3)]
    engine = speculating(DrafterContext(6))
    plain = texts(engine, drafted_by(asked, "off"))
    for _ in range(2):  # the second time, the store has the first answers
        always = {"name": "aded", "always": True, **options}
        assert texts(engine, drafted_by(asked, always)) == plain
    assert engine.stats().counters.speculation.accepted_tokens["aded"] > 0
