"""Grammars: the notation, and the checks before one may constrain an answer."""

from __future__ import annotations

import pytest

from plait.decoders.constrained.grammar.chars import complement, intersect, normalise
from plait.decoders.constrained.grammar.check import left_recursion, prune
from plait.decoders.constrained.grammar.gbnf import GrammarError, parse

EXAMPLE = r"""
root  ::= greeting (", " name)* "!"?   # a comment
greeting ::= "hello" | "gr\u00fc\xdf" | [^a-c\]\n]{2,3}
name ::= [A-Z] [a-z]+ | .
"""


def test_a_grammar_printed_and_read_again_is_the_same() -> None:
    want = parse(EXAMPLE)

    assert parse(str(want)) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("root ::= x", "line 1, column 10: rule 'x' is not defined"),
        ('foo ::= "a"', "no rule named 'root'"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: rule 'root' is defined twice"),
        ('root ::= "a" (', "line 1, column 14: this group is not closed"),
        ('root ::= "a" )', "')' is not expected here"),
        ('root ::= (="a") "a"', "line 1, column 11: cannot read"),
        ('root ::= "a"\n\nx ::= [a-', "line 3, column 7: cannot read"),
        ("root ::= [z-a]", "the range z-a is backwards"),
        (r'root ::= "\q"', r"unknown escape \q"),
        (r'root ::= "\ud800"', "U+D800 is not a character"),
        ('root ::= "a"{3,2}', "is not a repetition"),
        ('root ::= "a"{999999}', "is not a repetition"),
        ("root ::= *", "'*' has nothing to repeat"),
        ("root ::= " + "(" * 65 + '"a"' + ")" * 65, "nested more than 64 deep"),
        ('"a"', "a rule begins with its name"),
    ],
)
def test_what_is_wrong_with_a_grammar_is_said_with_its_line(text: str, want: str) -> None:
    with pytest.raises(GrammarError) as have:
        parse(text)

    assert want in str(have.value)


def test_alternatives_that_cannot_end_are_pruned() -> None:
    have = prune(parse('root ::= "a" x? | dead\nx ::= "b" | x dead\ndead ::= "c" dead\n'))

    assert have == parse('root ::= "a" x?\nx ::= "b"')


def test_a_grammar_that_matches_nothing_is_none() -> None:
    assert prune(parse('root ::= "a" root')) is None


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('root ::= "a" root | ""', None),
        ('root ::= root "a" | "b"', "root"),
        ('root ::= x* "a"\nx ::= "" y\ny ::= "q"? x "r" | "s"', "x"),
        ('root ::= x\nx ::= "("  x ")" | "b"', None),
    ],
)
def test_left_recursion_is_found(text: str, want: str | None) -> None:
    have = left_recursion(parse(text))

    assert (have is None) == (want is None)


def test_sets_of_characters_leave_surrogates_out() -> None:
    ranges = normalise([(0xD7F0, 0xE00F), (0x61, 0x63), (0x63, 0x65)])

    assert ranges == ((0x61, 0x65), (0xD7F0, 0xD7FF), (0xE000, 0xE00F))
    assert intersect(ranges, complement(ranges)) == ()
    assert complement(complement(ranges)) == ranges
