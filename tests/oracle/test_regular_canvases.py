"""Answers under `dingo` and `marginal`: drawn together from what a finite automaton accepts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from plait.decoders.constrained import token_dfa
from plait.decoders.constrained.grammar.gbnf import parse
from plait.decoders.constrained.matcher import GrammarConstraint, LoadedGrammar
from plait.decoders.constrained.table import build_table
from plait.decoders.constrained.vocabulary import make_vocabulary
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.registry import MethodError
from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.constraints.posterior import transitions_of
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.canvas_driver import Run, decode_request, drive, start
from tests.fixtures.constrained_canvases import VOCAB, asked, host
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, GRAMMARS, load, spell
from tests.fixtures.hash_model import HashLaw
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

LAW = HashLaw(vocab=VOCAB, coupling=0.3)
BYTES = HashLaw(vocab=len(BYTES_AND_PIECES.token_bytes) + 1, radius=3)
METHODS = ("dingo", "marginal")
EAGER = {"name": "threshold", "threshold": 0.0}
FLAT = {
    "type": "object",
    "properties": {
        "a": {"enum": ["ab", "abc", 1]},
        "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["a"],
    "additionalProperties": False,
}
REGULAR = [GRAMMARS[3], ("json_schema", json.dumps(FLAT)), ("regex", "(ab{0,3}c|[a-c]{2}){0,4}")]


@pytest.fixture
def no_remasking(monkeypatch: pytest.MonkeyPatch) -> None:
    remask: Callable[[Canvas, Any], None] = Canvas.remask

    def checked(canvas: Canvas, positions: Any) -> None:
        own = list(positions)
        assert own == []
        remask(canvas, own)

    monkeypatch.setattr(Canvas, "remask", checked)


@pytest.mark.usefixtures("no_remasking")
@pytest.mark.parametrize(("kind", "text"), REGULAR)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("selector", ["static", EAGER, "entropy-bound", "factor"], ids=str)
def test_answers_match_their_form_and_nothing_is_masked_again(
    kind: Any, text: str, method: str, selector: Any
) -> None:
    shortest = max(load(kind, text).min_tokens(), 1)
    for full in (False, True):
        requests = [
            asked(load(kind, text), shortest + spare, [method, selector], end=EOS, seed=spare,
                  temperature=spare % 3)
            for spare in (0, 1, 2, 12)
        ]  # fmt: skip
        for run in drive(host(BYTES, 8, full=full), BYTES, requests):
            judge = load(kind, text)
            assert all(judge.accept_token(token) for token in run.answer), spell(run.answer)
            assert judge.is_accepting(), spell(run.answer)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unmasker", ["wino", "eotp", "credit", "free-dave"])
def test_other_parts_go_with_them(method: str, unmasker: str) -> None:
    requests = [
        asked(load(*REGULAR[1]), 40, [method, unmasker], end=EOS, seed=seed) for seed in range(3)
    ]
    for run in drive(host(BYTES, 8), BYTES, requests, room=64):
        assert json.loads(spell(run.answer))["a"] in ("ab", "abc", 1)


def letters(grammar: str) -> GrammarConstraint:
    spelled = [bytes([ord("A") + i]) if i != END else b"" for i in range(VOCAB)]
    table = build_table(parse(grammar))
    return GrammarConstraint(LoadedGrammar(table, make_vocabulary(spelled, [END])))


WORDS = 'root ::= "AB" | "BB" | "CA" | "C" [AB] [AB]'


def first_laws(request: DecodeRequest, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the probabilities [count, vocab] of the positions behind a prompt."""
    text, at = list(request.text.prompt), np.arange(count)
    seen = np.array([*text, *[LAW.mask_id] * 4])  # the block is longer than the answer
    logits = LAW.logits(at + len(text), seen).astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray[Any, np.dtype[np.float64]] = odds / odds.sum(axis=1, keepdims=True)
    return probabilities


def posterior_of(p: np.ndarray[Any, np.dtype[np.float64]]) -> dict[tuple[int, ...], float]:
    """Return the law of the answers that `WORDS` allows, by enumeration; ends are counted in."""
    weights = {}
    for text in product(range(3), repeat=3):
        for n in (2, 3):
            judge, word = letters(WORDS), text[:n]
            if all(judge.accept_token(token) for token in word) and judge.is_accepting():
                ended = p[n][END] if n < len(p) else 1.0
                weights[word] = float(np.prod(p[np.arange(n), word])) * float(ended)
    total = sum(weights.values())
    return {word: weight / total for word, weight in weights.items()}


def aligned(
    seed: int, method: str, temperature: float, selector: Any = EAGER, prompt: int = 1
) -> DecodeRequest:
    """Return a request whose answer of three tokens begins a block of four."""
    made = decode_request(
        [prompt, 2, 3, 4],
        3,
        {"unmasker": [method, selector]},
        params=SamplingParams(temperature=temperature, seed=seed),
        stops=frozenset({END}),
    )
    return replace(made, constraint=letters(WORDS))


def test_one_step_draws_exactly_from_what_is_accepted() -> None:
    """Three positions unmasked at once, 3,000 seeds; frequencies within 5 standard errors."""
    count = 3000
    requests = [aligned(seed, "marginal", 1.0) for seed in range(count)]
    law = posterior_of(first_laws(requests[0], 3))
    found: dict[tuple[int, ...], int] = {}
    for run in drive(host(LAW, 4), LAW, requests):
        assert len(run.outcomes) == 1
        found[tuple(run.answer)] = found.get(tuple(run.answer), 0) + 1
    assert found.keys() <= law.keys()
    assert sum(p > 0.01 for p in law.values()) > 3
    for word, p in law.items():
        assert abs(found.get(word, 0) / count - p) < 5 * (p * (1 - p) / count) ** 0.5, word


@pytest.mark.parametrize("method", METHODS)
def test_without_a_temperature_the_best_text_is_taken(method: str) -> None:
    request = aligned(0, method, 0.0)
    (run,) = drive(host(LAW, 4), LAW, [request])
    law = posterior_of(first_laws(request, 3))
    assert tuple(run.answer) == max(law, key=lambda word: law[word])


def test_marginals_are_what_a_selector_reads() -> None:
    """One token a step: the first unmasked is the one of the highest constrained marginal."""
    for seed in range(6):
        request = aligned(seed, "marginal", 0.0, "static", prompt=seed)
        (run,) = drive(host(LAW, 4), LAW, [request])
        law = posterior_of(first_laws(request, 3))
        best = max(law, key=lambda word: law[word])
        sure = [
            sum(p for word, p in law.items() if word[i : i + 1] == best[i : i + 1])
            for i in range(len(best))
        ]
        steps = run.state.emitted_steps[: len(best)]
        assert steps[int(np.argmax(sure))] == 1 or len(best) < 3


@pytest.mark.parametrize("method", METHODS)
def test_what_accepts_all_texts_changes_no_draw(method: str) -> None:
    requests = [
        asked(letters("root ::= [A-T]*"), 16, [method, "random"], seed=s, temperature=s % 3 / 2)
        for s in range(9)
    ]
    free = [asked(letters("root ::= [A-T]*"), 16, ["random"], seed=s, temperature=s % 3 / 2)
            for s in range(9)]  # fmt: skip
    have = drive(host(LAW, 4), LAW, requests)
    want = drive(host(LAW, 4), LAW, [replace(each, constraint=None) for each in free])
    assert answers(have) == answers(want)


def answers(runs: Sequence[Run]) -> list[list[int]]:
    return [run.answer for run in runs]


@pytest.mark.parametrize("method", METHODS)
def test_what_no_finite_automaton_reads_is_refused_with_the_reason(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(constraint: Any) -> str:
        with pytest.raises(MethodError) as caught:
            start(host(BYTES, 8), asked(constraint, 20, [method], end=EOS))
        assert caught.value.param == "decoding.unmasker"
        return str(caught.value)

    assert "recursive" in refusal(load("json_object", ""))
    assert "more than its grammar" in refusal(WordConstraint(LANGUAGE, END))
    monkeypatch.setattr(token_dfa, "MAX_STATES", 5)
    message = refusal(load("regex", "[ab]{9,20}"))
    assert "over 5 states" in message
    assert "recursive" not in message


@pytest.mark.parametrize(("kind", "text"), REGULAR)
def test_the_automaton_of_tokens_accepts_what_its_grammar_does(kind: Any, text: str) -> None:
    draw = random.Random(4)
    constraint = load(kind, text)
    dfa = constraint.token_dfa()
    moves = transitions_of(dfa, frozenset({EOS}))
    for _ in range(60):
        judge, state, tokens = load(kind, text), 0, list[int]()
        while state != moves.end and len(tokens) < 12:
            own = slice(*moves.of_source[state : state + 2])
            legal = {t for t in range(EOS + 12) if judge.fork().accept_token(t)}
            assert set(moves.token[own].tolist()) == legal
            assert dfa.closing[state] == judge.min_tokens()
            assert dfa.accepting[state] == judge.is_accepting()
            if not legal:
                break
            tokens.append(draw.choice(sorted(legal)))
            assert judge.accept_token(tokens[-1])
            found = moves.walk(tokens)
            assert found is not None
            state = found
    assert moves.walk([255]) is None
