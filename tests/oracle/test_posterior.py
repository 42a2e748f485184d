"""The posterior of a block under a finite automaton, against enumeration of all texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from plait.decoders.contract.constraint import TokenDfa
from plait.decoders.diffusion.constraints.posterior import (
    BEHIND_END,
    Posterior,
    transitions_of,
)

A, B, EOS = 0, 1, 2
Text = tuple[int, ...]
Law = Mapping[Text, Fraction]


def automaton(moves: Mapping[tuple[int, int], int], accepting: Sequence[bool]) -> TokenDfa:
    """Return an automaton, with the lengths of its shortest completions."""
    closing = [0 if each else 99 for each in accepting]
    for _ in accepting:
        for (source, _), target in moves.items():
            closing[source] = min(closing[source], closing[target] + 1)
    rows = sorted((source, target, token) for (source, token), target in moves.items())
    columns = np.array(rows, np.int64).T
    return TokenDfa(
        columns[0].copy(),
        columns[2].copy(),
        columns[1].copy(),
        np.array(accepting),
        np.array(closing, np.int64),
        frozenset({EOS}),
    )


def posterior(
    dfa: TokenDfa, rows: Sequence[int], left: int, p: Sequence[Sequence[Fraction]]
) -> Posterior:
    with np.errstate(divide="ignore"):
        scores = np.log(np.array([[float(x) for x in own] for own in p]))
    return Posterior(transitions_of(dfa, frozenset({EOS})), 0, rows, left, scores)


A_THEN_B = automaton({(0, A): 0, (0, B): 1, (1, B): 1}, [False, True])  # a*b+
THIRD = Fraction(1, 3)
F2 = [
    [Fraction(1, 2), Fraction(1, 2), Fraction(0)],
    [2 * THIRD, THIRD, Fraction(0)],
    [Fraction(1, 4), Fraction(3, 4), Fraction(0)],
]


def texts(dfa: TokenDfa, rows: Sequence[int], left: int) -> Iterator[Text]:
    """Yield the accepted texts of all positions, BEHIND_END behind their ends."""
    moves = {
        (int(s), int(t)): int(q) for s, t, q in zip(dfa.source, dfa.token, dfa.target, strict=True)
    }
    for tokens in product((A, B, EOS, BEHIND_END), repeat=len(rows)):
        state: int | None = 0
        is_over = False
        for i, (token, row) in enumerate(zip(tokens, rows, strict=True)):
            if is_over:
                state = state if token == BEHIND_END else None
            elif row < 0 and token != -1 - row:
                state = None
            elif token == EOS:
                is_over = True
                state = state if state is not None and dfa.accepting[state] else None
            else:
                state = None if state is None else moves.get((state, token))
            if state is None or (not is_over and dfa.closing[state] > left - i - 1):
                break
        else:
            yield tokens


def law_of(dfa: TokenDfa, rows: Sequence[int], left: int, p: Sequence[Sequence[Fraction]]) -> Law:
    """Return the law of the texts; what stands behind an end is any token."""
    weights = {text: weight_of(text, rows, p) for text in texts(dfa, rows, left)}
    total = sum(weights.values())
    return {text: weight / total for text, weight in weights.items() if weight} if total else {}


def weight_of(
    text: Text,
    rows: Sequence[int],
    p: Sequence[Sequence[Fraction]],
    any_of: Callable[[Sequence[Fraction]], Fraction | int] = sum,
) -> Fraction:
    weight = Fraction(1)
    for token, row in zip(text, rows, strict=True):
        if row >= 0:
            weight *= any_of(p[row]) if token == BEHIND_END else p[row][token]
    return weight


def marginals_of(law: Law, rows: Sequence[int]) -> list[list[float]]:
    masked = [i for i, row in enumerate(rows) if row >= 0]
    return [
        [float(sum((w for text, w in law.items() if text[i] == token), Fraction(0)))
         for token in (A, B, EOS)]
        for i in masked
    ]  # fmt: skip


def test_the_card_s_example() -> None:
    """Three positions and a*b+: the posterior, its best text and marginals as fractions."""
    law = law_of(A_THEN_B, [0, 1, 2], 3, F2)
    half, quarter = Fraction(1, 2), Fraction(1, 4)
    assert law == {(A, A, B): half, (A, B, B): quarter, (B, B, B): quarter}
    have = posterior(A_THEN_B, [0, 1, 2], 3, F2)
    assert have.log_mass == pytest.approx(np.log(0.5))
    assert have.best() == [A, A, B]
    want = [[0.75, 0.25, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]
    assert np.allclose(have.marginals(), want, atol=1e-12)
    assert marginals_of(law, [0, 1, 2]) == want


def random_case(draw: random.Random) -> tuple[TokenDfa, list[int], int, list[list[Fraction]]]:
    """Return an automaton all of whose states can be completed, positions, and probabilities."""
    while True:
        size = draw.randrange(1, 5)
        moves = {
            (q, t): draw.randrange(size) for q in range(size) for t in (A, B) if draw.random() < 0.8
        }
        dfa = automaton(moves or {(0, A): 0}, [draw.random() < 0.5 for _ in range(size)])
        if (dfa.closing < 99).all():
            break
    rows, masked = list[int](), 0
    for _ in range(draw.randrange(1, 6)):
        is_masked = draw.random() < 0.7
        rows.append(masked if is_masked else -1 - draw.choice([A, B, B, EOS]))
        masked += is_masked
    weights = [[draw.randrange(1, 6) * (draw.random() < 0.9) for _ in range(3)] for _ in range(9)]
    p = [[Fraction(w, max(sum(own), 1)) for w in own] for own in weights[:masked]]
    return dfa, rows, len(rows) + draw.randrange(3), p


@pytest.mark.parametrize("seed", range(4))
def test_every_law_is_that_of_the_enumeration(seed: int) -> None:
    draw = random.Random(seed)
    lively = 0
    for _ in range(100):
        dfa, rows, left, p = random_case(draw)
        law = law_of(dfa, rows, left, p)
        have = posterior(dfa, rows, left, p or [[Fraction(1)] * 3])
        assert have.exists == bool(law), (rows, left)
        if not law:
            continue
        lively += 1
        assert np.allclose(have.marginals()[: len(p)], marginals_of(law, rows) or 0, atol=1e-9)
        best = max(weight_of(text, rows, p, max) for text in law)
        assert weight_of(tuple(have.best()), rows, p, max) == best
    assert lively > 20


def test_draws_follow_the_law() -> None:
    """20,000 draws with Gumbel noise; every frequency within 5 standard errors."""
    draw, count = random.Random(7), 20_000
    rng = np.random.default_rng(7)
    dfa = automaton({(0, A): 1, (0, B): 0, (1, A): 0, (1, B): 2, (2, B): 2}, [True, False, True])
    rows = [0, -1 - B, 1, 2]
    p = [[Fraction(draw.randrange(1, 6), 10) for _ in range(3)] for _ in range(3)]
    law = law_of(dfa, rows, 5, p)
    have = posterior(dfa, rows, 5, p)
    found: dict[Text, int] = {}
    for _ in range(count):
        text = tuple(have.draw(rng.gumbel(size=(3, 3))))
        found[text] = found.get(text, 0) + 1
    assert found.keys() <= law.keys()
    for text, probability in law.items():
        error = float(probability * (1 - probability) / count) ** 0.5
        assert abs(found.get(text, 0) / count - probability) < 5 * error, text


def test_ratios_of_masses_repair_draws_in_several_steps() -> None:
    """The law of two steps, each exact for its own distribution, is not that of the path.

    C = {aa, bb}; the first position is unmasked, and the model then knows the second. Weights of
    mass under the new distribution to mass under the old (TWISTER's potentials) restore the law of
    the path, 9/10 and 1/10.
    """
    pairs = automaton({(0, A): 1, (0, B): 2, (1, A): 3, (2, B): 3}, [False, False, False, True])
    half, none = Fraction(1, 2), Fraction(0)
    before = [[half, half, none]] * 2
    after = {
        A: [Fraction(9, 10), Fraction(1, 10), none],
        B: [Fraction(9, 10), Fraction(1, 10), none],
    }
    step = posterior(pairs, [0, 1], 2, before).marginals()[0]
    assert np.allclose(step, [0.5, 0.5, 0.0])
    weights = {}
    for token in (A, B):
        old = posterior(pairs, [-1 - token, 0], 2, before[1:]).log_mass
        new = posterior(pairs, [-1 - token, 0], 2, [after[token]]).log_mass
        weights[token] = step[token] * np.exp(new - old)
    total = sum(weights.values())
    assert [weights[token] / total for token in (A, B)] == pytest.approx([0.9, 0.1])
