"""Searches over known models: beam and best-of against enumeration and plain references."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from plait.decoders.contract.registry import MethodError
from plait.decoders.contract.search import SearchRequest
from plait.decoders.search.beam import BeamOptions, BeamSearch
from plait.decoders.search.best_of import BestOf, BestOfOptions
from tests.fixtures.search_driver import Found, Law, SearchDriver, exhaustive, naive_beam
from tests.fixtures.table_model import text_logits

VOCAB = 5
STOP = frozenset({0, 3})


def table_law(seed: int, *, bias: float = 0.0) -> Law:
    """Return the table model's law; bias makes stop tokens likelier."""

    def law(output: tuple[int, ...]) -> Sequence[float]:
        logits = text_logits([seed, *output], VOCAB)
        logits[0] += bias
        found: list[float] = logits.double().log_softmax(0).tolist()
        return found

    return law


def beam_driver(seed: int, n: int, max_tokens: int, **options: Any) -> SearchDriver:
    bias = options.pop("bias", 0.0)
    return SearchDriver(
        BeamSearch(BeamOptions(**options)),
        table_law(seed, bias=bias),
        STOP,
        SearchRequest(n, max_tokens, seed),
        random.Random(seed),
    )


def close(have: Sequence[Found], want: Sequence[Found]) -> bool:
    """Tell whether the same texts were found, for the same reasons, with the same scores."""
    same = [(f.tokens, f.finish) for f in have] == [(f.tokens, f.finish) for f in want]
    return same and all(
        math.isclose(a.score, b.score, abs_tol=1e-9) for a, b in zip(have, want, strict=True)
    )


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_as_wide_as_the_tree_is_exhaustive(seed: int, penalty: float) -> None:
    """Three tokens of five, two of which end the text: at most 3 * 3 beams."""
    driver = beam_driver(seed, 6, 3, beam_width=16, length_penalty=penalty)
    assert close(driver.run(), exhaustive(driver, penalty))


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("bias", [-9.0, 0.0, 2.0])
def test_a_narrow_beam_is_the_plain_algorithm(width: int, penalty: float, bias: float) -> None:
    """Ending early and forgetting hopeless texts changes nothing. Two tokens end a text."""
    steps = 0
    for seed in range(12):
        driver = beam_driver(seed, width, 7, beam_width=width, length_penalty=penalty, bias=bias)
        assert close(driver.run(), naive_beam(driver, width, penalty))
        steps += driver.num_steps
    if bias > 0 and penalty <= 0:
        assert steps < 12 * 7


def test_what_members_draw_does_not_matter() -> None:
    want = beam_driver(3, 3, 6, beam_width=3).run()
    for seed in range(10):
        driver = beam_driver(3, 3, 6, beam_width=3)
        driver.rng = random.Random(seed + 100)
        assert driver.run() == want


def test_fewer_texts_than_beams() -> None:
    """A model that must stop at once has one text; every choice gets it."""
    driver = beam_driver(0, 3, 5, beam_width=4)
    driver.law = lambda output: [0.0]
    assert [(f.tokens, f.finish) for f in driver.run()] == [((), "stop")] * 3


def test_beam_width_is_at_least_n() -> None:
    with pytest.raises(MethodError, match="beam_width is 2, but n is 3") as caught:
        beam_driver(0, 3, 5, beam_width=2).run()
    assert caught.value.param == "decoding.search.beam_width"


def best_of_driver(seed: int, n: int, num_samples: int) -> SearchDriver:
    return SearchDriver(
        BestOf(BestOfOptions(num_samples=num_samples)),
        table_law(seed),
        STOP,
        SearchRequest(n, 6, seed),
        random.Random(seed),
    )


@pytest.mark.parametrize("seed", range(6))
def test_best_of_returns_the_highest_means(seed: int) -> None:
    driver = best_of_driver(seed, 3, 9)
    have = driver.run()
    want = []
    for number, member in sorted(driver.members.items()):
        means = [driver.law(tuple(member.tokens[:i]))[t] for i, t in enumerate(member.tokens)]
        score = sum(means) / len(means) if means else -math.inf
        want.append((-score, number, tuple(member.tokens)))
    want.sort()
    assert [found.tokens for found in have] == [tokens for _, _, tokens in want[:3]]
    assert [found.score for found in have] == pytest.approx([-score for score, _, _ in want[:3]])
    assert len(driver.members) == 9


def test_equal_samples_rank_by_number_and_empty_ones_last() -> None:
    search = BestOf(BestOfOptions(num_samples=3))
    state, _ = search.start(SearchRequest(2, 5, 0))
    state.sums, state.lengths = {0: 0.0, 1: -2.0, 2: -1.0}, {0: 0, 1: 4, 2: 2}
    assert [ranked.member for ranked in search.rank(state, [0, 1, 2])] == [1, 2]
    assert [ranked.member for ranked in search.rank(state, [0, 2])] == [2, 0]


def test_best_of_draws_at_least_n() -> None:
    with pytest.raises(MethodError, match="fewer than n"):
        best_of_driver(0, 4, 3).run()
