"""mcmc by enumeration: whole transition matrices in fractions, for every way to cut."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest

from plait.decoders.contract.search import SearchRequest
from plait.decoders.search.faithful.chains import Cut
from plait.decoders.search.faithful.mcmc import Chain, Mcmc, McmcOptions, McmcState
from tests.fixtures.enumeration import Choices, distance, outcomes
from tests.fixtures.law_driver import A, B, Law, LawDriver, Text, conditional, random_law, trap
from tests.fixtures.law_model import TRAP_WORDS
from tests.fixtures.word_constraint import END

CUTS: list[Cut] = ["restart", "uniform", "priority"]


class Watched(Mcmc):
    """Remembers the texts that its chain has been at."""

    def __init__(self, options: McmcOptions) -> None:
        super().__init__(options)
        self.states: list[Text] = []

    def _judge(self, state: McmcState, chain: Chain) -> list[int]:
        dropped = super()._judge(state, chain)
        assert chain.current is not None
        tokens = [t for t in chain.current.tokens if t is not None and t != END]
        self.states.append(tuple(tokens))
        return dropped


def chain(law: Law, words: Sequence[Text], cut: Cut, num_steps: int) -> dict[Any, Fraction]:
    """Return the law of the texts that a chain is at: its first draw, and after each step."""

    def sample(choices: Choices) -> Any:
        search = Watched(McmcOptions(cut=cut, num_steps=num_steps, num_parallel=1))
        request = SearchRequest(1, 5, 0, is_constrained=True)
        ((text, _),) = LawDriver(search, law, words, request, choices).run()
        assert search.states[-1] == text
        return tuple(search.states)

    return outcomes(sample)


def at(found: dict[Any, Fraction], step: int) -> dict[Text, Fraction]:
    law: dict[Text, Fraction] = {}
    for states, mass in found.items():
        law[states[step]] = law.get(states[step], Fraction()) + mass
    return law


def kernel(law: Law, words: Sequence[Text], cut: Cut) -> dict[Text, dict[Text, Fraction]]:
    """Return the transition matrix."""
    found = chain(law, words, cut, 1)
    start, rows = at(found, 0), dict[Text, dict[Text, Fraction]]()
    for (before, after), mass in found.items():
        row = rows.setdefault(before, {})
        row[after] = row.get(after, Fraction()) + mass / start[before]
    return rows


def test_the_restart_kernel_of_the_trap() -> None:
    """Fixture F1: a->a 9/10, a->b 1/10, b->a 1/100, b->b 99/100."""
    have = kernel(trap, TRAP_WORDS, "restart")
    assert have == {
        A: {A: Fraction(9, 10), B: Fraction(1, 10)},
        B: {A: Fraction(1, 100), B: Fraction(99, 100)},
    }
    assert float(at(chain(trap, TRAP_WORDS, "restart", 3), 3)[A]) == pytest.approx(0.6612931)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("seed", [None, *range(6)])
def test_the_conditional_law_is_stationary(seed: int | None, cut: Cut) -> None:
    """pi K == pi, and detailed balance, in fractions."""
    law, words = (trap, TRAP_WORDS) if seed is None else random_law(seed)
    want, rows = conditional(law, words), kernel(law, words, cut)
    after: dict[Text, Fraction] = {}
    for text, mass in want.items():
        for end, chance in rows[text].items():
            after[end] = after.get(end, Fraction()) + mass * chance
            back = rows.get(end, {}).get(text, Fraction())
            assert float(mass * chance) == pytest.approx(float(want[end] * back), abs=1e-6)
    assert float(distance(after, want)) == pytest.approx(0.0, abs=1e-6)
    assert len(rows) > 1


@pytest.mark.parametrize("cut", CUTS)
def test_each_step_comes_nearer(cut: Cut) -> None:
    law, words = random_law(2)
    want, found = conditional(law, words), chain(law, words, cut, 2)
    gaps = [float(distance(at(found, step), want)) for step in range(3)]
    assert gaps[0] > gaps[1] + 1e-3
    assert gaps[1] > gaps[2]


def test_proposals_that_run_beside_each_other_are_the_same_chain() -> None:
    """restart: the order in which texts end decides nothing."""
    law, words = random_law(3)

    def sample(num_parallel: int) -> dict[Text, Fraction]:
        def run(choices: Choices) -> Text:
            options = McmcOptions(num_steps=1, num_parallel=num_parallel)
            request = SearchRequest(1, 5, 0, is_constrained=True)
            ((text, _),) = LawDriver(Mcmc(options), law, words, request, choices).run()
            return text

        return outcomes(run)

    assert sample(4) == sample(1)
