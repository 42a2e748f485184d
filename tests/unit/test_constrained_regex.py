"""Regular expressions: the reader against Python's, the algebra against set algebra."""

from __future__ import annotations

import random
import re
from itertools import product

import pytest

from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.regex import Expr
from plait.decoders.constrained.grammar.regex_parser import (
    RegexError,
    parse_full_match,
    parse_search,
)

PATTERNS = [
    "^a|b$",
    "(^$)|(^[a-f]{2})",
    "a.c",
    r"^(?:[a-z]{2,3}\.)+x?$",
    r"[^\s-]+",
    r"\d\d",
    "^$|^x",
    "[a-zA-z]{1}",
    "x{2,}?",
    "^([^,]|$)",
    "(a|^b)c*",
    r"\x61\u0062",
]
ALPHABET = "abcxz.,1 -{2}]"
SHORT = [*"ab", "", *map("".join, product("ab", repeat=2)), *map("".join, product("ab", repeat=3))]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_search_finds_what_python_finds(pattern: str) -> None:
    draw = random.Random(pattern)
    have = parse_search(pattern)

    for _ in range(400):
        text = "".join(draw.choices(ALPHABET, k=draw.randrange(7)))
        assert regex.matches(have, text) == bool(re.search(pattern, text)), text


LOOPS = [
    "^(a(,|$))*$",
    "^([^,]+(,|$)){3,}$",
    "(a($|,)){2}",
    "^(a$|b)+",
    "(b|a$)*,",
    "^(?:(a|$)b?){2,}$",
    "^(?:a(?:$|,){2})*$",
    "(?:(?:a|b$)+,)*$",
    "^(?:a(?:b|$)*)+$",
    "^((?!ab).)*$",
    "^((?!ab)(?!b,).)+$",
]


@pytest.mark.parametrize("pattern", LOOPS)
def test_loops_whose_rounds_look_ahead_find_what_python_finds(pattern: str) -> None:
    texts = ["".join(row) for length in range(7) for row in product("ab,", repeat=length)]
    have = parse_search(pattern)

    assert [t for t in texts if regex.matches(have, t) != bool(re.search(pattern, t))] == []


@pytest.mark.parametrize("pattern", ["a|b", "^a+$", "(ab)*", "[ab]{2}"])
def test_whole_matches_from_end_to_end(pattern: str) -> None:
    have = parse_full_match(pattern)

    for text in SHORT:
        assert regex.matches(have, text) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        (r"(a)\1", "back references"),
        (r"(?<n>a)\k<n>", "back references"),
        ("(?i)a", "inline flags"),
        ("(^a)*", "inside a repetition"),
        ("(a(?=b))*", "inside a repetition"),
        ("((?!a)bc)*$", "inside a repetition"),
        (r"((?!\b)a)*$", "inside a repetition"),
        ("^*a", "cannot be repeated"),
        ("(a", "not closed"),
        ("a)", "closes nothing"),
        ("[a", "too early"),
        ("a**", "two quantifiers"),
        ("*a", "nothing to repeat"),
        (r"\y", "unknown escape"),
        ("a{2,1}", "not a repetition"),
        ("[b-a]", "backwards"),
        ("a{,2}", "different dialects"),
        ("[]a]", "different dialects"),
    ],
)
def test_what_is_not_supported_is_named(pattern: str, want: str) -> None:
    with pytest.raises(RegexError) as have:
        parse_search(pattern)

    assert want in str(have.value)


def _texts(expr: Expr) -> set[str]:
    return {text for text in SHORT if regex.matches(expr, text)}


def test_the_algebra_is_set_algebra() -> None:
    left, right = parse_search("^a"), parse_search("b$")

    assert _texts(regex.intersection(left, right)) == _texts(left) & _texts(right)
    assert _texts(regex.complement(left)) == set(SHORT) - _texts(left)
    assert _texts(regex.union([left, right])) == _texts(left) | _texts(right)


def test_emptiness_is_decided() -> None:
    odd = parse_full_match("a(aa)*")
    even = parse_full_match("(aa)*")

    assert regex.is_empty_set(regex.intersection(odd, even), max_states=50)
    assert not regex.is_empty_set(
        regex.intersection(odd, parse_full_match("a{5,9}")), max_states=50
    )
    with pytest.raises(regex.TooManyStates):
        regex.is_empty_set(
            regex.intersection(parse_full_match("a{50}"), parse_full_match("a{49}")), max_states=20
        )


@pytest.mark.parametrize(
    ("pattern", "want"), [("^a{2,5}b?$", (2, 6)), ("^(ab|c)$", (1, 2)), ("a", (1, None))]
)
def test_the_span_of_lengths(pattern: str, want: tuple[int, int | None]) -> None:
    assert regex.length_bounds(parse_search(pattern)) == want


@pytest.mark.parametrize("pattern", ["[ab]+", "a[ab]*b", "(ab){2}a*", "a{0,2}"])
@pytest.mark.parametrize(("low", "high"), [(0, 2), (2, None), (1, 3), (3, 3)])
def test_a_fitted_expression_is_the_intersection(pattern: str, low: int, high: int | None) -> None:
    expr = parse_full_match(pattern)
    have = regex.fitted(expr, low, high)

    assert have is not None
    want = regex.intersection(expr, regex.times(regex.ANY_CHAR, low, high))
    assert _texts(have) == _texts(want)


@pytest.mark.parametrize("pattern", ["a*b*", "(a|bb)*", "a|bb", "abc"])
def test_lengths_that_no_single_loop_decides_are_not_fitted(pattern: str) -> None:
    assert regex.fitted(parse_full_match(pattern), 1, 2) is None
