"""The estimators of awrs by enumeration of every order of draws, in fractions (fixture F4)."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain, combinations
from math import ceil, log, sqrt

import pytest

from plait.decoders.sampling.estimators import (
    CheckedRow,
    Weighed,
    des_raj,
    geometric,
    recursive,
    two_loop,
)
from tests.fixtures.enumeration import Choices, outcomes

Law = tuple[Fraction, ...]
Estimate = Callable[[CheckedRow, Callable[[int], bool]], Weighed]
ESTIMATES: dict[str, Estimate] = {
    "recursive": recursive,
    "two-loop": two_loop,
    **{f"des-raj {k}": partial(des_raj, extra_checks=k) for k in (1, 2, 3, 6)},
}
LAWS: list[Law] = [
    tuple(Fraction(w, sum(weights)) for w in weights)
    for weights in ([6, 1, 3], [5, 3, 2], [4, 1, 1, 2], [1, 1, 1, 1, 1], [18, 1, 1])
]


@dataclass
class Enumerated:
    """A row whose draws without replacement are choices."""

    law: Law
    choices: Choices
    one: Fraction = Fraction(1)

    def order(self) -> Iterator[int]:
        return self.fresh_order(0, ())

    def fresh_order(self, loop: int, excluded: Sequence[int]) -> Iterator[int]:
        left = [0 if token in excluded else mass for token, mass in enumerate(self.law)]
        while any(left):
            total = sum(left, Fraction(0))
            token = self.choices.pick([Fraction(mass) / total for mass in left])
            left[token] = 0
            yield token

    def prob(self, token: int) -> Fraction:
        return self.law[token]

    def num_draws(self, rejected: Fraction) -> int:
        raise AssertionError("this estimator draws with replacement")


def subsets(size: int) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(range(size), count) for count in range(size + 1))


def expectation(law: Law, legal: Collection[int], estimate: Estimate) -> list[Fraction]:
    """Return E[w 1[x = v]] for each token v."""

    def run(choices: Choices) -> tuple[int | None, Fraction]:
        found = estimate(Enumerated(law, choices), lambda token: token in legal)
        assert found.token is None or found.token in legal
        assert not set(found.taken_back) & set(legal)
        return found.token, Fraction(found.weight)

    means = [Fraction(0)] * len(law)
    for (token, weight), mass in outcomes(run).items():
        if token is not None:
            means[token] += mass * weight
    return means


@pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES.keys())
@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{len(law)} tokens")
def test_draws_are_properly_weighted(law: Law, estimate: Estimate) -> None:
    """E[w 1[x = v]] == p(v) 1[v passes], for every set of tokens that pass."""
    for legal in subsets(len(law)):
        want = [mass * (token in legal) for token, mass in enumerate(law)]
        assert expectation(law, legal, estimate) == want


def test_the_fixture_of_the_paper() -> None:
    """F4: p = (.6, .1, .3), the first two pass; p = (1/2, 3/10, 1/5), the first passes."""
    for estimate in ESTIMATES.values():
        assert expectation(LAWS[0], {0, 1}, estimate) == [Fraction(6, 10), Fraction(1, 10), 0]
        assert expectation(LAWS[1], {0}, estimate) == [Fraction(1, 2), 0, 0]


@pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES.keys())
def test_a_mask_and_a_check_multiply(estimate: Estimate) -> None:
    """Draws of the masked law, weighed by the mask's mass: E == p(v) 1[v is in both]."""
    law, mask, legal = LAWS[2], (0, 1, 3), {1, 2, 3}
    mass = sum((law[token] for token in mask), Fraction(0))
    masked = tuple(p / mass * (token in mask) for token, p in enumerate(law))
    have = [mass * each for each in expectation(masked, legal, estimate)]
    assert have == [0, law[1], 0, law[3]]


def variance(law: Law, legal: Collection[int], estimate: Estimate) -> float:
    def run(choices: Choices) -> Fraction:
        row = Enumerated(law, choices)
        return Fraction(estimate(row, lambda token: token in legal).weight)

    found = outcomes(run)
    mean = sum(weight * mass for weight, mass in found.items())
    return float(sum((weight - mean) ** 2 * mass for weight, mass in found.items()))


def test_each_extra_check_makes_the_weight_steadier() -> None:
    """Flat law of 5 tokens, 2 of which pass: .0823, .08, .028, .0144."""
    names = ["two-loop", "des-raj 1", "des-raj 2", "des-raj 3"]
    have = [variance(LAWS[3], {0, 1}, ESTIMATES[name]) for name in names]
    assert have == pytest.approx([0.0823, 0.0800, 0.0280, 0.0144], abs=1e-4)


def test_the_weight_is_exact_where_one_token_passes() -> None:
    assert variance(LAWS[1], {0}, recursive) == 0


@dataclass
class Random:
    """A row of floats with real randomness."""

    law: Sequence[float]
    rng: random.Random
    one: float = 1.0

    def order(self) -> Iterator[int]:
        return self.fresh_order(0, ())

    def fresh_order(self, loop: int, excluded: Sequence[int]) -> Iterator[int]:
        left = [0.0 if token in excluded else mass for token, mass in enumerate(self.law)]
        while sum(left) > 0:
            (token,) = self.rng.choices(range(len(left)), left)
            left[token] = 0.0
            yield token

    def prob(self, token: int) -> float:
        return self.law[token]

    def num_draws(self, rejected: float) -> int:
        return max(ceil(log(1.0 - self.rng.random()) / log(rejected)), 1)


@pytest.mark.parametrize("max_accepts", [2, 4])
@pytest.mark.parametrize("legal", [{0}, {1}, {1, 2}, {0, 1, 2, 3}, set()])
def test_the_geometric_estimate_is_unbiased(legal: set[int], max_accepts: int) -> None:
    """By 10,000 draws: 4 standard errors of each token's mean weight."""
    law, runs, rng = [0.7, 0.1, 0.15, 0.05], 10_000, random.Random(5)
    row = Random(law, rng)
    found = [geometric(row, lambda token: token in legal, max_accepts) for _ in range(runs)]
    for token, mass in enumerate(law):
        values = [float(each.weight) * (each.token == token) for each in found]
        mean = sum(values) / runs
        error = sqrt(sum((value - mean) ** 2 for value in values)) / runs
        assert abs(mean - mass * (token in legal)) <= 4 * error + 1e-12
    assert all(each.token in legal for each in found) or not legal
