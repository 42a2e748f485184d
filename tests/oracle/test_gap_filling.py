"""Fillings of texts with gaps: legal, of the right lengths, and found wherever one exists."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import product

import pytest

from plait.decoders.constrained import gaps
from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.gaps import GapFiller
from plait.decoders.constrained.grammar.gbnf import parse
from plait.decoders.constrained.load import ConstraintLoader
from plait.decoders.constrained.matcher import GrammarConstraint, LoadedGrammar
from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec, JsonStyle
from plait.decoders.constrained.table import build_table
from plait.decoders.constrained.vocabulary import make_vocabulary
from plait.decoders.contract.constraint import Gap
from plait.kernels.grammar import network
from tests.fixtures.constraint_vocabularies import (
    BYTES_AND_PIECES,
    EOS,
    GRAMMARS,
    byte_tokens,
    load,
    spell,
)

Pieces = list[int | Gap]
OPEN = Gap(0, 60)
DOCUMENTS = (
    '{"a": [1, -2.5e3, true], "b": {"c": null, "d": ""}}',
    '{"k": "x\\"y\\u00e9", "é": [[], {}, [0]]}',
    '{"name": "Ada", "age": 36, "tags": ["ab", "é"]}',
)


def judged(constraint: GrammarConstraint, pieces: Sequence[int | Gap]) -> bool | None:
    """Return what is said of a text, after checking a filling."""
    have = constraint.fill_gaps(pieces)
    if not have.exists:
        return have.exists
    own = iter(have.tokens)
    tokens: list[int] = []
    for piece in pieces:
        filled = next(own) if isinstance(piece, Gap) else [piece]
        if isinstance(piece, Gap):
            assert piece.least <= len(filled) <= piece.most
        tokens += filled
    judge = constraint.fork()
    assert all(judge.accept_token(token) for token in tokens), spell(tokens)
    assert judge.is_accepting(), spell(tokens)
    return True


def test_whatever_is_cut_out_of_valid_json_can_be_filled() -> None:
    draw = random.Random(1)
    constraint = load("json_object", "")
    for document in DOCUMENTS:
        text = document.encode()
        for _ in range(60):
            a, b, c, d = sorted(draw.choices(range(len(text) + 1), k=4))
            pieces = [*text[:a], exactly(b - a), *text[b:c], exactly(d - c), *text[d:]]
            assert judged(constraint, [each for each in pieces if each != Gap(0, 0)]), pieces


def exactly(count: int) -> Gap:
    return Gap(count, count)


@pytest.mark.parametrize("mutation", ['{"a" }', "{]", '{"a": tru1}', '{"a":1,}', '}"'])
def test_what_no_json_holds_can_not_be_filled_around(mutation: str) -> None:
    constraint = load("json_object", "")
    assert judged(constraint, [*byte_tokens(mutation)]) is False
    if mutation != '}"':
        assert judged(constraint, [*byte_tokens(mutation), OPEN]) is False


@pytest.mark.parametrize(("kind", "text"), GRAMMARS)
def test_texts_of_every_kind_with_holes_can_be_filled(kind: str, text: str) -> None:
    """Walk through a grammar at random, then mask tokens of the text that came out."""
    draw = random.Random(2)
    holes = 0
    for _ in range(12):
        walker = load(kind, text)  # type: ignore[arg-type]
        tokens = random_text(walker, draw)
        masked = [draw.random() < 0.3 for _ in tokens]
        pieces = with_gaps(tokens, masked)
        holes += len([each for each in pieces if isinstance(each, Gap)])
        assert judged(load(kind, text), pieces)  # type: ignore[arg-type]
    assert holes > 3


def random_text(walker: GrammarConstraint, draw: random.Random) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < 30:
        legal = [t for t in range(EOS + 12) if t != EOS and walker.fork().accept_token(t)]
        if not legal or (walker.is_accepting() and draw.random() < 0.3):
            return tokens
        tokens.append(draw.choice(legal))
        assert walker.accept_token(tokens[-1])
    return [*tokens, *walker.closing_tokens()]


def with_gaps(tokens: Sequence[int], masked: Sequence[bool]) -> Pieces:
    pieces: Pieces = []
    for token, is_masked in zip(tokens, masked, strict=True):
        if is_masked and pieces and isinstance(pieces[-1], Gap):
            pieces[-1] = exactly(pieces[-1].least + 1)
        else:
            pieces.append(exactly(1) if is_masked else token)
    return pieces


AB = make_vocabulary([b"a", b"b", b"ab", b"bba", b""], [4])


def test_keys_in_any_order_never_count_as_impossible() -> None:
    """The network reads items any number of times, so it may not know, but does not say no."""
    draw = random.Random(5)
    properties = {name: {"type": "integer"} for name in ("a", "b", "c")}
    schema = {"type": "object", "properties": properties, "required": ["b"]}
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=JsonStyle(key_order="any"))
    done = compile_constraint(spec, BYTES_AND_PIECES, ConstraintLimits())
    constraint = ConstraintLoader(BYTES_AND_PIECES).load("", done.table)
    assert isinstance(constraint, GrammarConstraint)
    verdicts = []
    for text in ('{"b":1}', '{"c":1,"b":2}', '{"c":3,"a":-10,"b":2}'):
        for _ in range(8):
            tokens = byte_tokens(text)
            pieces = with_gaps(tokens, [draw.random() < 0.4 for _ in tokens])
            verdicts.append(judged(constraint, pieces))

    assert False not in verdicts
    assert True in verdicts
    assert judged(constraint, byte_tokens('{"d":1}')) is False
    assert judged(constraint, byte_tokens('{"b":1,"b":2}')) is not True


@pytest.mark.parametrize(
    "grammar", ['root ::= ("a" root "b")?', 'root ::= ("ab" | "bba" "a"?){1,3}', "root ::= [ab]{3}"]
)
def test_every_answer_agrees_with_all_texts_of_tokens(grammar: str) -> None:
    """Against every choice of tokens: gaps of tokens leave nothing unknown."""
    table = build_table(parse(grammar))
    constraint = GrammarConstraint(LoadedGrammar(table, AB))
    draw, counts = random.Random(3), {True: 0, False: 0}
    for _ in range(120):
        pieces = random_pieces(draw)
        want = any(is_word(constraint, text) for text in fillings(pieces))
        assert judged(constraint, pieces) == want, pieces
        counts[want] += 1
    assert min(counts.values()) > 15


def random_pieces(draw: random.Random) -> Pieces:
    pieces: Pieces = []
    for _ in range(draw.randrange(1, 4)):
        least = draw.randrange(3)
        pieces += [draw.randrange(4) for _ in range(draw.randrange(1, 3))]
        pieces.append(Gap(least, max(least + draw.randrange(2), 1)))
    return pieces[draw.randrange(2) :]


def fillings(pieces: Pieces) -> list[list[int]]:
    choices: list[list[tuple[int, ...]]] = []
    for piece in pieces:
        if isinstance(piece, Gap):
            sizes = range(piece.least, piece.most + 1)
            choices.append([own for n in sizes for own in product(range(4), repeat=n)])
        else:
            choices.append([(piece,)])
    return [[token for own in chosen for token in own] for chosen in product(*choices)]


def is_word(constraint: GrammarConstraint, tokens: Sequence[int]) -> bool:
    judge = constraint.fork()
    return all(judge.accept_token(token) for token in tokens) and judge.is_accepting()


def test_special_tokens_stand_in_no_text() -> None:
    assert load("json_object", "").fill_gaps([EOS, OPEN]).exists is False


def test_a_limit_and_an_inexact_lexeme_never_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, schema = "json_schema", json.dumps({"type": "string", "minLength": 3, "maxLength": 5})
    constraint = load(kind, schema)  # type: ignore[arg-type]
    table, automaton = constraint._grammar._table, constraint._grammar.automaton()
    monkeypatch.setattr(network, "MAX_LEXEME_STATES", 20)
    filler = GapFiller(table, BYTES_AND_PIECES)
    cases = ('"ab', 2, True), ('"ab', 1, True), ('"abcdef', 2, False), ("ab", 1, False)
    for text, count, want in cases:  # a single token writes {"
        pieces: Pieces = [*byte_tokens(text), exactly(count)]
        for each in (filler.fill(b"", pieces, automaton), constraint.fill_gaps(pieces)):
            assert each.exists in (want, None), pieces
    assert GapFiller(table, BYTES_AND_PIECES, max_items=3).fill(b"", [OPEN], automaton) == (
        gaps.UNKNOWN
    )
