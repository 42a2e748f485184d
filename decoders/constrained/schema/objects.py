"""Objects as grammar rules: declared keys in the schema's order, then the others.

An object is closed unless its schema says something of further properties, or names none at all.
Keys beyond the declared ones are written without escapes and never repeat a declared name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from plait.decoders.constrained.grammar import json_text, regex
from plait.decoders.constrained.grammar.json_text import COLON, COMMA, WS
from plait.decoders.constrained.grammar.nodes import (
    EMPTY,
    NOTHING,
    Node,
    Ref,
    Text,
    choice,
    repeat,
    seq,
)
from plait.decoders.constrained.grammar.regex import Expr
from plait.decoders.constrained.schema.facts import Facts, Places, joined
from plait.decoders.constrained.spec import UnsupportedKeyword

MAX_PATTERNS = 6  # of patternProperties that may overlap
MAX_COUNTED = 20_000  # rules of one object whose properties are counted

_NO_ESCAPES = regex.times(regex.char(json_text.PLAIN), 0, None)


@dataclass(frozen=True, slots=True)
class Member:
    """A declared property."""

    node: Node
    is_required: bool


@dataclass(frozen=True, slots=True)
class KeyClass:
    """Undeclared keys that fall under the same schemas."""

    keys: Expr
    places: Places


def declared_names(facts: Facts) -> list[str]:
    """Return the declared names in their order, required ones that no schema names last."""
    names = dict.fromkeys(name for rule in facts.objects for name in rule.named)
    names.update(dict.fromkeys(facts.required))
    return [name for name in names if name not in facts.forbidden]


def is_closed(facts: Facts) -> bool:
    """Tell whether undeclared keys are out: nothing was said of them, but some were declared."""
    rules = facts.objects
    if any(rule.extra is not None or rule.patterns for rule in rules):
        return False
    declared = facts.required or any(rule.named for rule in rules)
    return bool(declared) and not facts.names


def key_classes(facts: Facts) -> list[KeyClass]:
    """Return the classes of undeclared keys.

    Raises:
        UnsupportedKeyword: too many patterns overlap.
    """
    if is_closed(facts):
        return []
    patterns = list(dict.fromkeys(expr for rule in facts.objects for expr, _ in rule.patterns))
    if len(patterns) > MAX_PATTERNS:
        reason = f"more than {MAX_PATTERNS} patterns on one object are not supported"
        raise UnsupportedKeyword(facts.pointer, "patternProperties", reason)
    taken = {*declared_names(facts), *facts.forbidden}
    taken |= {name for rule in facts.objects for name in rule.named}
    free = regex.both(_NO_ESCAPES, regex.without(regex.union(map(regex.literal, sorted(taken)))))
    found = []
    for signs in product((True, False), repeat=len(patterns)):
        keys = free
        for pattern, sign in zip(patterns, signs, strict=True):
            keys = regex.both(keys, pattern if sign else regex.without(pattern))
        chosen = {p for p, sign in zip(patterns, signs, strict=True) if sign}
        if (places := _places_of(facts, chosen)) is not None and keys is not regex.VOID:
            found.append(KeyClass(keys, places))
    return found


def _places_of(facts: Facts, chosen: set[Expr]) -> Places | None:
    """Return what holds for the value of a key with these patterns; None: the key is closed.

    When no schema says a word about keys without a pattern, patternProperties name all there are.
    """
    found: list[Places] = []
    is_said = not any(rule.patterns for rule in facts.objects) or bool(chosen)
    for rule in facts.objects:
        matching = [places for expr, places in rule.patterns if expr in chosen]
        found += matching or ([rule.extra] if rule.extra is not None else [])
        is_said |= rule.extra is not None
    return joined(*found) if is_said else None


def member(key: Node, value: Node) -> Node:
    """Return `key: value`, the key's node with its quotes."""
    return seq(key, COLON, value)


@dataclass(slots=True)
class ObjectRules:
    """Writes the rules of one object; a rule is named after how far the object has come."""

    name: str
    members: Sequence[Member]
    extra: Node  # one undeclared member; NOTHING: there is none
    least: int
    most: int | None
    define: Callable[[str, Node], None]

    def node(self) -> Node:
        """Return the object's node; its rules are defined on the way."""
        required = sum(m.is_required for m in self.members)
        if self.most is None and self.least <= required:
            counts: tuple[int, ...] = (0, 1)  # only whether a comma is due
        else:
            counts = tuple(range(max(self.least, (self.most or 0) + 1) + 1))
        for index in range(len(self.members), -1, -1):
            for count in counts[: index + 1]:
                self.define(self._rule(index, count), self._body(index, count, counts[-1]))
        return seq(Text("{"), WS, Ref(self._rule(0, 0)))

    def _rule(self, index: int, count: int) -> str:
        return f"{self.name}-{index}-{count}"

    def _body(self, index: int, count: int, limit: int) -> Node:
        """Return what follows when `count` members (capped at limit) come before member index."""
        if self.most is not None and count > self.most:
            return NOTHING
        if index == len(self.members):
            return self._rest(count)
        found = self.members[index]
        comma = COMMA if count else EMPTY
        taken = seq(comma, found.node, Ref(self._rule(index + 1, min(count + 1, limit))))
        return taken if found.is_required else choice([taken, Ref(self._rule(index + 1, count))])

    def _rest(self, count: int) -> Node:
        """Return the undeclared members after all declared ones, and the closing brace."""
        room = None if self.most is None else self.most - count
        missing = max(self.least - count, 0)
        end, empty = seq(WS, Text("}")), Text("}")
        if self.extra == NOTHING:
            return NOTHING if missing else end if count else empty
        more = seq(COMMA, self.extra)
        if count:
            return seq(repeat(more, missing, room), end)
        others = None if room is None else room - 1
        some = seq(self.extra, repeat(more, max(missing - 1, 0), others), end)
        some = NOTHING if room == 0 else some
        return some if missing else choice([some, empty])
