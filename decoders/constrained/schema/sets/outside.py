"""Parts of facts that break one assertion of unwanted facts, of each kind of value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.regex import ANY_TEXT, EMPTY_SET
from plait.decoders.constrained.schema.facts import (
    NUMBERS,
    ArrayRule,
    Bound,
    ContainsRule,
    Facts,
    Kind,
    MemberRule,
    ObjectRule,
    Obstacle,
    SchemaRef,
    SchemaRefs,
    decimal_of,
    json_key,
    kind_of,
    meet,
    merged_refs,
    negation,
    with_property,
)
from plait.decoders.constrained.schema.formats import NUMBER_FORMATS, possible

MAX_GAPS = 64  # numbers that are left out one by one


class Unprovable(Exception):
    """The question is beyond what can be decided here; the message says why."""


def without_literals(facts: Facts, values: list[Any], pointer: str) -> Iterator[Facts]:
    """Yield the facts without some values of one kind; raise Unprovable if it can't be said."""
    kind = kind_of(values[0])
    if kind == "boolean":
        yield replace(facts, booleans=facts.booleans - set(values))
    elif kind == "string":
        named = regex.union(regex.literal(value) for value in values)
        yield replace(facts, text=regex.intersection(facts.text, regex.complement(named)))
    elif kind in ("array", "object"):
        others = _not_among(values, kind, pointer)
        yield replace(facts, obstacles=(*facts.obstacles, others))
    elif kind in NUMBERS and len(values) <= MAX_GAPS:
        bounds = [Bound(value, is_open=True) for value in sorted(map(decimal_of, values))]
        for low, high in pairwise([None, *bounds, None]):
            if (part := meet(facts, Facts(low=low, high=high))) is not None:
                yield part
    else:
        raise Unprovable(f"{kind} values cannot be excluded one by one")


def _not_among(values: list[Any], kind: Kind, pointer: str) -> Obstacle:
    """Return what rules values out: one by one in a list that is given, arrays by length else."""
    keys, lengths = set(map(json_key, values)), [len(value) for value in values]
    listed = Facts(min_items=min(lengths), max_items=max(lengths))
    apart = tuple(lengths_outside(Facts(), listed)) if kind == "array" else ()
    reason = f"{kind} values cannot be excluded one by one"
    keyword = "const" if len(values) == 1 else "enum"
    return Obstacle(kind, pointer, keyword, reason, lambda v: json_key(v) not in keys, apart)


def structure_of(value: Any, place_of: Callable[[Any], SchemaRef]) -> Facts:
    """Return what an array or object is, part by part.

    place_of: where one value alone is valid.
    """
    if isinstance(value, list):
        items = tuple((place_of(item),) for item in value)
        rule = ArrayRule(items, None, evaluates=False)
        count = len(value)
        return Facts(frozenset({"array"}), arrays=(rule,), min_items=count, max_items=count)
    named = {name: (place_of(item),) for name, item in value.items()}
    return Facts(
        frozenset({"object"}),
        objects=(ObjectRule(named, evaluates=False),),
        required=tuple(named),
        max_properties=len(named),
    )


def numbers_outside(facts: Facts, unwanted: Facts) -> Iterator[Facts]:
    """Yield the numbers beyond a bound, or beside the multiples."""
    if any(name in NUMBER_FORMATS for name in unwanted.formats):
        raise Unprovable("a format cannot be negated")
    if unwanted.low is not None:
        below = Bound(unwanted.low.value, not unwanted.low.is_open)
        if (part := meet(facts, Facts(high=below))) is not None:
            yield part
    if unwanted.high is not None:
        above = Bound(unwanted.high.value, not unwanted.high.is_open)
        if (part := meet(facts, Facts(low=above))) is not None:
            yield part
    for multiple in unwanted.multiples:
        yield replace(facts, non_multiples=(*facts.non_multiples, multiple))
    for multiple in unwanted.non_multiples:
        yield replace(facts, multiples=(*facts.multiples, multiple))


def texts_outside(facts: Facts, unwanted: Facts) -> Iterator[Facts]:
    """Yield the texts without the format, the pattern, or the length."""
    for name in unwanted.formats:
        if (others := regex.complement(possible(name))) is not EMPTY_SET:
            yield replace(facts, text=regex.intersection(facts.text, others))
    if unwanted.text is not ANY_TEXT:
        yield replace(facts, text=regex.intersection(facts.text, regex.complement(unwanted.text)))
    if unwanted.min_length:
        yield from _met(facts, Facts(max_length=unwanted.min_length - 1))
    if unwanted.max_length is not None:
        yield from _met(facts, Facts(min_length=unwanted.max_length + 1))


def lengths_outside(facts: Facts, unwanted: Facts) -> Iterator[Facts]:
    """Yield the arrays that are too short or too long."""
    if unwanted.min_items:
        yield from _met(facts, Facts(max_items=unwanted.min_items - 1))
    if unwanted.max_items is not None:
        yield from _met(facts, Facts(min_items=unwanted.max_items + 1))


def items_outside(
    facts: Facts, unwanted: Facts, is_negatable: Callable[[SchemaRefs], bool]
) -> Iterator[Facts]:
    """Yield the arrays of which an item breaks a rule that can be negated."""
    for rule in unwanted.arrays:
        for index, places in enumerate(rule.prefix):
            if places and is_negatable(places):
                broken = ArrayRule(((),) * index + ((negation(places),),), None, evaluates=False)
                longer = max(facts.min_items, index + 1)
                yield replace(facts, arrays=(*facts.arrays, broken), min_items=longer)
        if rule.rest and not rule.unless and is_negatable(rule.rest):
            start = len(rule.prefix)
            wrong = ContainsRule((negation(rule.rest),), 1, start=start, evaluates=False)
            yield replace(facts, contains=(*facts.contains, wrong))


def objects_outside(
    facts: Facts, unwanted: Facts, is_negatable: Callable[[SchemaRefs], bool]
) -> Iterator[Facts]:
    """Yield the objects that break one assertion each, as far as it can be negated."""
    for name in unwanted.required:
        if name not in facts.required:
            yield replace(facts, forbidden=facts.forbidden | {name})
    for name in sorted(unwanted.forbidden):
        yield with_property(facts, name, ())
    for rule in unwanted.objects:
        for name, places in rule.named.items():
            if places and is_negatable(places):
                yield with_property(facts, name, (negation(places),))
    for broken in _breaking(unwanted, is_negatable):
        yield replace(facts, members=(*facts.members, broken))
    for member in unwanted.members:
        yield from _without_members(facts, member, is_negatable)
    yield from _sizes_outside(facts, unwanted)


def _breaking(unwanted: Facts, is_negatable: Callable[[SchemaRefs], bool]) -> Iterator[MemberRule]:
    """Yield which properties break what is said of names, of keys with a pattern, of all others."""
    for place in unwanted.names:
        if is_negatable((place,)):
            yield MemberRule(ANY_TEXT, names=(negation((place,)),), pointer=place.pointer)
    for rule in unwanted.objects:
        for expr, places in rule.patterns:
            if places and is_negatable(places):
                pointer = places[0].pointer.rpartition("/")[0]
                yield MemberRule(expr, places=(negation(places),), pointer=pointer)
        if rule.extra and is_negatable(rule.extra):
            known = [*map(regex.literal, rule.named), *(expr for expr, _ in rule.patterns)]
            others = regex.complement(regex.union(known))
            wrong = (negation(rule.extra),)
            yield MemberRule(others, places=wrong, pointer=rule.extra[0].pointer)


def _sizes_outside(facts: Facts, unwanted: Facts) -> Iterator[Facts]:
    if unwanted.min_properties:
        yield from _met(facts, Facts(max_properties=unwanted.min_properties - 1))
    if unwanted.max_properties is not None:
        yield from _met(facts, Facts(min_properties=unwanted.max_properties + 1))


def _met(facts: Facts, other: Facts) -> Iterator[Facts]:
    """Yield what both allow, if that is anything."""
    if (part := meet(facts, other)) is not None:
        yield part


def _without_members(
    facts: Facts, rule: MemberRule, is_negatable: Callable[[SchemaRefs], bool]
) -> Iterator[Facts]:
    """Yield the objects without a property as a rule asks for."""
    if not rule.names and is_negatable(rule.places):
        others = ObjectRule({}, ((rule.keys, (negation(rule.places),)),), evaluates=False)
        yield replace(facts, objects=(*facts.objects, others))
    elif rule.keys is ANY_TEXT and not rule.places and is_negatable(rule.names):
        yield replace(facts, names=merged_refs(facts.names, (negation(rule.names),)))


def counts_outside(facts: Facts, unwanted: Facts) -> Iterator[Facts]:
    """Yield the arrays that contain too few or too many items of a kind."""
    for rule in unwanted.contains:
        if rule.least:
            fewer = replace(rule, least=0, most=rule.least - 1, evaluates=False)
            yield replace(facts, contains=(*facts.contains, fewer))
        if rule.most is not None:
            more = replace(rule, least=rule.most + 1, most=None, evaluates=False)
            yield replace(facts, contains=(*facts.contains, more))
