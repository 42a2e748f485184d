"""Verification rules from the literature, by exact enumeration: which keep the law, which don't.

Small functions of our own, on the Markov table of tests/fixtures/enumeration.py with the draft law
below and texts of three tokens. The rules that are not exact are why the host has one verifier for
all drafters. By how much they miss depends on the tables, so the numbers are those of this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import exp, log

import pytest

from tests.fixtures.enumeration import PROMPT, Choices, Law, distance, law_of, outcomes, target

Text = list[int]
Step = Callable[[Choices, Text], Text]  # what a decoder adds to a text in one step
LENGTH = 3
GUESS = {0: (1, 2, 1), 1: (2, 1, 1), 2: (1, 1, 2)}  # weights of the draft's token after another


def draft(text: Sequence[int]) -> Law:
    return tuple(Fraction(weight, 4) for weight in GUESS[text[-1]])


def ranked(text: Sequence[int]) -> list[int]:
    return sorted(range(3), key=lambda token: -draft(text)[token])


def chain(text: Text, length: int, rank: int = 0) -> Text:
    """The draft's best tokens, the first of them of some rank."""
    found: Text = []
    for i in range(length):
        found.append(ranked([*text, *found])[0 if i else rank])
    return found


def normal(weights: Sequence[Fraction]) -> Law:
    return tuple(weight / sum(weights) for weight in weights)


def residual(p: Law, q: Law) -> Law:
    return normal([max(a - b, Fraction()) for a, b in zip(p, q, strict=True)])


def without(p: Law, token: int) -> Law:
    return normal([Fraction() if i == token else mass for i, mass in enumerate(p)])


class Coin:
    """A number in [0, 1) of which no more is chosen than the questions about it need."""

    def __init__(self, choices: Choices) -> None:
        self._choices, self._low, self._high = choices, Fraction(0), Fraction(1)

    def is_below(self, bound: Fraction) -> bool:
        if bound <= self._low or bound >= self._high:
            return bound > self._low
        is_low = self._choices.coin((bound - self._low) / (self._high - self._low))
        if is_low:
            self._high = bound
        else:
            self._low = bound
        return is_low


def ratio_test(choices: Choices, text: Text) -> Text:
    """Leviathan et al., Chen et al.: two tokens really drawn from the draft's law."""
    found: Text = []
    for _ in range(2):
        p, q = target([*text, *found]), draft([*text, *found])
        token = choices.pick(q)
        if not choices.coin(min(p[token] / q[token], Fraction(1))):
            return [*found, choices.pick(residual(p, q))]
        found.append(token)
    return [*found, choices.pick(target([*text, *found]))]


def one_hot(choices: Choices, text: Text, *, sample: bool) -> Text:
    """The ratio test with the draft's law taken to be all on its token, sampled or not."""
    found: Text = []
    for _ in range(2):
        p = target([*text, *found])
        token = choices.pick(draft([*text, *found])) if sample else chain([*text, *found], 1)[0]
        if not choices.coin(p[token]):
            return [*found, choices.pick(without(p, token))]
        found.append(token)
    return [*found, choices.pick(target([*text, *found]))]


def siblings(choices: Choices, text: Text) -> Text:
    """EAGLE-2's rule: siblings are tried in turn, each failure takes its token out of the law."""
    found: Text = []
    for _ in range(2):
        p = target([*text, *found])
        for token in ranked([*text, *found])[:2]:
            if choices.coin(p[token]):
                found.append(token)
                break
            p = without(p, token)
        else:
            return [*found, choices.pick(p)]
    return [*found, choices.pick(target([*text, *found]))]


def longest_match(choices: Choices, text: Text, *, paths: int) -> Text:
    """REST, ADED, Medusa's nucleus mode: every path and position draws for itself, the longest
    match stays, and the draw that did not match is thrown away for a new one."""
    best: Text = []
    for rank in range(paths):
        matched: Text = []
        for token in chain(text, 2, rank):
            if choices.pick(target([*text, *matched])) != token:
                break
            matched.append(token)
        best = max(best, matched, key=len)
    return [*best, choices.pick(target([*text, *best]))]


def typical(choices: Choices, text: Text) -> Text:
    """Medusa's typical acceptance, with its published thresholds."""
    found: Text = []
    for token in chain(text, 2):
        p = [float(mass) for mass in target([*text, *found])]
        entropy = -sum(mass * log(mass) for mass in p if mass)
        if p[token] <= min(0.09, 0.3 * exp(-entropy)):
            break
        found.append(token)
    return [*found, choices.pick(target([*text, *found]))]


def pearl(choices: Choices, *, reuse: bool) -> tuple[int, ...]:
    """PEARL with a window of two. reuse: the coin of a token that was verified ahead is tossed a
    second time for the token behind it, as in the reference code, which seeds by position."""
    text, pending, carried = list(PROMPT), list[int](), list[Coin]()
    while len(text) < len(PROMPT) + LENGTH:
        ahead = list(pending)
        for _ in range(2):
            ahead.append(choices.pick(draft([*text, *ahead])))
        coins = [*carried, *(Coin(choices) for _ in ahead)]
        carried = []
        for coin, token in zip(coins, ahead[:-1], strict=False):
            p, q = target(text), draft(text)
            if not coin.is_below(p[token] / q[token]):
                text.append(choices.pick(residual(p, q)))
                pending = []
                break
            text.append(token)
        else:
            carried = coins[:1] if reuse and not pending else []
            pending = ahead[-1:]
    return tuple(text[len(PROMPT) :][:LENGTH])


def texts(step: Step, length: int = LENGTH) -> dict[tuple[int, ...], Fraction]:
    def run(choices: Choices) -> tuple[int, ...]:
        text = list(PROMPT)
        while len(text) < len(PROMPT) + length:
            text += step(choices, text)
        return tuple(text[len(PROMPT) :][:length])

    return outcomes(run)


WANT = law_of(target, PROMPT, LENGTH)
EXACT: dict[str, Step] = {
    "ratio test": ratio_test,
    "one-hot, draft sampled": lambda choices, text: one_hot(choices, text, sample=True),
    "one-hot, draft not sampled": lambda choices, text: one_hot(choices, text, sample=False),
    "siblings in turn": siblings,
}


@pytest.mark.parametrize("rule", list(EXACT))
def test_rules_that_keep_the_law(rule: str) -> None:
    assert texts(EXACT[rule]) == WANT


def test_pearl_keeps_the_law_with_a_coin_for_every_token() -> None:
    assert outcomes(lambda choices: pearl(choices, reuse=False)) == WANT


def test_pearl_does_not_with_a_coin_that_is_tossed_twice() -> None:
    gap = distance(outcomes(lambda choices: pearl(choices, reuse=True)), WANT)
    assert float(gap) == pytest.approx(0.1516, abs=5e-4)


@pytest.mark.parametrize(("paths", "want"), [(1, 0.2569), (2, 0.2751)])
def test_a_mismatch_must_not_be_drawn_again(paths: int, want: float) -> None:
    have = texts(lambda choices, text: longest_match(choices, text, paths=paths))
    assert float(distance(have, WANT)) == pytest.approx(want, abs=5e-4)


def test_how_a_second_draw_favours_the_draft() -> None:
    """One path, first token: the mass p of the draft's token becomes p (2 - p)."""
    have = texts(lambda choices, text: longest_match(choices, text, paths=1), length=1)
    p, (drafted,) = target(PROMPT), chain(list(PROMPT), 1)
    for (token,), mass in have.items():
        assert mass == p[token] * (2 - p[drafted] if token == drafted else 1 - p[drafted])


def test_typical_acceptance_is_another_law() -> None:
    assert float(distance(texts(typical), WANT)) == pytest.approx(0.9722, abs=5e-4)
