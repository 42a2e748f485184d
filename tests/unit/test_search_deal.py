"""DeAL over known models: what the algorithm finds that decodes every continuation again."""

from __future__ import annotations

import random
from typing import Any

import pytest

from plait.decoders.contract.registry import MethodError, choose
from plait.decoders.contract.search import SearchRequest
from plait.decoders.search.lookahead.deal import Deal, DealOptions
from plait.decoders.search.lookahead.segments import DealSegments, make
from tests.fixtures.search_driver import Found, Law, SearchDriver, extend, naive_ada_dec, naive_deal
from tests.fixtures.table_model import text_logits

VOCAB = 20
STOP = frozenset({0, 7})


def table_law(seed: int) -> Law:
    def law(output: tuple[int, ...]) -> list[float]:
        logits = text_logits([seed, *output], VOCAB).double() * 0.4
        found: list[float] = logits.log_softmax(0).tolist()
        return found

    return law


def worth(tokens: tuple[int, ...], is_complete: bool) -> float:
    """Likes even tokens, and complete texts a little; texts of equal worth are common."""
    return sum(token % 2 == 0 for token in tokens) / 2 + 0.25 * is_complete


def driver(seed: int, n: int, max_tokens: int, **options: Any) -> SearchDriver:
    return SearchDriver(
        make(DealOptions(**options)),
        table_law(seed),
        STOP,
        SearchRequest(n, max_tokens, seed),
        random.Random(seed),
        worth=worth,
    )


def check(have: list[Found], want: list[Found]) -> None:
    assert [(f.tokens, f.finish) for f in have] == [(f.tokens, f.finish) for f in want]
    assert [f.score for f in have] == pytest.approx([f.score for f in want])


@pytest.mark.parametrize("weight", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("lookahead", [0, 1, 4])
@pytest.mark.parametrize(("beams", "top_k"), [(1, 4), (3, 3), (4, 2), (2, 20)])
def test_kept_continuations_change_nothing(
    beams: int, top_k: int, lookahead: int, weight: float
) -> None:
    """The oracle of DeAL's step: the best of c over all candidates, by brute force, every step."""
    for seed in range(4):
        search = driver(
            seed, beams, 6, beams=beams, top_k=top_k, lookahead=lookahead, reward_weight=weight
        )
        want = naive_deal(search, (beams, top_k, lookahead), weight)
        check(search.run(), (want + want[-1:] * beams)[:beams])


def test_scores_matter() -> None:
    for seed in range(4):
        plain = naive_deal(driver(seed, 1, 6), (3, 5, 2), 0.0)[0]
        liked = naive_deal(driver(seed, 1, 6), (3, 5, 2), 5.0)[0]
        assert worth(liked.tokens, True) > worth(plain.tokens, True)


@pytest.mark.parametrize("lookahead", [0, 3])
def test_one_candidate_is_greedy(lookahead: int) -> None:
    for seed in range(8):
        search = driver(seed, 1, 12, top_k=1, beams=1, lookahead=lookahead, reward_weight=9.0)
        want = naive_ada_dec(search, 99.0, 1, 0)
        (found,) = search.run()
        assert (found.tokens, found.finish) == (want.tokens, want.finish)


def test_without_weight_it_is_beam_search() -> None:
    """The likeliest text of all, if the beam is as wide as the tree: 20 * 18 texts."""
    search = driver(2, 1, 2, beams=4, top_k=20, lookahead=2, reward_weight=0.0)
    texts = []
    for first in search.alternatives(()):
        if first.finish:
            texts.append((first.logprob, extend((), first)))
            continue
        start = extend((), first)
        texts += [
            (first.logprob + token.logprob, extend(start, token))
            for token in search.alternatives(start)
        ]
    (found,) = search.run()
    logprob, tokens = max(texts)
    assert found.tokens == tokens
    assert found.score == pytest.approx(logprob)


def test_what_is_scored_is_the_continuation() -> None:
    """With one text, each candidate's own tokens and two greedy ones."""
    search = driver(1, 1, 4, beams=1, top_k=3, lookahead=2)
    search.run()
    first = search.alternatives(())[:3]
    for token, scored in zip(first, search.scored[:3], strict=True):
        want, finish = extend((), token), token.finish
        while len(want) < 3 and not finish:
            best = search.alternatives(want)[0]
            want, finish = extend(want, best), best.finish
        assert scored == want


Beam = tuple[float, tuple[int, ...], Any]  # log-probability, text, why it has ended


def naive_segments(search: SearchDriver, kept: int, width: int, length: int) -> list[Found]:
    """Return what the segment form finds without a limit of iterations."""
    texts: list[Beam] = [(0.0, (), None)]
    while any(finish is None for _, _, finish in texts):
        candidates = [beam for text in texts for beam in naive_beams(search, text, width, length)]
        candidates.sort(key=lambda beam: -search.worth(beam[1], beam[2] is not None))
        texts = candidates[:kept]
    return [Found(text, finish, search.worth(text, True)) for _, text, finish in texts]


def naive_beams(search: SearchDriver, text: Beam, width: int, length: int) -> list[Beam]:
    """Return the likeliest continuations of a text, as a beam search finds them."""
    beams = [(0.0, *text[1:])]
    for _ in range(length):
        found = [longer for beam in beams for longer in naive_extensions(search, beam, width)]
        beams = sorted(found, key=lambda beam: -beam[0])[:width]
    return beams


def naive_extensions(search: SearchDriver, beam: Beam, width: int) -> list[Beam]:
    total, text, finish = beam
    if finish is not None:
        return [beam]
    return [
        (total + token.logprob, extend(text, token), token.finish)
        for token in search.alternatives(text)[: 2 * width]
    ]


@pytest.mark.parametrize(("kept", "width", "length"), [(1, 3, 2), (3, 2, 1), (3, 4, 3)])
def test_segments_are_those_of_the_naive_algorithm(kept: int, width: int, length: int) -> None:
    for seed in range(6):
        search = driver(
            seed, kept, 9, form="segment", beams=kept, init_beams=width, lookahead=length
        )
        check(search.run(), naive_segments(search, kept, width, length))


def test_a_budget_of_segments_is_told() -> None:
    options = DealOptions(form="segment", beams=2, init_beams=2, lookahead=2, max_iterations=2)
    search = DealSegments(options)
    state, _ = search.start(SearchRequest(1, 50, 0))
    run = SearchDriver(search, table_law(0), frozenset(), SearchRequest(1, 50, 0), worth=worth)
    have = run.run()
    assert [len(found.tokens) for found in have] == [4]
    assert have[0].finish is None
    state.num_iterations, state.is_over = 2, True
    assert search.report(state)["budget"] == "iterations"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"init_beams": 2}, "init_beams belongs to the segment form"),
        ({"form": "segment", "top_k": 2}, "top_k belongs to the token form"),
        ({"beams": 32, "top_k": 32}, "more than 128 candidates"),
        ({"form": "segment", "lookahead": 0}, "at least one token"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MethodError, match=complaint):
        choose({"search": {"name": "deal", **options}}, "search")


def test_fewer_texts_than_choices_are_refused() -> None:
    for search in (Deal(DealOptions(beams=2)), DealSegments(DealOptions(form="segment", beams=2))):
        with pytest.raises(MethodError, match="beams is 2, but n is 3") as caught:
            search.start(SearchRequest(3, 5, 0))
        assert caught.value.param == "decoding.search.beams"
