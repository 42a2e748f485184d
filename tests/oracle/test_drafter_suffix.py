"""The suffix index against counting by hand, and the drafter against a trie of all runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest
from plait.decoders.contract.registry import compose
from plait.decoders.contract.text import Text
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.drafters import suffix
from plait.decoders.speculative.drafters.suffix import SuffixDrafter, SuffixOptions, SuffixState
from plait.decoders.speculative.stores.namespaces import DraftStores
from plait.decoders.speculative.stores.suffixes import (
    NONE,
    ROOT,
    SuffixAutomaton,
    SuffixIndex,
)
from tests.fixtures.drafting import drafted_by, speculating, texts
from tests.fixtures.engines import request

Run = tuple[int, ...]
TEXT = st.lists(st.integers(0, 2), min_size=1, max_size=40)
TEXTS = st.lists(TEXT, min_size=1, max_size=4)


class Trie:
    """All runs of at most `depth` tokens, with how often they occur, and when last."""

    def __init__(self, texts: Sequence[Sequence[int]], depth: int) -> None:
        self.count: Counter[Run] = Counter()
        self.latest: dict[Run, int] = {}
        time = 0
        for text in texts:
            for stop in range(1, len(text) + 1):
                time += 1
                for start in range(max(stop - depth, 0), stop):
                    run = tuple(text[start:stop])
                    self.count[run] += 1
                    self.latest[run] = time

    def children(self, run: Run) -> list[int]:
        """Return what follows a run: the most frequent first, then the latest."""
        found = [each for each in self.count if len(each) == len(run) + 1 and each[:-1] == run]
        found.sort(key=lambda each: (-self.count[each], -self.latest[each]))
        return [each[-1] for each in found]


def automaton_of(texts: Sequence[Sequence[int]], depth: int) -> SuffixAutomaton:
    made = SuffixAutomaton(depth)
    for text in texts:
        made.begin()
        made.extend(text)
    return made


def state_of(automaton: SuffixAutomaton, run: Sequence[int]) -> int:
    state = ROOT
    for token in run:
        state = automaton.next[state][token]
    return state


@given(TEXTS, st.integers(1, 7))
@example([[0] * 40], 3)
@example([[0, 1] * 20, [1, 0] * 9], 4)
def test_counts_and_best_tokens_are_those_of_a_trie(texts: list[list[int]], depth: int) -> None:
    automaton, trie = automaton_of(texts, depth), Trie(texts, depth)
    for run, want in trie.count.items():
        state = state_of(automaton, run)
        assert automaton.count[state] == want, run
        if len(run) < depth:
            children = trie.children(run)
            assert automaton.best[state] == (children[0] if children else NONE), run
            assert set(automaton.next[state]) == set(children)
    assert len(automaton.length) <= 2 * sum(map(len, texts)) + 1


@given(TEXTS, TEXT, st.integers(1, 7))
def test_following_finds_the_longest_ending(
    texts: list[list[int]], text: list[int], depth: int
) -> None:
    automaton, trie = automaton_of(texts, depth), Trie(texts, depth)
    state, have = ROOT, 0
    for stop, token in enumerate(text, 1):
        state, have = automaton.follow(state, have, token)
        lengths = range(1, min(stop, depth) + 1)
        want = max((m for m in lengths if tuple(text[stop - m : stop]) in trie.count), default=0)
        assert have == want
        assert state == state_of(automaton, text[stop - have : stop])


def drafter(stores: DraftStores | None = None, **options: Any) -> SuffixDrafter:
    choice = compose({"drafter": {"name": "suffix", **options}}, "drafter")[0]
    context = DrafterContext(100, stores=stores or DraftStores())
    made: SuffixDrafter = choice.method.make(choice.options, context=context)
    return made


def begin(made: SuffixDrafter, namespace: str = "") -> SuffixState:
    return made.start(
        DecodeRequest(Text([]), SamplingParams(), 1, frozenset(), None, namespace=namespace)
    )


def drafts(
    made: SuffixDrafter, text: Sequence[int], draft_prefix: Sequence[int] = (), max_tokens: int = 64
) -> Draft:
    """Return the draft behind a text that grew token by token, and was asked about throughout."""
    state = begin(made)
    for stop in range(1, len(text)):
        made.propose([DraftRequest(state, text[:stop], [], max_tokens, None)])
    return made.propose([DraftRequest(state, text, draft_prefix, max_tokens, None)])[0]


def greedy(trie: Trie, run: Run, room: int, cut: float) -> tuple[list[int], float]:
    tokens, score, product = list[int](), 0.0, 1.0
    while len(tokens) < room and (children := trie.children(run)):
        product *= trie.count[*run, children[0]] / trie.count[run]
        if product < cut:
            break
        tokens.append(children[0])
        score += product
        run = (*run, children[0])
    return tokens, score


def published(
    options: SuffixOptions, tries: Sequence[Trie], text: Sequence[int], max_tokens: int
) -> tuple[list[int], float]:
    """Return what the paper's loop over endings finds: local first, then global."""
    best: tuple[list[int], float] = [], 0.0
    for trie in tries:
        found: tuple[list[int], float] = [], 0.0
        for matched in range(1, min(options.depth, len(text)) + 1):
            run = tuple(text[-matched:])
            if run not in trie.count:
                break
            room = min(max_tokens, int(options.factor * matched + options.offset))
            each = greedy(trie, run, min(room, options.depth - matched), options.cut)
            found = each if each[1] >= found[1] else found
        best = found if found[1] > best[1] else best
    return best


OPTIONS = st.fixed_dictionaries(
    {
        "depth": st.integers(2, 12),
        "factor": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "offset": st.sampled_from([-1.0, 0.0, 3.0]),
        "cut": st.sampled_from([0.0, 0.1, 0.4]),
    }
)


@given(TEXTS, TEXT, st.lists(st.integers(0, 2), max_size=3), OPTIONS, st.integers(1, 9))
def test_drafts_are_those_of_the_published_search(
    earlier: list[list[int]],
    text: list[int],
    draft_prefix: list[int],
    settings: dict[str, Any],
    max_tokens: int,
) -> None:
    stores = DraftStores()
    kept = [each for each in earlier if stores.add("", each)]
    options = SuffixOptions.model_validate(settings)
    tries = [Trie([text], options.depth), Trie(kept, options.depth)]
    have = drafts(drafter(stores, **settings), text, draft_prefix, max_tokens)
    want, _ = published(options, tries, [*text, *draft_prefix], max_tokens)
    assert list(have.token_ids) == want
    assert all(0 < acceptance_prob < 1 for acceptance_prob in have.acceptance_probs)


def test_a_namespace_is_followed_where_the_text_has_nothing() -> None:
    stores = DraftStores()
    stores.add("", [1, 2, 3, 4, 5, 6, 7, 8])
    made = drafter(stores)
    assert list(drafts(made, [9, 9, 2, 3, 4]).token_ids) == [5, 6, 7]  # as many as have matched
    assert list(drafts(made, [9, 9, 2], [3, 4]).token_ids) == [5, 6, 7]
    elsewhere = begin(made, "other")
    assert not made.propose([DraftRequest(elsewhere, [2, 3, 4], [], 8, None)])[0].token_ids


def test_probabilities_leave_the_end_of_the_text_out() -> None:
    """Of two places one has no next token yet: that halves the score, not the probability."""
    draft = drafts(drafter(), [1, 2, 3, 4, 1, 2, 3])
    assert list(draft.token_ids) == [4, 1, 2]
    assert draft.acceptance_probs == [3 / 4, 4 / 5, 5 / 6]


def test_sequences_of_a_request_share_the_prompt_and_nothing_else() -> None:
    made, prompt = drafter(), [1, 2, 3, 4, 1, 2]
    asked = DecodeRequest(Text(prompt), SamplingParams(), 1, frozenset(), None)
    states = [made.start(asked) for _ in range(4)]
    made.finish(states.pop(), prompt)
    for i, state in enumerate(states):  # the first one has copied when the second goes on
        text = [*prompt, 20 + i, 8, 20 + i]
        assert list(made.propose([DraftRequest(state, prompt, [], 1, None)])[0].token_ids) == [3]
        assert list(made.propose([DraftRequest(state, text, [], 1, None)])[0].token_ids) == [8]
        assert list(made.propose([DraftRequest(state, [*text, 8], [], 1, None)])[0].token_ids) == [
            20 + i
        ]
    assert made._prompt_cache._latest is None


def test_what_is_learnt_meanwhile_is_found() -> None:
    stores = DraftStores()
    made = drafter(stores)
    state = begin(made)
    for number in range(1, 5):
        text = [9, 8, 7, 6][:number]
        assert not made.propose([DraftRequest(state, text, [], 8, None)])[0].token_ids
    stores.add("", [8, 7, 6, 5, 4])
    assert list(made.propose([DraftRequest(state, text, [], 8, None)])[0].token_ids) == [5, 4]
    stores.clear("")
    assert not made.propose([DraftRequest(state, text, [], 8, None)])[0].token_ids


def products(trie: Trie, run: Run, cut: float, depth: int) -> list[tuple[float, Run]]:
    """Return every path behind a run whose product is above the cut."""
    found: list[tuple[float, Run]] = []
    level: list[tuple[float, Run]] = [(1.0, ())]
    while level:
        level = [
            (product * trie.count[(*run, *path, token)] / trie.count[(*run, *path)], (*path, token))
            for product, path in level
            if len(run) + len(path) < depth
            for token in trie.children((*run, *path))
        ]
        level = [each for each in level if each[0] >= cut]
        found += level
    return found


@given(TEXT, TEXT, st.integers(1, 12))
def test_trees_hold_the_largest_products(
    earlier: list[int], text: list[int], max_tokens: int
) -> None:
    """Whatever ending a tree follows, no token outside of it has a larger product."""
    stores = DraftStores()
    kept = [earlier] * bool(stores.add("", earlier))
    cut, offset = 0.2, 3.0
    have = drafts(drafter(stores, tree=True, cut=cut, offset=offset), text, [], max_tokens)
    tries, scores = [Trie([text], 64), Trie(kept, 64)], [0.0]
    for trie in tries:
        for matched in range(1, len(text) + 1):
            run = tuple(text[-matched:])
            if run in trie.count:
                best = sorted((p for p, _ in products(trie, run, cut, 64)), reverse=True)
                scores.append(sum(best[: min(max_tokens, int(matched + offset))]))
    paths: list[Run] = []
    for token, parent in zip(have.token_ids, have.parents or (), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    assert len(set(paths)) == len(paths)
    sums = [
        sum(found[path] for path in paths)
        for trie in tries
        for matched in range(1, len(text) + 1)
        if (found := {p: x for x, p in products(trie, tuple(text[-matched:]), cut, 64)}).keys()
        >= set(paths)
    ]
    assert max(sums, default=0.0) == pytest.approx(max(scores))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    generations = SuffixIndex(8, 100)
    for start in range(0, 3_000, 30):
        generations.read(range(start, start + 30), is_imported=False)
        assert sum(each.num_tokens for each in generations.automata) <= 100
        assert len(generations.automata) <= 2
    assert state_of(generations.automata[0], [2_998, 2_999])
    monkeypatch.setattr(suffix, "WINDOW", 50)
    made, text = drafter(), list[int]()
    state = begin(made)
    for token in range(500):
        text.append(token)
        made.propose([DraftRequest(state, text, [], 8, None)])
        assert state.automaton.num_tokens <= 100
    text += text[-20:-10]
    assert list(made.propose([DraftRequest(state, text, [], 3, None)])[0].token_ids) == [
        490,
        491,
        492,
    ]


def test_presets_are_the_published_defaults() -> None:
    want = {"depth": 24, "max_draft": 24, "factor": 1, "offset": 0, "cut": 0.1, "tree": False}
    have = drafter(preset="vllm")._options.model_dump()
    assert {name: have[name] for name in want} == want


@pytest.mark.parametrize("options", [{}, {"tree": True, "offset": 4.0}])
def test_text_is_the_one_without_drafts(options: dict[str, Any]) -> None:
    sampling = SamplingParams(temperature=0.3, seed=3)
    asked = [request(f"r{i}", [1, 2, 3, 1, 2, i], 30, sampling=sampling) for i in range(4)]
    engine = speculating(DrafterContext(6))
    plain = texts(engine, drafted_by(asked, "off"))
    for _ in range(2):  # the second time, the first answers are in the namespace
        always = {"name": "suffix", "always": True, **options}
        assert texts(engine, drafted_by(asked, always)) == plain
