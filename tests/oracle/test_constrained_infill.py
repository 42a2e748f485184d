"""Texts with holes under a constraint: every result is legal, whatever the methods select."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.contract.registry import MethodError
from plait.decoders.diffusion.constraints.infill import constrained_span
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.canvas_driver import Run, decode_request, drive, start
from tests.fixtures.constrained_canvases import VOCAB, host
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, GRAMMARS, load, spell
from tests.fixtures.hash_model import HashLaw
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

LAW = HashLaw(vocab=VOCAB)
BYTES = HashLaw(vocab=len(BYTES_AND_PIECES.token_bytes) + 1, radius=3)
EAGER = {"name": "threshold", "threshold": 0.05}
METHODS: Sequence[Any] = (
    "auto",
    ["static"],
    [EAGER],
    ["cfg-intersection", "entropy-bound"],
    ["random"],
    [EAGER, "free-dave"],
    [EAGER, "dual-cache"],
    ["eotp", EAGER],
)
Template = Sequence[Sequence[int] | int]  # given tokens, or the length of a hole
SPECIAL = 7  # a token without text


@dataclass(frozen=True)
class Filled:
    """A result: the whole text, without padding."""

    tokens: list[int]
    run: Run


def request_of(
    template: Template, constraint: Constraint, unmasker: Any, *, seed: int = 0, end: int = END
) -> DecodeRequest:
    prompt, holes = list[int](), list[tuple[int, int]]()
    for part in template:
        if isinstance(part, int):
            holes.append((len(prompt), len(prompt) + part))
            prompt += [0] * part
        else:
            prompt += part
    made = decode_request(
        prompt,
        0,
        {"unmasker": unmasker},
        params=SamplingParams(temperature=seed % 3, seed=seed),
        stops=frozenset({end}),
        extras=PromptExtras(holes=holes),
    )
    return replace(made, constraint=constraint)


def filled(template: Template, run: Run, end: int) -> Filled:
    own, tokens = iter(run.answer), list[int]()
    for part in template:
        tokens += [next(own) for _ in range(part)] if isinstance(part, int) else part
    assert list(own) == []
    return Filled([token for token in tokens if token != end], run)


def random_template(word: Sequence[int], draw: random.Random) -> list[list[int] | int]:
    """Return a word with holes in it, as long as what they hide or longer."""
    template: list[list[int] | int] = [[SPECIAL]]
    for token in word:
        hidden = draw.random() < 0.5
        if hidden and isinstance(template[-1], int):
            template[-1] += 1 + draw.randrange(2)
        elif hidden:
            template.append(1 + draw.randrange(2))
        elif isinstance(template[-1], list):
            template[-1].append(token)
        else:
            template.append([token])
    return [*template, 1] if len(template) == 1 else template


@pytest.mark.parametrize("unmasker", METHODS, ids=str)
def test_every_filling_is_a_word(unmasker: Any) -> None:
    draw = random.Random(5)
    templates = [random_template(draw.choice(LANGUAGE), draw) for _ in range(40)]
    requests = [
        request_of(each, WordConstraint(LANGUAGE, END), unmasker, seed=seed)
        for seed, each in enumerate(templates)
        if any(isinstance(part, int) for part in each)
    ]
    templates = [each for each in templates if any(isinstance(part, int) for part in each)]
    assert len(requests) > 25
    for template, run in zip(
        templates, drive(host(LAW, 4, full=True), LAW, requests, room=64), strict=True
    ):
        have = filled(template, run, END)
        assert tuple(have.tokens[1:]) in LANGUAGE, template
        assert run.finish == "length"


DOCUMENT = '{"name": "abcab", "age": 36, "tags": ["ab", "abc"]}'


@pytest.mark.parametrize("unmasker", [METHODS[0], METHODS[2], METHODS[3]], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_documents_with_several_holes_parse(unmasker: Any, seed: int) -> None:
    """Holes anywhere in a document, also inside of keys and across brackets."""
    draw = random.Random(seed)
    templates: list[list[list[int] | int]] = []
    for _ in range(6):
        cuts = sorted(draw.sample(range(1, len(DOCUMENT)), 6))
        parts = [DOCUMENT[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        templates.append(
            [len(part) + draw.randrange(3) if i % 2 else list(part.encode())
             for i, part in enumerate(parts)]
        )  # fmt: skip
    requests = [
        request_of(each, load(*GRAMMARS[0]), unmasker, seed=i, end=EOS)
        for i, each in enumerate(templates)
    ]
    runs = drive(host(BYTES, 16, full=True), BYTES, requests, room=64)
    for template, run in zip(templates, runs, strict=True):
        text = spell(filled(template, run, 0).tokens)
        answer = json.loads(text)
        assert set(answer) == {"name", "age", "tags"}, text
        assert 0 <= answer["age"] <= 150


def test_the_text_is_what_stands_between_special_tokens() -> None:
    ids = [1, SPECIAL, 2, 3, 0, 0, 4, SPECIAL, 1]
    found = constrained_span(WordConstraint(LANGUAGE, END), ids, [4, 5], frozenset({END}))
    assert (found.start, found.stop) == (2, 7)
    found = constrained_span(WordConstraint(LANGUAGE, END), [2, 0, 0], [1, 2], frozenset({END}))
    assert (found.start, found.stop) == (0, 3)


def refusal(template: Template, unmasker: Any) -> MethodError:
    with pytest.raises(MethodError) as caught:
        start(
            host(LAW, 4, full=True),
            request_of(template, WordConstraint(LANGUAGE, END), unmasker),
        )
    return caught.value


def test_what_can_not_be_filled_is_refused() -> None:
    error = refusal([[SPECIAL, 3], 4], "auto")
    assert error.param == "infill"
    assert "No tokens in the holes" in str(error)
    assert "No tokens" in str(refusal([[2], 1, [SPECIAL], 1], "auto"))  # no text has such a token


@pytest.mark.parametrize("name", ["dingo", "marginal", "lookahead"])
def test_methods_that_go_from_the_left_are_refused(name: str) -> None:
    error = refusal([[2, 3], 2], [name])
    assert error.param == "decoding.unmasker"
    assert name in str(error)


def test_results_depend_on_their_request_alone() -> None:
    draw = random.Random(6)
    templates = [random_template(draw.choice(LANGUAGE), draw) for _ in range(12)]
    templates = [each for each in templates if any(isinstance(part, int) for part in each)]

    def requests() -> list[DecodeRequest]:
        return [
            request_of(each, WordConstraint(LANGUAGE, END), [EAGER], seed=seed)
            for seed, each in enumerate(templates)
        ]

    together = drive(host(LAW, 4, full=True), LAW, requests())
    evicted = drive(host(LAW, 4, full=True), LAW, requests(), evict=frozenset({1, 2}))
    alone = [drive(host(LAW, 4, full=True), LAW, [each])[0] for each in requests()]
    assert [run.answer for run in together] == [run.answer for run in alone]
    assert [run.answer for run in together] == [run.answer for run in evicted]
