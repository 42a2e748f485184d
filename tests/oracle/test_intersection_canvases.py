"""Answers under `cfg-intersection`: whole in time, judged by every filling there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plait.decoders.constrained.grammar.gbnf import parse
from plait.decoders.constrained.matcher import GrammarConstraint, LoadedGrammar
from plait.decoders.constrained.table import build_table
from plait.decoders.constrained.vocabulary import make_vocabulary
from plait.decoders.contract.constraint import Gap, GapFilling
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.diffusion.canvas import Canvas
from tests.fixtures.canvas_driver import Run, drive
from tests.fixtures.constrained_canvases import VOCAB, asked, host
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, GRAMMARS, load, spell
from tests.fixtures.hash_model import HashLaw
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

METHOD = "cfg-intersection"
LAW = HashLaw(vocab=VOCAB)
BYTES = HashLaw(vocab=len(BYTES_AND_PIECES.token_bytes) + 1, radius=3)
ANYTHING = "root ::= [A-Z]*"
EAGER = {"name": "threshold", "threshold": 0.05}
SELECTORS: Sequence[Any] = ("static", EAGER, "entropy-bound", "wino", "random")


def outcomes(runs: Sequence[Run]) -> list[tuple[list[int], str | None, list[int]]]:
    return [(run.answer, run.finish, run.state.emitted_steps) for run in runs]


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
@pytest.mark.parametrize("full", [False, True])
def test_answers_are_words_in_time(selector: Any, full: bool) -> None:
    if full and selector == "wino":
        pytest.skip("needs blocks")
    found = set()
    for budget in (1, 2, 3, 5, 9):
        requests = [
            asked(WordConstraint(LANGUAGE, END), budget, [METHOD, selector], seed=seed,
                  temperature=2.0 * (seed % 3))
            for seed in range(8)
        ]  # fmt: skip
        for run in drive(host(LAW, 4, full=full), LAW, requests, room=64):
            assert tuple(run.answer) in LANGUAGE
            assert len(run.answer) <= budget
            assert run.finish == "stop"
            found.add(tuple(run.answer))
    assert len(found) > 3


@pytest.mark.parametrize(("kind", "text"), GRAMMARS)
@pytest.mark.parametrize("selector", SELECTORS[1:4], ids=str)
@pytest.mark.parametrize("spare", [0, 30])
def test_answers_match_their_grammar_in_time(
    kind: Any, text: str, selector: Any, spare: int
) -> None:
    budget = max(load(kind, text).min_tokens() + spare, 1)
    way = [METHOD, selector]
    requests = [
        asked(load(kind, text), budget, way, end=EOS, temperature=seed % 2, seed=seed)
        for seed in range(2)
    ]
    for run in drive(host(BYTES, 16), BYTES, requests, room=64):
        judge = load(kind, text)
        assert all(judge.accept_token(token) for token in run.answer), spell(run.answer)
        assert judge.is_accepting(), spell(run.answer)
        assert len(run.answer) <= budget


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
@pytest.mark.parametrize("shift", [False, True])
def test_what_accepts_all_texts_changes_nothing(selector: Any, shift: bool) -> None:
    """Bit for bit, steps and passes included; the model's tokens all are legal."""
    if shift and selector == "wino":
        pytest.skip("reads shadows")
    requests = [
        asked(letters(ANYTHING), 20, [METHOD, selector], seed=seed, temperature=seed % 3 / 2)
        for seed in range(12)
    ]
    free = [
        asked(letters(ANYTHING), 20, [selector], seed=seed, temperature=seed % 3 / 2)
        for seed in range(12)
    ]
    have = drive(host(LAW, 4, shift=shift), LAW, requests, room=64)
    without = [replace(request, constraint=None) for request in free]
    want = drive(host(LAW, 4, shift=shift), LAW, without, room=64)
    for one, other in zip(have, want, strict=True):  # a complete answer has not run out of tokens
        assert (one.answer, one.state.emitted_steps) == (other.answer, other.state.emitted_steps)
    assert [len(run.outcomes) for run in have] == [len(run.outcomes) for run in want]
    assert len({tuple(run.answer) for run in have}) > 6


def test_no_admitted_token_is_masked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a filling for every canvas, no method masks what stands; the lookahead does."""
    remasked = {METHOD: 0, "lookahead": 0}
    remask = Canvas.remask
    current = METHOD

    def counted(canvas: Canvas, positions: Any) -> None:
        at = list(positions)
        remasked[current] += len(at)
        remask(canvas, at)

    monkeypatch.setattr(Canvas, "remask", counted)
    for current in remasked:
        requests = [
            asked(WordConstraint(LANGUAGE, END), 6, [current, EAGER], seed=seed, temperature=2.0)
            for seed in range(60)
        ]
        drive(host(LAW, 8), LAW, requests)
    assert remasked["lookahead"] > 0
    assert remasked[METHOD] == 0


def letters(grammar: str) -> GrammarConstraint:
    """Return a constraint on texts of a model's first tokens, each a letter."""
    spelled = [bytes([ord("A") + i]) if i != END else b"" for i in range(VOCAB)]
    table = build_table(parse(grammar))
    return GrammarConstraint(LoadedGrammar(table, make_vocabulary(spelled, [END])))


def test_tokens_stand_far_from_the_prefix() -> None:
    """Where more draws are illegal than a lookahead replaces, what is right behind them stands."""
    grammar = "root ::= ([AB] [CD]){6} [A-E]{6} [A-T]{6}"
    passes = {}
    for method in (METHOD, "lookahead"):
        requests = [
            asked(letters(grammar), 24, [method, EAGER], seed=seed, temperature=1.0)
            for seed in range(20)
        ]
        runs = drive(host(LAW, 32), LAW, requests)
        assert {len(run.answer) for run in runs} == {24}
        passes[method] = sum(len(run.outcomes) for run in runs)
    assert passes[METHOD] < passes["lookahead"]


class Unknowing(WordConstraint):
    """Never knows whether gaps can be filled."""

    def fill_gaps(self, pieces: Sequence[int | Gap]) -> GapFilling:
        return GapFilling(exists=None)


def test_what_is_unknown_is_left_to_the_lookahead() -> None:
    made = []
    for kind, method in ((Unknowing, METHOD), (WordConstraint, "lookahead")):
        requests = [asked(kind(LANGUAGE, END), 6, [method, EAGER], seed=s) for s in range(40)]
        made.append(drive(host(LAW, 8), LAW, requests))
    assert outcomes(made[0])[:5] == outcomes(made[1])[:5]


def test_drafts_and_company_change_nothing() -> None:
    def requests(*more: str) -> list[DecodeRequest]:
        return [
            asked(load(*GRAMMARS[0]), 40, [METHOD, "static", *more], end=EOS, seed=seed)
            for seed in range(4)
        ]

    plain = drive(host(BYTES, 16), BYTES, requests(), room=200)
    eager = drive(host(BYTES, 16), BYTES, requests("free-dave"), room=200)
    evicted = drive(host(BYTES, 16), BYTES, requests(), evict=frozenset({1, 3}))
    alone = [drive(host(BYTES, 16), BYTES, [each])[0] for each in requests()]
    assert outcomes(plain) == outcomes(eager) == outcomes(alone) == outcomes(evicted)


def test_refused_sets_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = 0
    fill = WordConstraint.fill_gaps

    def counted(self: WordConstraint, pieces: Sequence[int | Gap]) -> GapFilling:
        nonlocal checks
        checks += 1
        return fill(self, pieces)

    monkeypatch.setattr(WordConstraint, "fill_gaps", counted)
    word = tuple(range(5)) * 3
    (run,) = drive(
        host(HashLaw(vocab=VOCAB), 16),
        LAW,
        [asked(WordConstraint([word, word[::-1]], END), 15, [METHOD, EAGER], seed=3)],
    )
    assert tuple(run.answer) in (word, word[::-1])
    assert 0 < checks < 40
    assert np.max(run.state.emitted_steps) < 15
