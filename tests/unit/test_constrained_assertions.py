"""Anchors, look-arounds, word boundaries and Unicode categories, against Python's own engine."""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.regex import is_empty_set
from plait.decoders.constrained.grammar.regex_parser import (
    RegexError,
    parse_full_match,
    parse_search,
)
from plait.decoders.constrained.spec import ConstraintKind, ConstraintLimits, ConstraintSpec
from tests.fixtures.constraint_vocabularies import automaton_of, matches

ALPHABET = "ab-"
TEXTS = ["".join(letters) for n in range(5) for letters in product(ALPHABET, repeat=n)]
ATOMS = ["a", "b", "-", ".", "[ab]", "[^a]", r"\w", r"\W", "ab"]
ANCHORS = ["^", "$", r"\b", r"\B", "(?<=a)", "(?<!a)", r"(?<=\w)", "(?<![-b])"]


def _composed(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        inner.map(lambda part: f"(?={part})"),
        inner.map(lambda part: f"(?!{part})"),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{0,2}", "{1,}", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        inner.map(lambda part: f"(?:(?!{part})[a-])*$"),
    )


patterns = st.recursive(st.sampled_from(ATOMS * 2 + ANCHORS), _composed, max_leaves=8)


def _python(pattern: str) -> re.Pattern[str]:
    """Compile for Python, whose $ lets a line end follow and whose \\B is not in the empty text."""
    return re.compile(pattern.replace("$", r"\Z").replace(r"\B", r"(?!\b)"), re.ASCII)


@settings(max_examples=400, deadline=None)
@given(patterns)
def test_what_is_found_is_what_python_finds(pattern: str) -> None:
    try:
        found, exact = parse_search(pattern), parse_full_match(pattern)
    except RegexError as error:
        assert "without end" in str(error)
        assume(False)
    judge = _python(pattern)

    assert [t for t in TEXTS if regex.matches(found, t)] == [t for t in TEXTS if judge.search(t)]
    assert [t for t in TEXTS if regex.matches(exact, t)] == [t for t in TEXTS if judge.fullmatch(t)]


DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"  # as pydantic writes it
EMAIL = (  # as zod writes it
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
)
DURATION = (  # as zod writes it
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"
)
EXTENDED = (
    r"^[-+]?P(?!$)(?:(?:[-+]?\d+Y)|(?:[-+]?\d+[.,]\d+Y$))?(?:(?:[-+]?\d+M)|(?:[-+]?\d+[.,]\d+M$))?$"
)
PASSWORD = r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[A-Za-z\d]{8,}$"


@pytest.mark.parametrize(
    ("pattern", "found", "others"),
    [
        (DECIMAL, ["1", "-.5", "007.", "+12.50"], ["", "-", ".", "+.", "1e3", "1.2.3"]),
        (EMAIL, ["a.b@c.de", "x@y-z.org"], [".a@b.cd", "a..b@c.de", "a.@b.cd", "a@b"]),
        (DURATION, ["P3W", "P1DT2H", "PT0.5S"], ["P", "PT", "P1W2D", "P1DT"]),
        (EXTENDED, ["P1Y", "P1Y2M", "P1Y0,5M", "-P2,5Y"], ["P", "P1,5Y2M"]),
        (PASSWORD, ["Passw0rd"], ["password1", "Passwor1-", "Pa1"]),
        ("^(?!.*(?:foo|bar))[a-z]*$", ["fo", "baz", ""], ["xfoo", "barx", "A"]),
        ("^(?:(?!--)[a-z-])+$", ["a-b-c", "-"], ["a--b", "", "--"]),
        (r"\bcat\b", ["a cat.", "cat"], ["concat", "cats", "cat_"]),
        (r"^[a-z.]+(?<!\.tmp)$", ["a.txt", "tmp"], ["a.tmp", ".tmp"]),
        ("^[a-z-]+(?<!-)$", ["a-b"], ["a-", "-"]),
        ("(^|,)a(,|$)", ["a", "b,a", "a,b", "b,a,c"], ["ba", "ab", "b,ab"]),
        (r"(?P<year>\d{4})(?<month>\d\d)", ["202401"], ["20240"]),
        ("^{a}$", ["{a}"], ["a"]),
        ("a^b|$c", [], ["ab", "a^b", "c", ""]),
    ],
)
def test_patterns_with_assertions(pattern: str, found: list[str], others: list[str]) -> None:
    expr = parse_search(pattern)

    assert [text for text in found if not regex.matches(expr, text)] == []
    assert [text for text in others if regex.matches(expr, text)] == []


@pytest.mark.parametrize("pattern", ["^[a-c]+$", "a|^b", "(^|x)a($|y)", "^a|b$", "^(a|b)*c?$"])
def test_anchors_alone_need_no_automaton(pattern: str) -> None:
    assert parse_search(pattern).is_plain


def test_contradictions_leave_nothing() -> None:
    assert is_empty_set(parse_search(r"^(?=a)b$"), max_states=10)


@pytest.mark.parametrize(
    ("name", "category"),
    [("L", "L"), ("Lu", "Lu"), ("Decimal_Number", "Nd"), ("gc=Zs", "Zs"), ("Punctuation", "P")],
)
def test_a_category_is_what_unicode_says(name: str, category: str) -> None:
    inside, outside = parse_full_match(rf"\p{{{name}}}"), parse_full_match(rf"[^\p{{{name}}}]")
    assert parse_full_match(rf"\P{{{name}}}") is outside

    for code in [*range(0x500), *range(0x2000, 0x3100, 7), 0x1D7CE, 0x20000, 0x378]:
        actual = unicodedata.category(chr(code))
        assert regex.matches(inside, chr(code)) == actual.startswith(category)
        is_other = not actual.startswith(category) and actual != "Cn"
        assert regex.matches(outside, chr(code)) == is_other


@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        (r"(a|b)\1", "back references are not supported; write out"),
        (r"(?<n>a)\k<n>", "back references"),
        ("(?P<n>a)(?P=n)", "back references"),
        ("(?i)a", r"inline flags are not supported; write both cases, as in [aA]"),
        ("(?i:a)", "inline flags"),
        ("(?>a)", "atomic groups"),
        ("(?<=ab)c", "look-behind for more than one character"),
        ("(?:(?=a)b?)*c", "inside a repetition without end; write it before the loop"),
        ("(?=a)*", "an anchor or look-around cannot be repeated"),
        ("(?:a$){100}", "repeated more than 64 times"),
        (r"\p{Script=Greek}", r"'Script=Greek' is not supported; general categories are"),
        (r"\p{Emoji}", "'Emoji' is not supported"),
        (r"\p{Cn}", "'Cn' is not supported"),
        (r"\pL", "is not supported"),
        (r"\Aa\Z", r"\A is not supported; write ^"),
    ],
)
def test_what_is_refused_says_what_to_write_instead(pattern: str, want: str) -> None:
    with pytest.raises(RegexError) as caught:
        parse_search(pattern)

    assert want in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("regex", DECIMAL), ("json_schema", json.dumps({"type": "string", "pattern": DECIMAL}))],
)
def test_constraints_may_look_around(kind: ConstraintKind, text: str) -> None:
    automaton = automaton_of(lower(ConstraintSpec(kind, text), ConstraintLimits()))
    quote = '"' if kind == "json_schema" else ""

    for number, is_accepted in [("-1.5", True), ("-", False), ("..", False)]:
        assert matches(automaton, f"{quote}{number}{quote}".encode()) == is_accepted


HOSTNAME = (  # as zod writes it
    r"^(?=.{1,253}\.?$)[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    r"(?:\.[a-zA-Z0-9](?:[-0-9a-zA-Z]{0,61}[0-9a-zA-Z])?)*\.?$"
)


@pytest.mark.parametrize("kind", ["regex", "json_schema"])
def test_a_length_that_is_looked_ahead_for_costs_no_states(kind: ConstraintKind) -> None:
    text = HOSTNAME if kind == "regex" else json.dumps({"type": "string", "pattern": HOSTNAME})
    automaton = automaton_of(lower(ConstraintSpec(kind, text), ConstraintLimits()))
    quote = b"" if kind == "regex" else b'"'
    label = "a" * 63

    for host in ("a.b-c.de", label, f"{label}.{label}.{label}.{'a' * 61}"):
        assert matches(automaton, quote + host.encode() + quote)
    for host in ("a-.b", "", label + "a", f"{label}.{label}.{label}.{'a' * 62}"):
        assert not matches(automaton, quote + host.encode() + quote)


@pytest.mark.parametrize(
    "pattern",
    [
        "^(?=.{2,3}$)(?!a)",
        "^(?=[ab]{0,2}$)a*b*$",
        "^(?=.{1,40}-?$)(?=[^-]*$)",
        "^(?=a{1,2}b?$)(?!b)",
    ],
)
def test_counted_lengths_leave_the_texts_as_they_are(pattern: str) -> None:
    expr = parse_search(pattern)
    inner, least, most = regex.counted(expr)

    for text in TEXTS:
        fits = least <= len(text) <= (len(text) if most is None else most)
        assert (fits and regex.matches(inner, text)) == regex.matches(expr, text), text


def test_a_long_loop_is_counted_without_the_one_character_more() -> None:
    inner, least, most = regex.counted(parse_search("^(?=.{1,40}-?$)(?!a)"))

    assert (least, most) == (1, 40)
    assert regex.matches(inner, "-" * 41)
