"""cars and asap by enumeration of every draw and every coin, in fractions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest

from plait.decoders.contract.registry import MethodError
from plait.decoders.contract.search import SearchRequest
from plait.decoders.search.faithful.asap import Asap, AsapOptions
from plait.decoders.search.faithful.attempts import Attempt
from plait.decoders.search.faithful.cars import Cars, CarsOptions
from plait.decoders.search.faithful.futures import FutureNode, FutureTrie
from tests.fixtures.enumeration import Choices, distance, outcomes
from tests.fixtures.law_driver import (
    A,
    B,
    Law,
    LawDriver,
    Text,
    conditional,
    random_law,
    trap,
)
from tests.fixtures.law_model import TRAP_WORDS
from tests.fixtures.word_constraint import END


def ask(n: int = 1, trie: FutureTrie | None = None) -> SearchRequest:
    kept = trie or FutureTrie()
    return SearchRequest(n, 5, 0, is_constrained=True, recall=lambda name, make: kept)  # type: ignore[arg-type]


def explore(law: Law, words: Sequence[Text], texts: Sequence[Text]) -> FutureTrie:
    """Return the trie after masked draws of these texts."""
    trie = FutureTrie()
    for text in texts:
        fixed = Fixed([*text, END])
        LawDriver(Asap(AsapOptions()), law, words, ask(trie=trie), fixed).run()
    return trie


class Fixed(Choices):
    """Draws the tokens that it is told, behind the first draw, which the root makes."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__()
        self.tokens = [next(iter(tokens)), *tokens]

    def pick(self, law: Sequence[Fraction]) -> int:
        return self.tokens.pop(0)


def second_sample(explored: Text) -> dict[Text, Fraction]:
    def sample(choices: Choices) -> Text:
        trie = explore(trap, TRAP_WORDS, [explored])
        ((text, _),) = LawDriver(
            Asap(AsapOptions()), trap, TRAP_WORDS, ask(trie=trie), choices
        ).run()
        return text

    return outcomes(sample)


def test_the_second_sample_of_asap() -> None:
    """Fixture F1: 9/109 after a, and 10/11 after b, which is further off than masking's 9/10."""
    assert second_sample(A)[A] == Fraction(9, 109)
    assert second_sample(B)[A] == Fraction(10, 11)


def test_the_first_sample_of_asap_is_a_masked_draw() -> None:
    def sample(choices: Choices) -> Text:
        ((text, _),) = LawDriver(Asap(AsapOptions()), trap, TRAP_WORDS, ask(), choices).run()
        return text

    assert outcomes(sample) == {A: Fraction(9, 10), B: Fraction(1, 10)}


@pytest.mark.parametrize("seed", range(6))
def test_asap_is_exact_when_all_has_been_explored(seed: int) -> None:
    law, words = random_law(seed)

    def sample(choices: Choices) -> Text:
        trie = explore(law, words, words)
        ((text, _),) = LawDriver(Asap(AsapOptions()), law, words, ask(trie=trie), choices).run()
        return text

    assert distance(outcomes(sample), conditional(law, words)) == 0


def attempts(
    law: Law, words: Sequence[Text], n: int = 1, refused: Sequence[Text] = (), **options: Any
) -> dict[Any, Fraction]:
    """Return the law of (attempt, text) of each choice; attempt None: it was not accepted."""

    def sample(choices: Choices) -> Any:
        search = Cars(CarsOptions(**options))
        driver = LawDriver(search, law, words, ask(n), choices, refused)
        return tuple(
            (number_of(driver.state.complete.get(each.member)), text) for text, each in driver.run()
        )

    return outcomes(sample)


def number_of(attempt: Attempt | None) -> int | None:
    return attempt.number if attempt is not None and attempt.is_checked else None


def accepted_at(found: dict[Any, Fraction], number: int) -> dict[Text, Fraction]:
    """Return the masses of texts of the first choice that an attempt was accepted with."""
    masses: dict[Text, Fraction] = {}
    for ((at, text), *_), mass in found.items():
        if at == number:
            masses[text] = masses.get(text, Fraction()) + mass
    return masses


def test_cars_accepts_by_the_law_in_both_rounds() -> None:
    """F1: acceptance .099, then 99/109 where a has been seen; 1/11 of what is accepted is a."""
    found = attempts(trap, TRAP_WORDS, max_attempts=2, num_parallel=1)
    first, second = accepted_at(found, 0), accepted_at(found, 1)
    assert first == {A: Fraction(9, 1000), B: Fraction(90, 1000)}
    # the first was rejected at a (.891), which leaves bounds of .109, or at b (.01): .99
    want = Fraction(891, 1000) * Fraction(99, 109) + Fraction(10, 1000) * Fraction(99, 990)
    assert sum(second.values()) == want
    assert second[A] / want == Fraction(1, 11)


@pytest.mark.parametrize("num_parallel", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_what_cars_accepts_is_exact(seed: int, num_parallel: int) -> None:
    """Total variation 0 to P(text | legal), for each attempt, whatever came before or beside it."""
    law, words = random_law(seed)
    want = conditional(law, words)
    found = attempts(law, words, max_attempts=2, num_parallel=num_parallel)
    for number in range(2):
        masses = accepted_at(found, number)
        total = sum(masses.values())
        assert not masses or {t: m / total for t, m in masses.items()} == want
    assert accepted_at(found, 0)
    assert {text for ((_, text),) in found} <= set(words)


@pytest.mark.parametrize("seed", range(4))
def test_choices_of_cars_are_independent(seed: int) -> None:
    """Two attempts side by side: both accepted, the pair follows the product law."""
    law, words = random_law(seed)
    want = conditional(law, words)
    found = attempts(law, words, 2, max_attempts=2, num_parallel=2)
    pairs = {
        (one[1], two[1]): mass for (one, two), mass in found.items() if None not in (one[0], two[0])
    }
    total = sum(pairs.values())
    assert {pair: mass / total for pair, mass in pairs.items()} == {
        (one, two): want[one] * want[two] for one in want for two in want
    }


@pytest.mark.parametrize("seed", range(4))
def test_checks_beside_the_mask_keep_cars_exact(seed: int) -> None:
    """A refused token rejects the attempt, and is not drawn again."""
    law, words = random_law(seed)
    given = conditional(law, words)
    refused = [max(given, key=len), (2,)]
    left = {
        word: mass
        for word, mass in given.items()
        if not any(word[: len(text)] == text for text in refused)
    }
    found = attempts(law, words, refused=refused, max_attempts=2, num_parallel=1)
    assert accepted_at(found, 0)
    for number in range(2):
        masses = accepted_at(found, number)
        total = sum(masses.values())
        assert not masses or {t: m / total for t, m in masses.items()} == {
            word: mass / sum(left.values()) for word, mass in left.items()
        }


def test_bounds_hold_and_fall_until_they_are_exact() -> None:
    """A bound is at least the probability of a legal end, never rises, and is it in the end."""
    for seed in range(6):
        law, words = random_law(seed)
        order = random.Random(seed).sample(words, len(words))
        before: dict[Text, float] = {}
        for count in range(len(order) + 1):
            trie = explore(law, words, order[:count])
            bounds = dict(walk(trie.root, ()))
            for text, bound in bounds.items():
                assert bound >= future(law, words, text) - 1e-12
                assert bound <= before.get(text, 1.0) + 1e-12
            before |= bounds
        assert before[()] == pytest.approx(float(future(law, words, ())), abs=1e-9)


def walk(node: FutureNode, text: Text) -> list[tuple[Text, float]]:
    below = [each for t, child in node.children.items() for each in walk(child, (*text, t))]
    return [(text, node.bound), *below]


def future(law: Law, words: Sequence[Text], text: Text) -> float:
    """Return the probability that a text goes on to a word."""
    total = Fraction(0)
    for word in words:
        if word[: len(text)] != text:
            continue
        mass = Fraction(1)
        for i in range(len(text), len(word)):
            mass *= law(word[:i])[word[i]]
        is_last = all(other == word or other[: len(word)] != word for other in words)
        total += mass if is_last else mass * law(word)[END]
    return float(total)


def test_a_spent_budget_is_told() -> None:
    """Texts that no attempt was left for are legal, and not passed off as accepted."""
    found = attempts(trap, TRAP_WORDS, 2, max_attempts=1, num_parallel=1)
    for choices in found:
        assert [number for number, _ in choices] in ([None, None], [0, None])
        assert {text for _, text in choices} <= {A, B}


def test_a_language_without_probability_ends_too() -> None:
    """Nothing legal has a probability: the bound of the root is 0, and nothing is accepted."""
    found = attempts(trap, [(0, 4)], max_attempts=5, num_parallel=2)
    assert [number for ((number, _),) in found] == [None]


def test_a_full_trie_stays_exact() -> None:
    law, words = random_law(1)

    def sample(choices: Choices) -> Any:
        search = Cars(CarsOptions(max_attempts=2, num_parallel=1))
        trie = FutureTrie(max_bytes=900)  # two nodes
        driver = LawDriver(search, law, words, ask(trie=trie), choices)
        ((text, each),) = driver.run()
        assert trie.num_nodes <= 2
        return ((number_of(driver.state.complete.get(each.member)), text),)

    found = outcomes(sample)
    for number in range(2):
        masses = accepted_at(found, number)
        total = sum(masses.values())
        assert {t: m / total for t, m in masses.items()} == conditional(law, words)


@pytest.mark.parametrize("make", [lambda: Cars(CarsOptions()), lambda: Asap(AsapOptions())])
def test_there_is_no_law_at_temperature_0(make: Callable[[], Any]) -> None:
    with pytest.raises(MethodError) as caught:
        make().start(SearchRequest(1, 5, 0, is_greedy=True))
    assert caught.value.param == "temperature"
