"""Laws of the constraint of one sequence: mask, end, rollback, fork, and the way to an end."""

from __future__ import annotations

import json
import random
from itertools import product

import pytest
import torch

from plait.decoders.constrained.compile import compile_constraint, lower
from plait.decoders.constrained.grammar.gbnf import parse
from plait.decoders.constrained.grammar.json_text import ENDLESS_LEVELS
from plait.decoders.constrained.load import ConstraintLoader, LoadedConstraint
from plait.decoders.constrained.matcher import GrammarConstraint
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintKind,
    ConstraintLimits,
    ConstraintSpec,
)
from plait.decoders.constrained.vocabulary import Vocabulary, make_vocabulary
from plait.kernels.grammar import DEAD, UNREACHABLE
from plait.kernels.grammar.tails import Tails, tokens_of
from tests.fixtures.constraint_vocabularies import (
    BYTES_AND_PIECES,
    EOS,
    automaton_of,
    byte_tokens,
    load,
    matches,
    spell,
    walk,
)

LIMITS = ConstraintLimits()
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["ab", "abc", "é"]}, "minItems": 1},
        "more": {"type": "object", "additionalProperties": {"type": "number"}},
    },
    "required": ["name", "tags"],
}
SPECS: list[tuple[ConstraintKind, str]] = [
    ("json_object", ""),
    ("json_schema", json.dumps(SCHEMA)),
    ("json_schema", json.dumps({"type": "string", "minLength": 3, "maxLength": 33})),
    ("json_schema", json.dumps({"type": "string", "pattern": "^[a-c]{2,40}$"})),
    ("regex", r"(ab|abc)*c{0,35}[€-₯]?"),
    ("regex", "([ab]{0,33}c){0,32}(ab)?c*"),
    ("grammar", 'root ::= "[" root* "]" | [a-c]{1,3}'),
    ("grammar", 'root ::= [ab]{0,32} x* "."\nx ::= "ab" | [ac]{32,34} "b"'),
    ("choice", '["yes", "no", "not sure"]'),
]


def _legal(constraint: LoadedConstraint, *, words: int = 9) -> list[int]:
    bitmask = torch.full((3, words), -1, dtype=torch.int32)
    constraint.fill_bitmask(bitmask, 1)
    row = [word & 0xFFFFFFFF for word in bitmask[1].tolist()]
    return [32 * i + bit for i, word in enumerate(row) for bit in range(32) if word >> bit & 1]


def _random_walk(constraint: GrammarConstraint, draw: random.Random, steps: int) -> list[int]:
    """Accept up to `steps` random tokens, content rather than blanks."""
    taken: list[int] = []
    for _ in range(steps):
        legal = [t for t in _legal(constraint) if t != EOS]
        if not legal:
            break
        taken.append(draw.choice([t for t in legal if not spell([t]).isspace()] or legal))
        assert constraint.accept_token(taken[-1])
    return taken


@pytest.mark.parametrize(("kind", "text"), SPECS)
def test_a_token_is_accepted_exactly_when_its_bit_is_set(kind: ConstraintKind, text: str) -> None:
    draw = random.Random(text)
    constraint = load(kind, text)

    for _ in range(12):
        want = []
        for token_id in range(len(BYTES_AND_PIECES.token_bytes) + 40):
            if constraint.accept_token(token_id):
                want.append(token_id)
                constraint.rollback(1)
        assert _legal(constraint) == want
        assert (EOS in want) == constraint.is_accepting()
        _random_walk(constraint, draw, 3)


@pytest.mark.parametrize(("kind", "text"), SPECS)
def test_the_mask_is_the_automaton(kind: ConstraintKind, text: str) -> None:
    """What is legal is what can be stepped byte by byte, counts near their ends included."""
    automaton = automaton_of(lower(ConstraintSpec(kind, text), LIMITS))
    draw = random.Random(text)
    for _ in range(4):
        constraint = load(kind, text)
        taken = _random_walk(constraint, draw, draw.randrange(60))
        state = walk(automaton, spell(taken))
        want = [
            token_id
            for token_id, spelling in enumerate(BYTES_AND_PIECES.token_bytes)
            if spelling and walk(automaton, spelling, state) != DEAD
        ]
        assert [t for t in _legal(constraint) if t != EOS] == want
        assert automaton.is_accepting(state) == constraint.is_accepting()


@pytest.mark.parametrize(("kind", "text"), SPECS)
def test_following_the_closing_tokens_completes_the_text(kind: ConstraintKind, text: str) -> None:
    draw = random.Random(text)
    for _ in range(10):
        constraint = load(kind, text)
        _random_walk(constraint, draw, draw.randrange(50))
        closing = list(constraint.closing_tokens())
        assert constraint.min_tokens() == len(closing)
        for i, token_id in enumerate(closing):
            assert constraint.accept_token(token_id)
            assert constraint.min_tokens() <= len(closing) - i - 1
        assert constraint.is_accepting()


@pytest.mark.parametrize(("kind", "text"), SPECS)
def test_forced_tokens_leave_only_the_spelling_open(kind: ConstraintKind, text: str) -> None:
    """All legal tokens are prefixes of the forced text, and what has no alternative is forced."""
    draw = random.Random(text)
    for _ in range(20):
        constraint = load(kind, text)
        _random_walk(constraint, draw, draw.randrange(40))
        legal = _legal(constraint)
        forced = list(constraint.forced_tokens())
        lone = len(legal) == 1 and not _is_outgrown(spell(legal))
        assert not lone or forced[:1] == legal
        while forced:
            ahead = spell(forced)
            assert all(ahead.startswith(spell([token_id])) for token_id in _legal(constraint))
            assert not constraint.is_accepting()
            assert constraint.accept_token(forced.pop(0))
        for token_id in constraint.boundary_tokens():
            assert not constraint.is_accepting()
            assert constraint.accept_token(token_id)


def _is_outgrown(text: bytes) -> bool:
    return any(t.startswith(text) and t != text for t in BYTES_AND_PIECES.token_bytes)


def test_a_key_is_forced_up_to_where_tokens_reach_over_it() -> None:
    keys = {key: {"const": 1} for key in ("abc", "é")}
    constraint = load("json_schema", json.dumps({"properties": keys, "required": list(keys)}))
    assert list(constraint.forced_tokens()) == []  # "{" or the longer '{"'
    assert spell(list(constraint.boundary_tokens())) == b"{"
    assert constraint.accept_token(BYTES_AND_PIECES.token_of[b'{"'])
    assert spell(list(constraint.forced_tokens())) == b"abc"  # '":' may go on with a blank
    assert spell(list(constraint.boundary_tokens())) == b'":'
    for token_id in byte_tokens('abc":1,"'):
        assert constraint.accept_token(token_id)
    assert list(constraint.forced_tokens()) == byte_tokens("é")
    assert constraint.accept_token(0xC3)
    assert list(constraint.forced_tokens()) == [0xA9]


@pytest.mark.parametrize(("kind", "text"), SPECS[:3])
@pytest.mark.parametrize("spare", range(4))
def test_every_answer_fits_a_budget_that_one_fits(
    kind: ConstraintKind, text: str, spare: int
) -> None:
    """The host's rule: never take a token after which the end is out of reach."""
    draw = random.Random(spare)
    for _ in range(10):
        constraint = load(kind, text)
        left = constraint.min_tokens() + spare
        while left and not constraint.is_terminated():
            left -= 1
            if not _advance_within(constraint, draw, left):
                break
        assert constraint.is_accepting()


def _advance_within(constraint: GrammarConstraint, draw: random.Random, left: int) -> bool:
    """Accept a random token after which `left` tokens are enough; False: only the end is left."""
    token_id = draw.choice([t for t in _legal(constraint) if t != EOS])
    assert constraint.accept_token(token_id)
    if constraint.min_tokens() <= left:
        return True
    constraint.rollback(1)
    closing = constraint.closing_tokens()
    return bool(closing) and constraint.accept_token(closing[0])


def test_rollback_and_fork_leave_no_trace() -> None:
    draw = random.Random(7)
    constraint = load("json_schema", json.dumps(SCHEMA))
    _random_walk(constraint, draw, 12)
    want = (_legal(constraint), constraint.min_tokens())

    other = constraint.fork()
    taken = _random_walk(other, draw, 9)
    other.min_tokens()
    other.rollback(len(taken))

    assert (_legal(other), other.min_tokens()) == want
    assert (_legal(constraint), constraint.min_tokens()) == want


def test_the_end_is_legal_once_and_can_be_taken_back() -> None:
    constraint = load("choice", '["no", "not"]')
    assert not constraint.accept_token(EOS)
    for token_id in byte_tokens("no"):
        assert constraint.accept_token(token_id)
    assert constraint.is_accepting() and not constraint.is_terminated()

    assert constraint.accept_token(EOS)
    assert constraint.is_terminated() and _legal(constraint) == []
    assert not constraint.accept_token(ord("t")) and not constraint.accept_token(EOS)

    constraint.rollback(1)
    assert constraint.accept_token(ord("t"))
    assert constraint.is_terminated() and constraint.min_tokens() == 0


def test_logits_wider_than_the_vocabulary_are_never_legal() -> None:
    assert _legal(load("regex", "(a|b)+"), words=14) == [ord("a"), ord("b"), 261, 262][:2] + [
        t for t in _legal(load("regex", "(a|b)+")) if t > EOS
    ]


def test_long_tokens_are_never_legal() -> None:
    vocabulary = make_vocabulary([*(bytes([b]) for b in range(256)), b"", b" " * 33], [EOS])
    done = compile_constraint(ConstraintSpec("regex", " *"), vocabulary, LIMITS)
    constraint = ConstraintLoader(vocabulary).load("", done.table)

    assert _legal(constraint) == [ord(" "), EOS]


@pytest.mark.parametrize(
    ("kind", "text", "max_whitespace", "most"),
    [
        (*SPECS[0], 0, 0),
        (*SPECS[1], 0, 0),
        (*SPECS[0], 2, 1 + 4 * ENDLESS_LEVELS),
        (*SPECS[1], 2, 1 + 4 * 2),
    ],
)
def test_blanks_never_run_on(
    kind: ConstraintKind, text: str, max_whitespace: int, most: int
) -> None:
    """Liveness: whoever loves blanks must write something else after an indentation's worth."""
    limits = ConstraintLimits(max_whitespace=max_whitespace)
    grammar = lower(ConstraintSpec(kind, text), limits)
    automaton = automaton_of(grammar)
    draw = random.Random(text)
    for _ in range(20):
        state = automaton.start
        run, longest, inside = 0, 0, False
        for _ in range(200):
            blanks = [b for b in b" \n" if automaton.step(state, b) != DEAD]
            if not inside and blanks:
                run += 1
                state = automaton.step(state, draw.choice(blanks))
                continue
            longest, run = max(longest, run), 0
            closing = spell(automaton.closing_tokens(state))
            if not closing:
                break
            inside ^= closing[0] == ord('"')
            state = automaton.step(state, closing[0])
        assert automaton.is_final(state)
        assert longest <= most


def test_nothing_follows_the_root() -> None:
    constraint = load("json_object", "")
    for token_id in byte_tokens("{}"):
        assert constraint.accept_token(token_id)

    assert constraint.is_terminated() and _legal(constraint) == [EOS]


def _fewest_tokens(grammar: str, vocabulary: Vocabulary, limit: int) -> int:
    """Return the fewest tokens of a text of the grammar, by trying all of them."""
    automaton = automaton_of(parse(grammar), vocabulary)
    spelling = [t for t in vocabulary.token_bytes if t]
    for count in range(limit + 1):
        for tokens in product(spelling, repeat=count):
            if matches(automaton, b"".join(tokens)):
                return count
    raise AssertionError("no text within the limit")


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "abcabc"',
        'root ::= "a" [bc]{3,5} "d"',
        'root ::= ("ab" | "c") root | "d"',
        'root ::= "a" root "b" | "cd"',
        'root ::= ("a" | "bcd") "d"+',
    ],
)
def test_the_count_is_the_minimum_on_small_grammars(grammar: str) -> None:
    vocabulary = make_vocabulary([b"a", b"b", b"c", b"d", b"ab", b"abc", b"dd", b"bb", b""], [8])
    automaton = automaton_of(parse(grammar), vocabulary)

    assert automaton.num_closing(automaton.start) == _fewest_tokens(grammar, vocabulary, 5)


def test_the_count_is_a_bound_where_alternatives_would_share_a_token() -> None:
    """Further on, alternatives are compared each by itself: "c" is cheaper, but "ab" + "c" is."""
    vocabulary = make_vocabulary([b"a", b"b", b"c", b"abc", b"q", b""], [5])
    grammar = 'root ::= "q" x "c"\nx ::= "c" | "ab"'

    assert _fewest_tokens(grammar, vocabulary, 3) == 2
    automaton = automaton_of(parse(grammar), vocabulary)
    assert automaton.num_closing(automaton.start) == 3


def test_segmentation_is_shortest() -> None:
    vocabulary = make_vocabulary([b"a", b"b", b"ab", b"aba", b"bab", b"babab"], [])
    draw = random.Random(1)
    for _ in range(200):
        text = bytes(draw.choices(b"ab", k=draw.randrange(12)))
        fewest = [0] + [UNREACHABLE] * len(text)
        for end in range(1, len(text) + 1):
            ways = [t for t in vocabulary.token_bytes if text[:end].endswith(t)]
            fewest[end] = 1 + min(fewest[end - len(t)] for t in ways)
        tails = Tails(vocabulary.token_of)
        tail = tails.prepend(text, tails.end)
        assert tail.tokens == fewest[-1] == len(tokens_of(tail))
        assert spell(tokens_of(tail), vocabulary) == text


@pytest.mark.parametrize(
    ("kind", "text", "want"),
    [
        ("choice", "[]", "1 to 10000 strings"),
        ("choice", '"a"', "a list of strings"),
        ("choice", '["\\ud800"]', "surrogate"),
        ("json_schema", "{", "not valid JSON"),
        ("json_schema", '{"const": NaN}', "not valid JSON"),
        ("json_schema", '{"const": 1e999}', "not valid JSON"),
        ("json_schema", "3", "an object or a boolean"),
        ("regex", r"(a)\1", "back references"),
        ("regex", "[^\\s\\S]", "no answer can satisfy it"),
        ("grammar", "root ::= x", "line 1, column 10"),
        ("grammar", 'root ::= root "a" | "b"', "left-recursive"),
        ("regex", "(a{100}){100}", "more than 8192 tokens"),
    ],
)
def test_what_cannot_be_compiled_is_said(kind: ConstraintKind, text: str, want: str) -> None:
    with pytest.raises(ConstraintError, match=want):
        compile_constraint(ConstraintSpec(kind, text), BYTES_AND_PIECES, LIMITS)
