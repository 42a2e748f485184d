"""JSON syntax as grammar rules that every JSON constraint shares.

The generation profile (all of it RFC 8259): blanks stand only where pretty printers put them,
inside brackets and after a comma or colon (GAP): at most `max_whitespace` in a place, or one line
break and the indentation of the deepest level; strings are free of control characters and of half
surrogate pairs; numbers have at most 19 integer digits, 20 decimals and a two-digit exponent, so
that no reader overflows and no path of digits or blanks is endless.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from plait.decoders.constrained.grammar import chars
from plait.decoders.constrained.grammar.nodes import (
    EMPTY,
    NOTHING,
    CharClass,
    Item,
    LiteralText,
    Node,
    Ranges,
    Ref,
    Repeat,
    alternation,
    any_order,
    is_nothing,
    optional,
    repeat,
    seq,
)
from plait.decoders.constrained.spec import PRETTY, JsonStyle, Whitespace

MAX_INTEGER_DIGITS = 19
MAX_DECIMALS = 20
MAX_EXPONENT_DIGITS = 2
INDENT = 4  # blanks a level, at most; two blanks or a tab are fewer
ENDLESS_LEVELS = 8  # that are indented where nesting has no end; twice as many by two blanks
MAX_LEVELS = 16

WS = Ref("ws")
GAP = Ref("gap")
_BEFORE = Ref("before")  # blanks before a comma or a colon
COMMA = seq(_BEFORE, LiteralText(","), GAP)
COLON = seq(_BEFORE, LiteralText(":"), GAP)
STRING = Ref("string")
NUMBER = Ref("number")
INTEGER = Ref("integer")
BOOLEAN = alternation([LiteralText("true"), LiteralText("false")])
NULL = LiteralText("null")
VALUE = Ref("value")
OBJECT = Ref("object")
ARRAY = Ref("array")

DIGIT = CharClass(chars.of("0123456789"))
DIGIT_1_9 = CharClass(chars.of("123456789"))
_written = json.JSONEncoder(ensure_ascii=False).encode
_BLANK = CharClass(chars.of(" \n\r\t"))
_HEX = CharClass(chars.of("0123456789abcdefABCDEF"))
PLAIN: Ranges = chars.complement(chars.normalise([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)]))
_TO_ESCAPE: Ranges = chars.complement(PLAIN)
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n"}
_SHORT_ESCAPES |= {"\r": "\\r", "\t": "\\t"}


def json_rules(
    max_whitespace: int, levels: int | None = None, whitespace: Whitespace | None = None
) -> dict[str, Node]:
    """Return the shared rules by name; those that a grammar does not use are pruned later.

    max_whitespace: blanks in one place, besides an indentation; 0 writes compact JSON.
    levels: how deep objects and arrays nest; None: without end.
    whitespace: one way to write it instead, see JsonStyle.
    """
    if whitespace in ("compact", "spaced"):
        gap = LiteralText(" ") if whitespace == "spaced" else EMPTY
        return {"ws": EMPTY, "gap": gap, "before": EMPTY, **_RULES}
    indented = ENDLESS_LEVELS if levels is None else min(levels, MAX_LEVELS)
    if whitespace == "any":
        most = max(max_whitespace, INDENT * indented + 2)
        return {"ws": repeat(_BLANK, 0, most), "gap": WS, "before": WS, **_RULES}
    blanks = _blanks(max_whitespace, INDENT * indented)
    return {"ws": blanks, "gap": WS, "before": EMPTY, **_RULES}


def whole_text(value: Node, whitespace: Whitespace | None) -> Node:
    """Return a JSON text that is this value; blanks around it belong to it where any may stand."""
    return seq(WS, value, WS) if whitespace == "any" else value


def _blanks(most: int, indentation: int) -> Node:
    """Return up to `most` blanks, or a line break and up to `indentation` blanks."""
    if not most:
        return EMPTY
    line = seq(
        optional(LiteralText("\r")),
        LiteralText("\n"),
        repeat(CharClass(chars.of(" \t")), 0, indentation),
    )
    return alternation([repeat(_BLANK, 0, most), line])


def _bracketed(left: str, inner: Node, right: str) -> Node:
    """Return brackets with the inner text or nothing; one stretch of blanks where it is missing."""
    return seq(
        LiteralText(left), WS, alternation([seq(inner, WS, LiteralText(right)), LiteralText(right)])
    )


def _more(item: Node) -> Node:
    return repeat(seq(COMMA, item), 0, None)


def _character() -> Node:
    """Return one Unicode character of a string: plain, escaped, or a whole surrogate pair."""
    low = seq(CharClass(chars.of("cdefCDEF")), _HEX, _HEX)
    high = seq(CharClass(chars.of("89abAB")), _HEX, _HEX)
    scalar = alternation(
        [
            seq(CharClass(chars.of("0123456789abcefABCEF")), Repeat(_HEX, 3, 3)),
            seq(CharClass(chars.of("dD")), CharClass(chars.of("01234567")), _HEX, _HEX),
        ]
    )
    d = CharClass(chars.of("dD"))
    pair = seq(d, high, LiteralText("\\u"), d, low)
    escape = alternation(
        [CharClass(chars.of('"\\/bfnrt')), seq(LiteralText("u"), alternation([scalar, pair]))]
    )
    return alternation([CharClass(PLAIN), seq(LiteralText("\\"), escape)])


CHARACTER = _character()


def _integer() -> Node:
    digits = seq(DIGIT_1_9, repeat(DIGIT, 0, MAX_INTEGER_DIGITS - 1))
    return seq(optional(LiteralText("-")), alternation([LiteralText("0"), digits]))


def _fraction() -> Node:
    return seq(LiteralText("."), repeat(DIGIT, 1, MAX_DECIMALS))


def _exponent() -> Node:
    sign = optional(CharClass(chars.of("+-")))
    return seq(CharClass(chars.of("eE")), sign, repeat(DIGIT, 1, MAX_EXPONENT_DIGITS))


@lru_cache(4096)  # the classes of a schema's patterns come again and again
def quoted(ranges: Ranges) -> Node:
    """Return one character out of the ranges as it is written inside a JSON string.

    One spelling a character: plain where that is allowed, the short escape, else \\u00xx.
    """
    plain = chars.intersect(ranges, PLAIN)
    escaped: list[Node] = [
        LiteralText(_SHORT_ESCAPES.get(chr(code), f"\\u{code:04x}"))
        for first, last in chars.intersect(ranges, _TO_ESCAPE)
        for code in range(first, last + 1)
    ]
    found = [*([CharClass(plain)] if plain else []), *escaped]
    return alternation(found) if found else NOTHING


def in_any_order(
    opening: Node, items: Iterable[Item], least: int, most: int | None, right: str
) -> Node:
    """Return least..most items in any order between brackets; see nodes.AnyOrder."""
    given = list(items)
    some = any_order(given, COMMA, max(least, 1), most)
    filled = NOTHING if is_nothing(some) else seq(some, WS, LiteralText(right))
    may_be_empty = not least and not any(item.is_required for item in given)
    inner = alternation([filled, LiteralText(right)]) if may_be_empty else filled
    return seq(opening, WS, inner)


def with_zeros(number: Node, *, is_integer: bool) -> Node:
    """Return a number without exponent, and the same with zeros behind its decimals."""
    if is_integer:
        zeros = seq(LiteralText("."), repeat(LiteralText("0"), 1, MAX_DECIMALS))
        return seq(number, optional(zeros))
    return seq(number, repeat(LiteralText("0"), 0, MAX_DECIMALS))


def literal(value: Any, style: JsonStyle = PRETTY) -> Node:
    """Return the text of a JSON value, with blanks between its tokens.

    NOTHING if a string in it holds half of a surrogate pair, which no text can.
    """
    if isinstance(value, Mapping):
        members = [seq(literal(name), COLON, literal(item, style)) for name, item in value.items()]
        if style.key_order != "any" or len(members) < 2:
            return _fixed("{", members, "}")
        required = [Item(member, is_required=True) for member in members]
        return in_any_order(LiteralText("{"), required, 0, None, "}")
    if isinstance(value, list):
        return _fixed("[", [literal(item, style) for item in value], "]")
    text = _written(value)
    if style.numbers in ("any", "decimals") and type(value) in (int, float) and "e" not in text:
        whole, _, decimals = text.partition(".")
        is_integer = not decimals.strip("0")
        return with_zeros(LiteralText(whole if is_integer else text), is_integer=is_integer)
    return LiteralText(text) if text.isascii() or _is_encodable(text) else NOTHING


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def levels_of(value: Any) -> int:
    """Return how deep a JSON value nests."""
    if not isinstance(value, Mapping | list):
        return 0
    inner = value.values() if isinstance(value, Mapping) else value
    return 1 + max(map(levels_of, inner), default=0)


def _fixed(left: str, items: list[Node], right: str) -> Node:
    found: list[Node] = [LiteralText(left), WS]
    for index, item in enumerate(items):
        found += [COMMA, item] if index else [item]
    return seq(*found, *([WS] if items else []), LiteralText(right))


_RULES: Mapping[str, Node] = {
    "string": seq(LiteralText('"'), repeat(CHARACTER, 0, None), LiteralText('"')),
    "integer": _integer(),
    "number": seq(INTEGER, optional(_fraction()), optional(_exponent())),
    "member": seq(STRING, COLON, VALUE),
    "object": _bracketed("{", seq(Ref("member"), _more(Ref("member"))), "}"),
    "array": _bracketed("[", seq(VALUE, _more(VALUE)), "]"),
    "value": alternation([OBJECT, ARRAY, STRING, NUMBER, BOOLEAN, NULL]),
}
