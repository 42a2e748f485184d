"""Literals settled ahead of their values: legal, in time, lossless, and as written down naively."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.diffusion.decoder import NO_FORM
from tests.fixtures.canvas_driver import Run, decode_request, drive, start
from tests.fixtures.constrained_canvases import VOCAB, asked, host
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, GRAMMARS, load, spell
from tests.fixtures.hash_model import HashLaw
from tests.fixtures.scaffolded import Naive
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

LAW = HashLaw(vocab=VOCAB, coupling=0.5)
BYTES = HashLaw(vocab=len(BYTES_AND_PIECES.token_bytes) + 1, radius=3)
# Values of one to three tokens between literals: what a schema looks like.
KEYED = [
    (4, *name, 3, 3, *age, 2)
    for name in ((0,), (0, 1), (1, 0, 0), (1, 1))
    for age in ((0,), (1, 1), (0, 1, 1))
]
LANGUAGES = [LANGUAGE, KEYED]
SELECTORS: list[Any] = [
    "static",
    {"name": "threshold", "threshold": 0.2},
    "factor",
    "entropy-bound",
    "local-leap",
    "klass",
]


def scaffold(bar: float, rule: str = "product") -> dict[str, Any]:
    return {"name": "scaffold", "bar": bar, "rule": rule}


def words(language: Sequence[tuple[int, ...]], *args: Any, **fields: Any) -> DecodeRequest:
    return asked(WordConstraint(language, END), *args, **fields)


def outcomes(run: Run) -> tuple[list[int], str | None, list[int]]:
    return run.answer, run.finish, run.state.emitted_steps


@pytest.mark.parametrize("language", LANGUAGES, ids=["words", "keyed"])
@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("threshold", [2.0, 0.3])
@pytest.mark.parametrize(("bar", "rule"), [(0.0, "product"), (0.3, "product"), (0.3, "least")])
def test_answers_and_passes_are_those_of_the_naive_decoder(
    language: list[tuple[int, ...]], block: int, threshold: float, bar: float, rule: str
) -> None:
    shortest = min(map(len, language))
    for seed in range(8):
        unmasker = [{"name": "threshold", "threshold": threshold}, scaffold(bar, rule)]
        budget = shortest + seed % 6
        request = words(language, budget, unmasker, seed=seed, temperature=seed % 3)
        (run,) = drive(host(LAW, block), LAW, [request])
        naive = Naive(
            LAW,
            language,
            END,
            request.text.prompt,
            budget,
            block,
            threshold,
            bar,
            rule,
            request.sampling,
        )
        assert run.answer == naive.answer()
        assert len(run.outcomes) == naive.passes


def test_literals_take_no_pass_of_their_own() -> None:
    """A selector that settles one token a pass settles values alone."""
    saved = 0
    for seed in range(30):
        plain, built = (
            drive(host(LAW, 16), LAW, [words(KEYED, 12, way, seed=seed, temperature=1.0)])[0]
            for way in (["static"], ["static", scaffold(0.0)])
        )
        literals = sum(token in (2, 3, 4) for token in built.answer)
        assert len(built.outcomes) <= len(built.answer) - literals + built.state.num_forced + 4
        saved += len(plain.outcomes) - len(built.outcomes)
    assert saved > 0


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
@pytest.mark.parametrize("full", [False, True])
def test_every_answer_is_a_word_in_time(selector: Any, full: bool) -> None:
    for language in LANGUAGES:
        shortest = min(map(len, language))
        requests = [
            words(
                language,
                shortest + seed % 5,
                [selector, scaffold(0.25 * (seed % 4))],
                seed=seed,
                temperature=2.0 * (seed % 3),
            )
            for seed in range(24)
        ]
        for request, run in zip(
            requests, drive(host(LAW, 8, full=full), LAW, requests), strict=True
        ):
            assert tuple(run.answer) in language
            assert len(run.answer) <= request.max_tokens
            assert len(run.outcomes) <= 8 * 8 * 3


@pytest.mark.parametrize(("kind", "text"), GRAMMARS)
@pytest.mark.parametrize("spare", [1, 30])
def test_answers_match_their_grammar(kind: Any, text: str, spare: int) -> None:
    budget = load(kind, text).min_tokens() + spare
    requests = [
        asked(load(kind, text), budget, [way, scaffold(0.0)], end=EOS, temperature=t, seed=seed)
        for seed, (way, t) in enumerate([("static", 1.0), ("threshold", 0.0), ("factor", 2.0)])
    ]
    for run in drive(host(BYTES, 16), BYTES, requests):
        judge = load(kind, text)
        assert all(judge.accept_token(token) for token in run.answer), spell(run.answer)
        assert judge.is_accepting(), spell(run.answer)
        assert len(run.answer) <= budget


@pytest.mark.parametrize("selector", SELECTORS[:4], ids=str)
@pytest.mark.parametrize("bar", [0.0, 0.5])
def test_drafts_change_nothing_but_the_number_of_passes(selector: Any, bar: float) -> None:
    saved = 0
    for seed in range(2):
        for law, constraint, end in (
            (LAW, WordConstraint(KEYED, END), END),
            (BYTES, load(*GRAMMARS[0]), EOS),
        ):
            plain, eager = (
                drive(
                    host(law, 16),
                    law,
                    [asked(constraint.fork(), 40, way, end=end, seed=seed, temperature=seed % 2)],
                    room=200,
                )[0]
                for way in ([selector, scaffold(bar)], [selector, "free-dave", scaffold(bar)])
            )
            assert outcomes(plain) == outcomes(eager)
            assert len(eager.outcomes) <= len(plain.outcomes)
            saved += len(plain.outcomes) - len(eager.outcomes)
    assert saved > 0


@pytest.mark.parametrize("full", [False, True])
def test_answers_depend_on_their_request_alone(full: bool) -> None:
    ways = [[*way, scaffold(0.2)] for way in (["static"], ["threshold", "free-dave"], ["eotp"])]

    def fresh() -> list[DecodeRequest]:
        return [
            words(LANGUAGES[seed % 2], 12, ways[seed % 3], seed=seed, temperature=1.0)
            for seed in range(12)
        ]

    decoder = host(LAW, 4, full=full)
    alone = [drive(decoder, LAW, [request], room=100)[0] for request in fresh()]
    batch = drive(decoder, LAW, fresh(), room=100)
    preempted = drive(decoder, LAW, fresh(), room=50, evict=frozenset({1, 2, 5}))
    assert [outcomes(run) for run in alone] == [outcomes(run) for run in batch]
    assert [outcomes(run) for run in alone] == [outcomes(run) for run in preempted]


def test_logprobs_change_nothing() -> None:
    for seed in range(2):
        requests = [
            asked(load(*GRAMMARS[0]), 60, [way, scaffold(0.0)], end=EOS, seed=seed, logprobs=k)
            for way in ("static", "threshold")
            for k in (None, 2)
        ]
        runs = drive(host(BYTES, 16), BYTES, requests)
        assert [run.answer for run in runs[::2]] == [run.answer for run in runs[1::2]]
        for run in runs[1::2]:
            entries = [entry for outcome in run.outcomes for entry in outcome.logprobs]
            assert [entry.token_id for entry in entries] == run.answer


def test_without_a_constraint_there_is_nothing_to_put_up() -> None:
    request = decode_request([1], 4, {"unmasker": ["static", scaffold(0.5)]})
    assert start(host(LAW, 4), request).fault == NO_FORM.format("scaffold")
