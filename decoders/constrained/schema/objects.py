"""Objects as grammar rules: declared keys in the schema's order, then the others.

An object is closed unless its schema says something of further properties, or names none at all, or
the request asks for open ones.
Keys beyond the declared ones never repeat a declared name: each has one spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field

import msgspec

from plait.decoders.constrained.grammar import json_text, regex
from plait.decoders.constrained.grammar.json_text import COLON, COMMA, WS
from plait.decoders.constrained.grammar.nodes import (
    DISTINCT,
    GROWING,
    NOTHING,
    Item,
    LiteralText,
    Mark,
    Node,
    Ref,
    alternation,
    any_order,
    is_nothing,
    repeat,
    seq,
)
from plait.decoders.constrained.grammar.regex import Expr
from plait.decoders.constrained.schema.facts import Facts, SchemaRefs, declared_names, merged_refs
from plait.decoders.constrained.spec import Objects, UnsupportedKeyword, plain_pointer

MAX_CLASSES = 64  # of undeclared keys, by the patterns that they have
MAX_STATES = 500  # of the automata that tell whether a class has any key
MAX_COUNTED = 20_000  # rules of one object whose properties are counted


class DeclaredProperty(msgspec.Struct, frozen=True):
    """A declared property."""

    node: Node
    is_required: bool


class UndeclaredKeys(msgspec.Struct, frozen=True):
    """Undeclared keys that fall under the same schemas."""

    keys: Expr
    places: SchemaRefs


def is_closed(facts: Facts) -> bool:
    """Tell whether undeclared keys are out: nothing was said of them, but some were declared."""
    rules = facts.objects
    if any(rule.extra is not None or rule.patterns for rule in rules):
        return False
    declared = facts.required or any(rule.named for rule in rules)
    return bool(declared) and not facts.names


def key_classes(
    facts: Facts, ways: Callable[[SchemaRefs], Sequence[object]], objects: Objects | None
) -> list[UndeclaredKeys]:
    """Return the classes of undeclared keys.

    ways: the alternatives of what is valid at some places; keys without any are left out.
    objects: "open": keys of which nothing is said may have any value.

    Raises:
        UnsupportedKeyword: too many patterns overlap.
    """
    is_open = objects == "open"
    if is_closed(facts) and not is_open:
        return []
    patterns = dict.fromkeys(expr for rule in facts.objects for expr, _ in rule.patterns)
    if not patterns:  # what there is to know before the keys are, of which there may be many
        places = _places_of(facts, patterns.keys(), is_open)
        is_possible = places is not None and bool(ways(places))
        return [UndeclaredKeys(_free_keys(facts), places or ())] if is_possible else []
    classes: list[tuple[Expr, frozenset[Expr]]] = [(_free_keys(facts), frozenset())]
    for pattern in patterns:
        classes = [half for each in classes for half in _split(*each, pattern)]
        if len(classes) > MAX_CLASSES:
            reason = f"its patterns make more than {MAX_CLASSES} kinds of keys"
            raise UnsupportedKeyword(facts.pointer, "patternProperties", reason)
    found = []
    for keys, chosen in classes:
        places = _places_of(facts, chosen, is_open)
        if places is not None and ways(places):
            found.append(UndeclaredKeys(keys, places))
    return found


def _split(
    keys: Expr, chosen: frozenset[Expr], pattern: Expr
) -> Iterator[tuple[Expr, frozenset[Expr]]]:
    """Yield the keys with a pattern and those without it, where there are any."""
    for sign, part in ((True, pattern), (False, regex.complement(pattern))):
        half = regex.intersection(keys, part)
        if not _is_empty(half):
            yield half, chosen | {pattern} if sign else chosen


def _is_empty(keys: Expr) -> bool:
    try:
        return regex.is_empty_set(keys, max_states=MAX_STATES)
    except regex.TooManyStates:
        return False


def _free_keys(facts: Facts) -> Expr:
    """Return the keys that no schema names."""
    taken = {*declared_names(facts), *facts.forbidden}
    taken |= {name for rule in facts.objects for name in rule.named}
    return regex.complement(regex.union(map(regex.literal, sorted(taken))))


def _places_of(facts: Facts, chosen: Set[Expr], is_open: bool) -> SchemaRefs | None:
    """Return what holds for the value of a key with these patterns; None: the key is closed.

    When no schema says a word about keys without a pattern, patternProperties name all there are,
    unless objects are open.
    """
    found: list[SchemaRefs] = []
    is_said = is_open or not any(rule.patterns for rule in facts.objects) or bool(chosen)
    for rule in facts.objects:
        matching = [places for expr, places in rule.patterns if expr in chosen]
        found += matching or ([rule.extra] if rule.extra is not None else [])
        is_said |= rule.extra is not None
    return merged_refs(*found) if is_said else None


def member(key: Node, value: Node) -> Node:
    """Return `key: value`, the key's node with its quotes."""
    return seq(key, COLON, value)


@dataclass(slots=True)
class ObjectRules:
    """Writes the rules of one object; a rule is named after how far the object has come.

    There is one where a property may be left out, for each count of properties that matters. It is
    of the next member: what stands between members is written once, however many may come next.
    """

    name: str
    pointer: str  # of the schema, for messages
    members: Sequence[DeclaredProperty]
    extra: Node  # one undeclared member; NOTHING: there is none
    least: int
    most: int | None
    define: Callable[[str, Node], None]
    is_distinct: bool = False  # undeclared keys differ from each other
    due: Sequence[Node] = ()  # undeclared members that must be there
    due_pointers: tuple[str, ...] = ()  # of the keywords that ask for them

    @property
    def opening(self) -> Node:
        """What the object begins with."""
        if not self.due and (not self.is_distinct or is_nothing(self.extra)):
            return LiteralText("{")
        is_short = self.least > sum(m.is_required for m in self.members)
        pointers = [f"{plain_pointer(self.pointer)}/minProperties"] * is_short
        pointers += map(plain_pointer, self.due_pointers)
        return seq(LiteralText("{"), Mark(DISTINCT | GROWING * bool(pointers), tuple(pointers)))

    def in_any_order(self) -> Node:
        """Return the object's node, its properties in any order. Cost: linear in the members."""
        items = [Item(m.node, is_required=m.is_required) for m in self.members]
        items += self.undeclared()
        return json_text.in_any_order(self.opening, items, self.least, self.most, "}")

    def undeclared(self) -> list[Item]:
        """Return the undeclared members: those that are due, and any others."""
        due = [Item(node, is_required=True) for node in self.due]
        return [*due, Item(self.extra, may_repeat=True)]

    def node(self) -> Node:
        """Return the object's node; its rules are defined on the way.

        Raises:
            UnsupportedKeyword: too many properties are counted.
        Cost: linear in the members, times the counts that matter.
        """
        required = [i for i, m in enumerate(self.members) if m.is_required]
        largest = len(self.members) + len(self.due)
        if is_nothing(self.extra) and self.most is not None and self.most >= largest:
            self.most = None
        if self.most is None and self.least <= len(required):
            self.least, limit = 0, 1  # only whether a comma is due
        else:
            limit = max(self.least, (self.most or 0) + 1)
        self._check_counts(limit)
        order = _MemberOrder(self, limit, required[-1] + 1 if required else 0)
        found = order.start()
        order.write()
        return seq(self.opening, WS, found)

    def _check_counts(self, limit: int) -> None:
        if limit > 1 and (limit + 2) * len(self.members) > MAX_COUNTED:
            keyword = "minProperties" if self.most is None else "maxProperties"
            reason = f"{len(self.members)} properties are too many to be counted up to {limit}"
            raise UnsupportedKeyword(self.pointer, keyword, reason)


@dataclass(slots=True)
class _MemberOrder:
    """The rules of an object whose members come in their order.

    Counts are capped at `limit`; before `all_required` some member that must be there is missing.
    """

    object: ObjectRules
    limit: int
    all_required: int
    _known: set[tuple[int, int]] = field(default_factory=set)
    _todo: list[tuple[int, int]] = field(default_factory=list)

    def start(self) -> Node:
        """Return what follows the opening brace."""
        first = NOTHING if self.object.most == 0 else self._member(0, min(1, self.limit))
        may_be_empty = not (self.object.least or self.all_required or self.object.due)
        return alternation([first, LiteralText("}")]) if may_be_empty else first

    def write(self) -> None:
        """Define the rules that were referred to."""
        while self._todo:
            index, count = self._todo.pop()
            taken = seq(self.object.members[index].node, self._behind(index + 1, count))
            body = alternation([taken, self._member(index + 1, count)])
            self.object.define(self._name(index, count), body)

    def _name(self, index: int, count: int) -> str:
        return f"{self.object.name}-{index}-{count}"

    def _member(self, index: int, count: int) -> Node:
        """Return the next member, that at the index or a later one, and what follows.

        count: how many members there are with this one.
        """
        members = self.object.members
        if index == len(members):
            if self.object.due:
                return seq(self._due(count - 1), _CLOSING)
            return seq(self.object.extra, self._end(count))
        if members[index].is_required:
            return seq(members[index].node, self._behind(index + 1, count))
        if (index, count) not in self._known:
            self._known.add((index, count))
            self._todo.append((index, count))
        return Ref(self._name(index, count))

    def _behind(self, index: int, count: int) -> Node:
        """Return what follows a member; count: how many there are."""
        row: list[Node] = []
        members = self.object.members
        while index < len(members) and members[index].is_required:
            row += [COMMA, members[index].node]
            index, count = index + 1, min(count + 1, self.limit)
        if self.object.most is not None and count > self.object.most:
            return NOTHING
        if index == len(members):
            return seq(*row, self._end(count))
        return seq(*row, self._more(index, count))

    def _more(self, index: int, count: int) -> Node:
        """Return what follows a member where the next declared one may be left out."""
        most = self.object.most
        is_full = most is not None and count >= most
        more = NOTHING if is_full else self._member(index, min(count + 1, self.limit))
        is_complete = index >= self.all_required and count >= self.object.least
        is_complete &= not self.object.due
        return alternation([seq(COMMA, more), *([_CLOSING] if is_complete else [])])

    def _end(self, count: int) -> Node:
        """Return undeclared members after all others, and the closing brace."""
        missing = max(self.object.least - count, 0)
        room = None if self.object.most is None else self.object.most - count
        if self.object.due:
            return seq(COMMA, self._due(count), _CLOSING)
        if is_nothing(self.object.extra) or room == 0:
            return NOTHING if missing else _CLOSING
        return seq(repeat(seq(COMMA, self.object.extra), missing, room), _CLOSING)

    def _due(self, count: int) -> Node:
        """Return the undeclared members where some must be there, behind so many others."""
        missing = max(self.object.least - count, 0)
        room = None if self.object.most is None else self.object.most - count
        return any_order(self.object.undeclared(), COMMA, max(missing, 1), room)


_CLOSING = seq(WS, LiteralText("}"))
