"""a-star over known trees: it expands what a textbook's A* expands, and keeps its budgets."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from plait.decoders.contract.registry import MethodError, choose
from plait.decoders.contract.search import MemberOutcome, Ranked, SearchRequest
from plait.decoders.search.lookahead.a_star import AStar, AStarOptions, AStarState
from tests.fixtures.search_driver import Found, SearchDriver

VOCAB = 5
STOP = 0
Text = tuple[int, ...]


def law(output: Text) -> list[float]:
    """Any token; the stop token (0) most often after eight."""
    stop = 20.0 if len(output) > 7 else 0.02 * len(output)
    odds = [stop, 1.0, 1.0, 1.0, 1.0]
    return [math.log(odd / sum(odds)) if odd else -50.0 for odd in odds]


def worth(tokens: Text, is_complete: bool) -> float:
    """A number from 0 to 1 that has nothing to do with anything; equals are common."""
    return random.Random(str((tokens, is_complete))).randrange(11) / 10


class Watched(AStar):
    """Notes each expanded text with its children, in the order in which they were made."""

    def __init__(self, options: AStarOptions) -> None:
        super().__init__(options)
        self.texts: dict[int, Text] = {0: ()}  # of each member, behind its last step
        self.expanded: list[Text] = []
        self.children: dict[Text, list[tuple[Text, bool]]] = defaultdict(list)
        self.state: AStarState | None = None

    def step(self, state: AStarState, outcomes: Sequence[MemberOutcome]) -> Any:
        self.state, before = state, state.num_expansions
        asked = [c for c in state.children if state.are_asked]
        parent = self.texts[state.parent.member]
        actions = super().step(state, outcomes)
        if (asked and not state.children) or (before < state.num_expansions and before):
            for child in asked:
                text = (*parent, *child.tokens)
                self.children[parent].append((text, child.finish is not None))
                self.texts[child.member] = text
        if before < state.num_expansions:
            self.expanded.append(self.texts[state.parent.member])
        return actions


def textbook(
    children: dict[Text, list[tuple[Text, bool]]], cost: str
) -> tuple[list[Text], Text | None]:
    """Return the order in which A* expands a known tree, and the first goal that it pops.

    A list that is searched whole for its best entry; texts are compared by f, depth and age.
    """
    entries: list[tuple[Text, bool, float, float, int, int]]
    entries = [((), False, 0.0, 1 - worth((), False), 0, 0)]
    order: list[Text] = []
    ages = count(1)
    while entries:
        best = min(entries, key=lambda e: (e[2] + e[3], -e[4], e[5]))
        entries.remove(best)
        text, is_goal, g, h, depth, _ = best
        if is_goal:
            return order, text
        order.append(text)
        for child, ends in children[text]:
            h_child = 1 - worth(child, ends)
            paid = h_child - h if cost == "increase" else h - h_child
            entries.append((child, ends, g + max(0.0, paid), h_child, depth + 1, next(ages)))
    return order, None


def run(seed: int, n: int = 1, max_tokens: int = 12, **options: Any) -> tuple[Watched, list[Found]]:
    search = Watched(AStarOptions(**{"max_step_tokens": 2, "delimiters": ["d"], **options}))
    driver = SearchDriver(
        search, law, frozenset({STOP}), SearchRequest(n, max_tokens, seed), random.Random(seed)
    )
    driver.worth = worth
    return search, driver.run()


@pytest.mark.parametrize("cost", ["increase", "decrease"])
@pytest.mark.parametrize("width", [2, 4])
def test_the_order_is_a_textbooks(width: int, cost: str) -> None:
    num_expanded = 0
    for seed in range(30):
        search, (found,) = run(seed, num_continuations=width, cost=cost, max_expansions=200)
        order, goal = textbook(search.children, cost)
        assert search.expanded == order
        assert found.tokens == goal
        assert found.finish in ("stop", "length")
        num_expanded += len(order)
    assert num_expanded > 100


def test_equals_are_expanded_deeper_first_then_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.test_search_a_star.worth", lambda tokens, is_complete: 0.5)
    search, _ = run(3, num_continuations=3)
    depths = [len(text) for text in search.expanded]
    assert depths == sorted(depths)
    for before, text in zip(search.expanded, search.expanded[1:], strict=False):
        assert text == next(child for child, ends in search.children[before] if not ends)


def test_equal_children_are_one() -> None:
    """Two letters for four children: no text is scored twice."""
    for seed in range(10):
        search, _ = run(seed, num_continuations=8, max_step_tokens=1)
        for found in search.children.values():
            assert len(found) == len(set(found))


def test_a_step_ends_behind_a_delimiter_or_at_the_cap() -> None:
    search, _ = run(1, num_continuations=4, max_step_tokens=3)
    for parent, found in search.children.items():
        for text, ends in found:
            step = text[len(parent) :]
            assert 3 not in step[:-1]  # the token that is spelled "d"
            assert ends or len(step) == 3 or step[-1] == 3


@pytest.mark.parametrize("n", [1, 3])
def test_the_first_goals_are_the_answers(n: int) -> None:
    for seed in range(10):
        search, found = run(seed, n, num_continuations=4, max_expansions=400)
        assert search.state is not None
        assert [each.score for each in found] == [-node.f for node in search.state.goals]
        assert len({each.tokens for each in found}) == n


@pytest.mark.parametrize(
    ("options", "budget"),
    [({"max_expansions": 3}, "expansions"), ({"max_scores": 9}, "scores")],
)
def test_a_budget_ends_the_search_with_a_whole_text(options: dict[str, int], budget: str) -> None:
    """The best complete text if there is one, else the best open one, sampled to its end."""
    kinds = set()
    for seed in range(40):
        search, (found,) = run(seed, num_continuations=4, max_tokens=9, **options)
        assert search.state is not None
        report = search.report(search.state)
        assert found.finish is not None
        if "budget" not in report:
            continue
        assert report["budget"] == budget
        kinds.add(any(node.is_complete for _, node in search.state.open))
        assert report["expansions"] <= 3
    assert kinds == {True, False}


def test_what_is_cut_off_returns_the_best_by_then() -> None:
    """As a budget of tokens or time, or a deadline, does: complete texts first."""
    search, _ = run(2, num_continuations=4, max_expansions=2)
    state = search.state
    assert state is not None
    members = [node.member for _, node in state.open]
    ranked: Sequence[Ranked] = search.rank(state, members)
    assert ranked[0].member in members


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_continuations": 32, "max_expansions": 1024}, "may be at most 2048"),
        ({"cost": "constant"}, "increase"),
        ({"delimiters": [""]}, "at least 1"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MethodError, match=complaint):
        choose({"search": {"name": "a-star", **options}}, "search")
