"""AdaDec over known models: the text of the algorithm that decodes every continuation again."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from plait.decoders.contract.registry import MethodError, choose
from plait.decoders.contract.search import SearchRequest
from plait.decoders.search.lookahead.ada_dec import TAU, AdaDec, AdaDecOptions, AdaDecState
from tests.fixtures.search_driver import Found, Law, SearchDriver, naive_ada_dec
from tests.fixtures.table_model import text_logits

VOCAB = 6
STOP = frozenset({0})


def table_law(seed: int) -> Law:
    def law(output: tuple[int, ...]) -> list[float]:
        logits = text_logits([seed, *output], VOCAB).double() * 0.7
        logits[0] -= 1
        found: list[float] = logits.log_softmax(0).tolist()
        return found

    return law


def driver(seed: int, max_tokens: int, law: Law | None = None, **options: Any) -> SearchDriver:
    return SearchDriver(
        AdaDec(AdaDecOptions(**options)),
        law or table_law(seed),
        STOP,
        SearchRequest(1, max_tokens, seed),
        random.Random(seed),
    )


def same(have: Found, want: Found) -> bool:
    return (have.tokens, have.finish) == (want.tokens, want.finish)


@pytest.mark.parametrize("lookahead", [0, 1, 3, 5])
@pytest.mark.parametrize("width", [2, 3, 6])
@pytest.mark.parametrize("tau", [0.0, 0.9, 1.3])
def test_kept_continuations_change_nothing(tau: float, width: int, lookahead: int) -> None:
    for seed in range(12):
        have = driver(seed, 20, tau=tau, num_candidates=width, lookahead=lookahead)
        want = naive_ada_dec(have, tau, width, lookahead)
        (found,) = have.run()
        assert same(found, want), seed


def test_pauses_matter() -> None:
    """The texts above are not just the greedy ones."""
    greedy = [naive_ada_dec(driver(s, 20, tau=0), math.inf, 1, 0).tokens for s in range(12)]
    paused = [driver(s, 20, tau=0.9).run()[0].tokens for s in range(12)]
    assert sum(a != b for a, b in zip(greedy, paused, strict=True)) >= 6


@pytest.mark.parametrize(
    "options",
    [{"tau": math.inf}, {"tau": 0, "num_candidates": 1}, {"tau": 0, "lookahead": 0}],
    ids=str,
)
def test_what_never_compares_is_greedy(options: dict[str, Any]) -> None:
    for seed in range(12):
        have = driver(seed, 20, **options)
        assert same(have.run()[0], naive_ada_dec(have, math.inf, 1, 0))


def by_hand(output: tuple[int, ...]) -> list[float]:
    """Token 1 is likelier than 2 at the start, but only 2 leads to sure tokens."""
    first = {0: 0.05, 1: 0.5, 2: 0.45}
    after = {0: 0.3, 1: 0.35, 2: 0.35} if output[:1] == (1,) else {0: 0.01, 1: 0.01, 2: 0.98}
    law = after if output else first
    return [math.log(law[token]) for token in range(3)]


def test_the_token_that_leads_further_is_taken() -> None:
    """Entropy .85 at the start: 2 has (ln .45 + 2 ln .98) / 3, 1 has (ln .5 + 2 ln .35) / 3."""
    (found,) = driver(0, 3, by_hand, tau=0.8, num_candidates=2, lookahead=2).run()
    assert found.tokens == (2, 2, 2)
    (found,) = driver(0, 3, by_hand, tau=0.86, num_candidates=2, lookahead=2).run()
    assert found.tokens[0] == 1


def ending(output: tuple[int, ...]) -> list[float]:
    """Token 1 ends the text at once, and surely; token 2 goes on, less surely."""
    law = {(): (0.02, 0.50, 0.48), (1,): (0.90, 0.05, 0.05)}.get(output, (0.01, 0.14, 0.85))
    return [math.log(value) for value in law]


def test_a_continuation_that_ends_is_frozen() -> None:
    """Text 1 has (ln .5 + ln .9) / 2 = -.40; text 2 has -.26 after five tokens, -.45 after one."""
    (found,) = driver(0, 8, ending, tau=0.7, num_candidates=2, lookahead=5).run()
    assert found.tokens[0] == 2
    (found,) = driver(0, 8, ending, tau=0.7, num_candidates=2, lookahead=1).run()
    assert (found.tokens, found.finish) == ((1,), "stop")


def test_a_pause_costs_the_losing_continuations() -> None:
    """The winner is the text: of three candidates two are decoded in vain."""
    search = driver(3, 12, tau=0, num_candidates=3, lookahead=2)
    (found,) = search.run()
    naive = sum(3 * min(2, 12 - place - 1) + 1 for place in range(len(found.tokens)))
    assert search.num_draws < naive


def test_an_early_end_returns_the_best_candidate() -> None:
    search = AdaDec(AdaDecOptions(tau=0))
    state = AdaDecState()
    assert [ranked.member for ranked in search.rank(state, [0])] == [0]


def test_tau_is_asked_for() -> None:
    with pytest.raises(MethodError, match=r"plait calibrate ada-dec") as caught:
        choose({"search": "ada-dec"}, "search")
    assert caught.value.param == "decoding.search"
    for model, tau in TAU.items():
        found = choose({"search": {"name": "ada-dec", "preset": model}}, "search")
        assert found is not None
        assert found.options == AdaDecOptions(tau=tau)


def test_it_finds_one_text() -> None:
    with pytest.raises(MethodError, match="n must be 1") as caught:
        AdaDec(AdaDecOptions(tau=1)).start(SearchRequest(2, 5, 0))
    assert caught.value.param == "n"
