"""Constrained answers of the diffusion host: legal, whole and in time by every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plait.decoders.constrained.spec import ConstraintKind
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.diffusion.decoder import DiffusionDecoder
from tests.fixtures.canvas_driver import Run, drive
from tests.fixtures.constrained_canvases import VOCAB, asked, host
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, GRAMMARS, load, spell
from tests.fixtures.hash_model import HashLaw
from tests.fixtures.word_constraint import END, LANGUAGE, Broken, WordConstraint

LAW = HashLaw(vocab=VOCAB)
BYTES = HashLaw(vocab=len(BYTES_AND_PIECES.token_bytes) + 1, radius=3)
SELECTORS = (
    "static",
    "random",
    {"name": "threshold", "threshold": 0.2},
    "dynamic",
    "factor",
    "entropy-bound",
    "d-parallel",
    "local-leap",
    "hierarchy",
    "klass",
)
ANYWHERE: list[Any] = [
    "auto",
    "off",
    *([selector] for selector in SELECTORS),
    ["credit", {"name": "threshold", "threshold": 0.2}],
    ["eotp"],
    [{"name": "threshold", "threshold": 0.2}, "free-dave"],
]
BLOCK_ONLY: list[Any] = ["wino"]
FULL_ONLY: list[Any] = [
    {"name": "ada-block", "delimiter_ids": [1, 3]},
    "prefix-cache",
    "dual-cache",
    "dkv-cache",
    "recap",
]


def words(max_tokens: int, unmasker: Any, **fields: Any) -> DecodeRequest:
    return asked(WordConstraint(LANGUAGE, END), max_tokens, unmasker, **fields)


def words_of(decoder: DiffusionDecoder, unmasker: Any) -> set[tuple[int, ...]]:
    """Return the answers to many requests, after checking each."""
    found = set()
    for budget in (1, 2, 3, 5, 9):
        requests = [
            words(budget, unmasker, seed=seed, temperature=2.0 * (seed % 3)) for seed in range(8)
        ]
        for run in drive(decoder, LAW, requests, room=64):
            assert tuple(run.answer) in LANGUAGE
            assert len(run.answer) <= budget
            assert run.finish == "stop"
            found.add(tuple(run.answer))
    return found


@pytest.mark.parametrize("unmasker", [*ANYWHERE, *BLOCK_ONLY], ids=str)
@pytest.mark.parametrize(("block", "shift"), [(4, False), (16, False), (4, True)])
def test_every_method_ends_on_a_word(unmasker: Any, block: int, shift: bool) -> None:
    if unmasker in BLOCK_ONLY and shift:
        pytest.skip("reads shadows")
    assert len(words_of(host(LAW, block, shift=shift), unmasker)) > 3


@pytest.mark.parametrize("unmasker", [*ANYWHERE, *FULL_ONLY], ids=str)
@pytest.mark.parametrize("shift", [False, True])
def test_every_method_ends_on_a_word_with_full_attention(unmasker: Any, shift: bool) -> None:
    assert len(words_of(host(LAW, 4, full=True, shift=shift), unmasker)) > 3


@pytest.mark.parametrize(("kind", "text"), GRAMMARS)
@pytest.mark.parametrize("unmasker", ["auto", "off", *SELECTORS[2:4], "wino"], ids=str)
@pytest.mark.parametrize("spare", [0, 30])
def test_answers_match_their_grammar_in_time(
    kind: ConstraintKind,
    text: str,
    unmasker: Any,
    spare: int,
) -> None:
    budget = max(load(kind, text).min_tokens() + spare, 1)
    requests = [
        asked(load(kind, text), budget, unmasker, end=EOS, temperature=seed % 2, seed=seed)
        for seed in range(2)
    ]
    for run in drive(host(BYTES, 16), BYTES, requests, room=64):
        judge = load(kind, text)
        assert all(judge.accept_token(token) for token in run.answer), spell(run.answer)
        assert judge.is_accepting(), spell(run.answer)
        assert run.finish == "stop"
        assert len(run.answer) <= budget


def test_one_token_after_the_other_is_the_best_that_fits() -> None:
    """With blocks of one and no temperature, an answer is greedy among what is legal and fits."""
    for seed in range(40):
        request = words(1 + seed % 7, "off", seed=seed, temperature=0.0)
        (run,) = drive(host(LAW, 4), LAW, [request])
        judge, text = WordConstraint(LANGUAGE, END), list(request.text.prompt)
        while not judge.is_terminated() and len(judge.text) < request.max_tokens:
            left = request.max_tokens - len(judge.text) - 1
            law = LAW.logits(np.array([len(text)]), np.array([*text, LAW.mask_id]))[0]
            fitting = [token for token in judge.legal() if fits(judge, token, left)]
            token = max(fitting, key=lambda token: law[token])
            assert judge.accept_token(token)
            text.append(token)
        assert run.answer == [token for token in judge.text if token != END]


def fits(judge: WordConstraint, token: int, left: int) -> bool:
    ahead = judge.fork()
    assert ahead.accept_token(token)
    return token == END or ahead.min_tokens() <= left


def outcomes(run: Run) -> tuple[list[int], str | None, list[int]]:
    return run.answer, run.finish, run.state.emitted_steps


@pytest.mark.parametrize("selector", [SELECTORS[0], SELECTORS[2], "entropy-bound"], ids=str)
@pytest.mark.parametrize("block", [4, 16])
def test_drafts_change_nothing_but_the_number_of_passes(selector: Any, block: int) -> None:
    saved = 0
    for seed in range(3):
        for law, constraint, end in (
            (LAW, WordConstraint(LANGUAGE, END), END),
            (BYTES, load(*GRAMMARS[0]), EOS),
        ):
            ways = [[selector], [selector, "free-dave"]]
            plain, eager = (
                drive(
                    host(law, block),
                    law,
                    [asked(constraint.fork(), 40, way, end=end, seed=seed, temperature=seed % 2)],
                    room=200,
                )[0]
                for way in ways
            )
            assert outcomes(plain) == outcomes(eager)
            assert len(eager.outcomes) <= len(plain.outcomes)
            saved += len(plain.outcomes) - len(eager.outcomes)
    assert saved > 0


@pytest.mark.parametrize("full", [False, True])
def test_answers_depend_on_their_request_alone(full: bool) -> None:
    """Law 1 under constraints: alone, in a batch among unconstrained ones, and after evictions."""
    ways: Sequence[Any] = ["auto", "off", ["threshold"], ["credit", "factor"], ["eotp", "static"]]
    requests = [words(9, ways[seed % len(ways)], seed=seed) for seed in range(20)]
    requests += [replace(request, constraint=None) for request in requests[:5]]

    def fresh() -> list[DecodeRequest]:
        return [replace(r, constraint=r.constraint and r.constraint.fork()) for r in requests]

    def decoder() -> DiffusionDecoder:
        return host(LAW, 4, full=full)

    alone = [drive(decoder(), LAW, [request], room=9)[0] for request in fresh()]
    batch = drive(decoder(), LAW, fresh(), room=100)
    preempted = drive(decoder(), LAW, fresh(), room=50, evict=frozenset({1, 2, 5}))
    assert [outcomes(run) for run in alone] == [outcomes(run) for run in batch]
    assert [outcomes(run) for run in alone] == [outcomes(run) for run in preempted]


@pytest.mark.parametrize("unmasker", ["auto", ["threshold"], "wino"], ids=str)
def test_logprobs_are_the_models_own_and_change_nothing(unmasker: Any) -> None:
    for seed in range(4):
        requests = [
            asked(load(*GRAMMARS[0]), 60, unmasker, end=EOS, seed=seed, logprobs=k)
            for k in (None, 2)
        ]
        plain, priced = drive(host(BYTES, 16), BYTES, requests, room=64)
        assert priced.answer == plain.answer
        assert plain.state.num_forced == priced.state.num_forced > 0
        entries = [entry for outcome in priced.outcomes for entry in outcome.logprobs]
        assert [entry.token_id for entry in entries] == priced.answer
        assert all(entry.logprob < 0 and len(entry.top) == 2 for entry in entries)
        assert 0 not in priced.state.emitted_passes


def test_forced_tokens_take_no_pass_and_are_counted() -> None:
    (run,) = drive(host(LAW, 4), LAW, [asked(WordConstraint([(4, 1, 2, 3, 0, 1, 2, 3, 0)], END),
                                             20, "auto", seed=1)])  # fmt: skip
    assert run.answer == [4, 1, 2, 3, 0, 1, 2, 3, 0]
    assert len(run.outcomes) <= 2
    assert report(run)["forced"] >= 7


def report(run: Run) -> Mapping[str, Any]:
    return host(LAW, 4).report(run.state)


def test_what_contradicts_itself_is_a_fault_of_its_own_request() -> None:
    decoder = host(LAW, 4, full=True)
    with pytest.raises(AssertionError, match="its own end"):
        drive(decoder, LAW, [asked(Broken(LANGUAGE, END), 4, "auto")])
