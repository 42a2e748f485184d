"""Regular expressions with intersection and complement, their derivatives and grammar nodes.

Expressions are interned: equal ones are the same object. A plain expression becomes grammar nodes
by its structure; one with `intersection` or `complement` goes through its derivatives, which form a
deterministic automaton (dfa.py).

Source: Brzozowski 1964, "Derivatives of regular expressions" (differences: repetition counters
stay numbers; characters come in classes of equal behaviour).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Literal
from weakref import WeakValueDictionary

import msgspec

from plait.decoders.constrained.grammar import chars
from plait.decoders.constrained.grammar.nodes import (
    MAX_CODE_POINT,
    NOTHING,
    CharClass,
    LiteralText,
    Node,
    Ranges,
    alternation,
    repeat,
    seq,
)

LONG = 32  # repetitions of which one more or less does not matter
Kind = Literal["set", "cat", "or", "repeat", "and", "not"]
Encode = Callable[[Ranges], Node]  # how one character out of the ranges is written


class TooManyStates(ValueError):
    """The automaton of an expression is larger than allowed."""


class Expr(msgspec.Struct, frozen=True, eq=False, weakref=True):
    """A set of texts. Make one with the functions below, never directly."""

    kind: Kind
    items: tuple[Expr, ...]
    ranges: Ranges
    least: int
    most: int | None
    is_nullable: bool  # contains the empty text
    is_plain: bool  # free of "and" and "not"


_interned: WeakValueDictionary[object, Expr] = WeakValueDictionary()


def _make(
    kind: Kind,
    items: tuple[Expr, ...] = (),
    *,
    ranges: Ranges = (),
    times: tuple[int, int | None] = (0, 0),
) -> Expr:
    key = (kind, items, ranges, times)
    found = _interned.get(key)
    if found is None:
        plain = kind not in ("and", "not") and all(item.is_plain for item in items)
        nullable = _nullable(kind, items, times[0])
        found = _interned[key] = Expr(kind, items, ranges, *times, nullable, plain)
    return found


def _nullable(kind: Kind, items: tuple[Expr, ...], least: int) -> bool:
    if kind == "set":
        return False
    if kind == "repeat":
        return least == 0 or items[0].is_nullable
    if kind == "not":
        return not items[0].is_nullable
    test = any if kind == "or" else all
    return test(item.is_nullable for item in items)


def char(ranges: Ranges) -> Expr:
    """Return the texts of one character out of the ranges."""
    return _make("set", ranges=ranges)


EMPTY_SET = char(())
EPSILON = _make("cat")
ANY_CHAR = char(chars.ANY)
ANY_TEXT = _make("repeat", (ANY_CHAR,), times=(0, None))


def literal(text: str) -> Expr:
    """Return the one text; nothing if it holds half of a surrogate pair, which is no character."""
    return concat([char(((ord(c), ord(c)),)) if is_character(c) else EMPTY_SET for c in text])


def is_character(c: str) -> bool:
    """Tell whether a code point is a character, not half of a surrogate pair."""
    return not "\ud800" <= c <= "\udfff"


def concat(items: Iterable[Expr]) -> Expr:
    """Return the texts of the items in a row, associated to the right."""
    return reduce(lambda tail, head: _cat(head, tail), reversed(list(items)), EPSILON)


def _cat(head: Expr, tail: Expr) -> Expr:
    if EMPTY_SET in (head, tail):
        return EMPTY_SET
    if head is EPSILON:
        return tail
    if tail is EPSILON:
        return head
    if head.kind == "cat":
        return _cat(head.items[0], _cat(head.items[1], tail))
    return _make("cat", (head, tail))


def union(items: Iterable[Expr]) -> Expr:
    """Return the texts in any of the items."""
    flat: dict[Expr, None] = {}
    for item in items:
        flat.update(dict.fromkeys(item.items if item.kind == "or" else (item,)))
    if ANY_TEXT in flat:
        return ANY_TEXT
    single = chars.normalise(pair for i in flat if i.kind == "set" for pair in i.ranges)
    rest = [item for item in flat if item.kind != "set"]
    found = sorted([*rest, *([char(single)] if single else [])], key=id)
    return found[0] if len(found) == 1 else _make("or", tuple(found)) if found else EMPTY_SET


def intersection(left: Expr, right: Expr) -> Expr:
    """Return the texts in both."""
    if left is right or right is ANY_TEXT:
        return left
    if left is ANY_TEXT:
        return right
    if EMPTY_SET in (left, right):
        return EMPTY_SET
    if left.kind == right.kind == "set":
        return char(chars.intersect(left.ranges, right.ranges))
    return _make("and", tuple(sorted((left, right), key=id)))


def complement(expr: Expr) -> Expr:
    """Return all other texts."""
    if expr.kind == "not":
        return expr.items[0]
    if expr is EMPTY_SET:
        return ANY_TEXT
    return EMPTY_SET if expr is ANY_TEXT else _make("not", (expr,))


def times(item: Expr, least: int, most: int | None) -> Expr:
    """Return the item least..most times in a row."""
    if most is not None and most < least:
        return EMPTY_SET
    if most == 0 or item is EPSILON:
        return EPSILON
    if item is EMPTY_SET:
        return EPSILON if least == 0 else EMPTY_SET
    return item if (least, most) == (1, 1) else _make("repeat", (item,), times=(least, most))


@lru_cache(1 << 15)  # the states of an automaton share most of their parts
def derivative(expr: Expr, code: int) -> Expr:
    """Return what may follow the character `code` at the start of the texts."""
    if expr.kind == "set":
        return EPSILON if chars.contains(expr.ranges, code) else EMPTY_SET
    if expr.kind == "cat":
        return _derive_cat(expr, code)
    if expr.kind == "repeat":
        less = None if expr.most is None else expr.most - 1
        again = times(expr.items[0], max(expr.least - 1, 0), less)
        return _cat(derivative(expr.items[0], code), again)
    derived = [derivative(item, code) for item in expr.items]
    if expr.kind == "or":
        return union(derived)
    return intersection(*derived) if expr.kind == "and" else complement(derived[0])


def _derive_cat(expr: Expr, code: int) -> Expr:
    if expr is EPSILON:
        return EMPTY_SET
    head, tail = expr.items
    derived = _cat(derivative(head, code), tail)
    return union([derived, derivative(tail, code)]) if head.is_nullable else derived


def matches(expr: Expr, text: str) -> bool:
    """Tell whether the whole text is in the set."""
    for c in text:
        expr = derivative(expr, ord(c))
    return expr.is_nullable


def transitions(expr: Expr) -> dict[Expr, Ranges]:
    """Return what may follow, with the characters that lead there; dead ends are left out."""
    cuts: set[int] = {0, 0xD800, 0xE000, MAX_CODE_POINT + 1}
    _collect_cuts(expr, cuts)
    bounds = sorted(cuts)
    found: dict[Expr, list[tuple[int, int]]] = {}
    for first, end in pairwise(bounds):
        target = EMPTY_SET if first == 0xD800 else derivative(expr, first)
        if target is not EMPTY_SET:
            found.setdefault(target, []).append((first, end - 1))
    return {target: chars.normalise(pairs) for target, pairs in found.items()}


def _collect_cuts(expr: Expr, cuts: set[int]) -> None:
    """Add the code points where the derivative may change."""
    if expr.kind == "set":
        cuts.update(bound for first, last in expr.ranges for bound in (first, last + 1))
    elif expr.kind == "cat":
        for item in expr.items:
            _collect_cuts(item, cuts)
            if not item.is_nullable:
                break
    else:
        for item in expr.items:
            _collect_cuts(item, cuts)


def is_empty_set(expr: Expr, *, max_states: int) -> bool:
    """Tell whether the set is empty.

    Raises:
        TooManyStates: it could not be told within max_states.
    """
    seen = {expr}
    todo = [expr]
    while todo:
        at = todo.pop()
        if at.is_nullable:
            return False
        fresh = [target for target in transitions(at) if target not in seen]
        seen.update(fresh)
        todo.extend(fresh)
        if len(seen) > max_states:
            raise TooManyStates
    return True


def length_bounds(expr: Expr) -> tuple[int, int | None]:
    """Return bounds of the texts' lengths; the upper one None: without end, or not known."""
    if expr.kind in ("and", "not"):
        return 0, None
    if expr.kind == "set":
        return 1, 1
    spans = [length_bounds(item) for item in expr.items]
    least, most = [low for low, _ in spans], [high for _, high in spans]
    if expr.kind == "or":
        return min(least), None if None in most else max(high or 0 for high in most)
    if expr.kind == "cat":
        return sum(least), None if None in most else sum(high or 0 for high in most)
    endless = most[0] is None or expr.most is None
    return expr.least * least[0], None if endless else (expr.most or 0) * (most[0] or 0)


def fitted(expr: Expr, low: int, high: int | None) -> Expr | None:
    """Return the texts of low..high characters, where one loop over characters decides the length.

    None: there is no such loop, or more than that one vary; then it takes an automaton.
    """
    items = _factors(expr)
    loops = [i for i, item in enumerate(items) if len(set(length_bounds(item))) > 1]
    if len(loops) != 1 or items[loops[0]].kind != "repeat":
        return None
    loop = items[loops[0]]
    if length_bounds(loop.items[0]) != (1, 1):
        return None
    fixed = sum(length_bounds(item)[0] for item in items) - loop.least
    least = max(loop.least, low - fixed)
    bounds = [m for m in (loop.most, None if high is None else high - fixed) if m is not None]
    most = min(bounds) if bounds else None
    if most is not None and least > most:
        return EMPTY_SET
    items[loops[0]] = times(loop.items[0], least, most)
    return concat(items)


def counted(expr: Expr) -> tuple[Expr, int, int | None]:
    """Return an expression and lengths: its texts of such a length are texts of the given one.

    They are all of them, but that of `(?=.{1,253}\\.?$)` the one text more is left out. Counted
    beside an automaton, a length costs no states; inside an intersection it multiplies them.
    """
    if expr.kind == "and":
        (left, low, high), (right, least, most) = map(_counted, expr.items)
        bounds = [bound for bound in (high, most) if bound is not None]
        return intersection(left, right), max(low, least), min(bounds, default=None)
    return expr, 0, None


def _counted(item: Expr) -> tuple[Expr, int, int | None]:
    loop, rest = item.items if item.kind == "cat" and item.items else (item, EPSILON)
    if loop.kind != "repeat" or loop.items[0].kind != "set" or not _adds_nothing(rest, loop):
        return counted(item)
    return times(loop.items[0], 0, None), loop.least, loop.most


def _adds_nothing(rest: Expr, loop: Expr) -> bool:
    """Tell whether what follows a long loop is at most one more of its characters, if anything."""
    if rest is EPSILON or loop.most is None or loop.most < LONG:
        return rest is EPSILON
    step = rest.items[0] if rest.kind == "repeat" else EMPTY_SET
    is_one = rest.is_nullable and rest.most == 1 and step.kind == "set"
    ranges = loop.items[0].ranges
    return is_one and chars.intersect(step.ranges, ranges) == step.ranges


def _factors(expr: Expr) -> list[Expr]:
    found = []
    while expr.kind == "cat" and expr.items:
        found.append(expr.items[0])
        expr = expr.items[1]
    return [*found, expr] if expr is not EPSILON else found


def structure(expr: Expr, encode: Encode) -> Node:
    """Return the grammar node of a plain expression."""
    assert expr.is_plain, "an expression with `intersection` or `complement` needs `lexeme`"
    if expr.kind == "set":
        return encode(expr.ranges) if expr.ranges else NOTHING
    if expr.kind == "cat":
        return seq(*_spelled(structure(item, encode) for item in _factors(expr)))
    parts = [structure(item, encode) for item in expr.items]
    return repeat(parts[0], expr.least, expr.most) if expr.kind == "repeat" else alternation(parts)


def _spelled(parts: Iterable[Node]) -> Iterator[Node]:
    """Yield the parts, those in a row that are one text each as one: many texts are one list."""
    text = ""
    for part in parts:
        if isinstance(part, LiteralText):
            text += part.value
        elif isinstance(part, CharClass) and part.ranges[0][0] == part.ranges[-1][1]:
            text += chr(part.ranges[0][0])
        else:
            yield LiteralText(text)
            yield part
            text = ""
    yield LiteralText(text)
