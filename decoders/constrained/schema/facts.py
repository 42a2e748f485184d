"""What a conjunction of schemas asserts about a value: the data types of the schema reader.

A `SchemaRef` names a subschema of the document by its JSON pointer, or its negation.
`SchemaRefs` are subschemas that must all hold for one value. `Facts` are the assertions that
are left once every $ref, allOf, anyOf, oneOf, not and if has been expanded; several `Facts` are
alternatives (a disjunction).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, TypeVar

import msgspec
from msgspec.structs import replace

from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.regex import ANY_TEXT, Expr

# "fraction": numbers that are no integers. JSON schema's "number" is both.
Kind = Literal["null", "boolean", "integer", "fraction", "string", "array", "object"]
Kinds = frozenset[Kind]
T = TypeVar("T")
Literals = Mapping[Hashable, Any]
NUMBERS: Kinds = frozenset({"integer", "fraction"})
ALL: Kinds = NUMBERS | {"null", "boolean", "string", "array", "object"}
TYPES: Mapping[str, Kinds] = {
    "null": frozenset({"null"}),
    "boolean": frozenset({"boolean"}),
    "integer": frozenset({"integer"}),
    "number": NUMBERS,
    "string": frozenset({"string"}),
    "array": frozenset({"array"}),
    "object": frozenset({"object"}),
}


class SchemaRef(msgspec.Struct, frozen=True):
    """A schema of the document, or its negation."""

    pointer: str
    negated: bool = False


SchemaRefs = tuple[SchemaRef, ...]  # all of them hold; () allows any value


class Bound(msgspec.Struct, frozen=True):
    """An end of a range of numbers."""

    value: Decimal
    is_open: bool  # the value itself is outside


class ArrayRule(msgspec.Struct, frozen=True):
    """What one schema says about the items; rest None: nothing about the further ones."""

    prefix: tuple[SchemaRefs, ...]
    rest: SchemaRefs | None
    evaluates: bool = True  # for unevaluatedItems; what a negation says does not
    unless: frozenset[SchemaRefs] = frozenset()  # an item that one of these holds for is left alone

    def places(self, index: int, contained: Set[SchemaRefs] = frozenset()) -> SchemaRefs:
        """Return what holds for the item at an index; contained: of contains, what holds for it."""
        if not self.unless.isdisjoint(contained):
            return ()
        return self.prefix[index] if index < len(self.prefix) else self.rest or ()


class ContainsRule(msgspec.Struct, frozen=True):
    """Of the items from `start` on, least..most (None: any number) are valid at some places."""

    places: SchemaRefs  # one
    least: int
    most: int | None = None
    start: int = 0
    evaluates: bool = True  # for unevaluatedItems; what a negation says does not

    @property
    def says_nothing(self) -> bool:
        """Whether any number of items will do."""
        return not self.least and self.most is None


class ObjectRule(msgspec.Struct, frozen=True, eq=False):
    """What one schema says about the properties; extra None: nothing about unnamed ones."""

    named: Mapping[str, SchemaRefs]
    patterns: tuple[tuple[Expr, SchemaRefs], ...] = ()
    extra: SchemaRefs | None = None
    evaluates: bool = True  # for unevaluatedProperties; what a negation says does not

    def places(self, name: str) -> SchemaRefs:
        """Return what holds for the value of a property."""
        found = self.named.get(name, ())
        if not self.patterns:
            return found if name in self.named else self.extra or ()
        matching = [places for expr, places in self.patterns if regex.matches(expr, name)]
        found += tuple(place for places in matching for place in places)
        if name in self.named or matching:
            return found
        return self.extra or ()


class MemberRule(msgspec.Struct, frozen=True):
    """At least one property has a key out of `keys` that is valid at `names`, and a value that is
    valid at `places`: what breaks a rule that speaks of all properties."""

    keys: Expr
    names: SchemaRefs = ()
    places: SchemaRefs = ()
    pointer: str = ""  # of the keyword that is broken


class Obstacle(msgspec.Struct, frozen=True):
    """A keyword that can't be enforced, should a value of this kind be possible."""

    kind: Kind
    pointer: str
    keyword: str
    reason: str
    judge: Callable[[Any], bool] | None = None  # of a given value; None: not even that
    narrower: tuple[Facts, ...] = ()  # what can be enforced in its place, as alternatives


class Facts(msgspec.Struct, frozen=True, eq=False):
    """A conjunction of simple assertions; the fields of a kind speak about that kind only."""

    kinds: Kinds = ALL
    is_typed: bool = False  # a type was given, not only guessed from the keywords
    literals: Literals | None = None  # const, enum: the values by their json_key
    booleans: frozenset[bool] = frozenset({False, True})
    low: Bound | None = None
    high: Bound | None = None
    multiples: tuple[Decimal, ...] = ()
    non_multiples: tuple[Decimal, ...] = ()  # multipleOf, negated
    text: Expr = ANY_TEXT
    formats: tuple[str, ...] = ()
    min_length: int = 0
    max_length: int | None = None
    arrays: tuple[ArrayRule, ...] = ()
    min_items: int = 0
    max_items: int | None = None
    contains: tuple[ContainsRule, ...] = ()
    unique: tuple[str, ...] = ()  # places of uniqueItems: the items differ
    objects: tuple[ObjectRule, ...] = ()
    required: tuple[str, ...] = ()
    forbidden: frozenset[str] = frozenset()
    names: SchemaRefs = ()  # propertyNames
    members: tuple[MemberRule, ...] = ()  # negated rules, each for a property that breaks it
    min_properties: int = 0
    max_properties: int | None = None
    obstacles: tuple[Obstacle, ...] = ()
    pointer: str = ""  # where most of it was said, for messages

    def item(self, index: int, contained: Set[SchemaRefs] = frozenset()) -> SchemaRefs:
        """Return what holds for the array item at an index; contained: see ArrayRule."""
        return merged_refs(*(rule.places(index, contained) for rule in self.arrays))

    def value(self, name: str) -> SchemaRefs:
        """Return what holds for the value of a property."""
        if len(self.objects) == 1:
            return self.objects[0].places(name)
        return merged_refs(*(rule.places(name) for rule in self.objects))

    def mentions(self) -> Kinds:
        """Return the kinds that some assertion speaks of."""
        said: set[Kind] = {obstacle.kind for obstacle in self.obstacles}
        if self.low is not None or self.high is not None:
            said |= NUMBERS
        if self.multiples or self.non_multiples:
            said |= NUMBERS
        if self.text is not ANY_TEXT or self.formats or self.min_length:
            said.add("string")
        if self.max_length is not None:
            said.add("string")
        if self.arrays or self.min_items or self.max_items is not None:
            said.add("array")
        if self.unique or not all(rule.says_nothing for rule in self.contains):
            said.add("array")
        if self.objects or self.required or self.forbidden or self.names:
            said.add("object")
        if self.members or self.min_properties or self.max_properties is not None:
            said.add("object")
        if len(self.booleans) < 2:
            said.add("boolean")
        return frozenset(said)

    def is_telling(self) -> bool:
        """Tell whether anything is asserted besides types."""
        return self.literals is not None or bool(self.mentions())

    def is_free(self, kind: Kind) -> bool:
        """Tell whether every value of the kind is allowed, should the kind be."""
        return self.literals is None and kind not in self.mentions()


def merged_refs(*several: SchemaRefs) -> SchemaRefs:
    """Return all places, each once, in order."""
    if len(several) == 1:
        return several[0]
    return tuple(dict.fromkeys(place for places in several for place in places))


def negation(places: SchemaRefs) -> SchemaRef:
    """Return where the values are that are not valid at one place."""
    (place,) = places
    return replace(place, negated=not place.negated)


def declared_names(facts: Facts) -> list[str]:
    """Return the declared names in their order, required ones that no schema names last."""
    names = dict.fromkeys(name for rule in facts.objects for name in rule.named)
    names.update(dict.fromkeys(facts.required))
    return [name for name in names if name not in facts.forbidden]


def with_property(facts: Facts, name: str, places: SchemaRefs) -> Facts:
    """Return the facts of the objects that have a property, its value valid at some places."""
    required = tuple(dict.fromkeys((*facts.required, name)))
    rule = ObjectRule({name: places}, evaluates=False)
    return replace(facts, required=required, objects=(*facts.objects, rule))


def meet(left: Facts, right: Facts) -> Facts | None:
    """Return what holds when both do; None: plainly nothing does."""
    kinds = left.kinds & right.kinds
    if not kinds:
        return None
    return Facts(
        kinds=kinds,
        is_typed=left.is_typed or right.is_typed,
        literals=_both_literals(left.literals, right.literals),
        booleans=left.booleans & right.booleans,
        low=tighter(left.low, right.low, 1),
        high=tighter(left.high, right.high, -1),
        multiples=_each_once(left.multiples, right.multiples),
        non_multiples=_each_once(left.non_multiples, right.non_multiples),
        text=regex.intersection(left.text, right.text),
        formats=_each_once(left.formats, right.formats),
        min_length=max(left.min_length, right.min_length),
        max_length=_least(left.max_length, right.max_length),
        arrays=left.arrays + right.arrays,
        min_items=max(left.min_items, right.min_items),
        max_items=_least(left.max_items, right.max_items),
        contains=_each_once(left.contains, right.contains),
        unique=_each_once(left.unique, right.unique),
        objects=left.objects + right.objects,
        required=_each_once(left.required, right.required),
        forbidden=left.forbidden | right.forbidden,
        names=merged_refs(left.names, right.names),
        members=_each_once(left.members, right.members),
        min_properties=max(left.min_properties, right.min_properties),
        max_properties=_least(left.max_properties, right.max_properties),
        obstacles=left.obstacles + right.obstacles,
        pointer=left.pointer if left.is_telling() or not right.is_telling() else right.pointer,
    )


def _each_once(left: tuple[T, ...], right: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(left + right)) if left and right else left or right


def _least(left: int | None, right: int | None) -> int | None:
    return right if left is None else left if right is None else min(left, right)


def tighter(left: Bound | None, right: Bound | None, sign: int) -> Bound | None:
    """Return the bound that allows less; sign 1: lower bounds, -1: upper bounds."""
    if left is None or right is None:
        return left or right
    return max(left, right, key=lambda bound: (sign * bound.value, bound.is_open))


def _both_literals(left: Literals | None, right: Literals | None) -> Literals | None:
    if left is None or right is None:
        return right if left is None else left
    return {key: value for key, value in left.items() if key in right}


def keyed(values: Iterable[Any]) -> dict[Hashable, Any]:
    """Return JSON values by their keys: each once, the first spelling of it, in order."""
    found: dict[Hashable, Any] = {}
    for value in values:
        found.setdefault(json_key(value), value)
    return found


def json_key(value: Any) -> Hashable:
    """Return a key that two JSON values share exactly when JSON schema calls them equal.

    1 is 1.0 but not true, 0 is -0.0 but not false, and the order of members does not matter;
    Python's own == confuses booleans and numbers, however deep inside a list or an object.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, int | float):
        return ("number", decimal_of(value))
    if isinstance(value, list):
        return ("array", tuple(map(json_key, value)))
    if isinstance(value, dict):
        return ("object", frozenset((name, json_key(item)) for name, item in value.items()))
    return None


def decimal_of(number: float) -> Decimal:
    """Return the number that its JSON text says: 0.1 is one tenth, not the float nearest to it."""
    return Decimal(number) if isinstance(number, int) else Decimal(repr(number))


def is_multiple(number: Decimal, step: Decimal) -> bool:
    """Tell exactly whether a number is a multiple; Decimal's own % has 28 digits and then fails."""
    return Fraction(number) % Fraction(step) == 0


def same(left: Any, right: Any) -> bool:
    """Tell whether two JSON values are equal as JSON schema has it: 1 is 1.0 but not true."""
    return json_key(left) == json_key(right)


def kind_of(value: Any) -> Kind:
    """Return the kind of a JSON value."""
    kind = _KINDS.get(type(value))
    if kind is None:  # a float
        return "integer" if value == int(value) else "fraction"
    return kind


_KINDS: Mapping[type, Kind] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    list: "array",
    dict: "object",
    type(None): "null",
}
