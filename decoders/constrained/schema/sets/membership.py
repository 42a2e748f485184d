"""Whether a given value satisfies facts, kind by kind, exactly as JSON Schema says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.regex import ANY_TEXT
from plait.decoders.constrained.schema.facts import (
    Facts,
    Kind,
    MemberRule,
    SchemaRefs,
    decimal_of,
    is_multiple,
    keyed,
)
from plait.decoders.constrained.schema.formats import possible, valid
from plait.decoders.constrained.schema.sets.outside import Unprovable

HoldsBelow = Callable[[SchemaRefs, Any], bool]  # whether a value further down is valid at places


def _admits_number(_: HoldsBelow, facts: Facts, value: Any) -> bool:
    number = decimal_of(value)
    low, high = facts.low, facts.high
    if low is not None and (number < low.value or (low.is_open and number == low.value)):
        return False
    if high is not None and (number > high.value or (high.is_open and number == high.value)):
        return False
    if any(is_multiple(number, other) for other in facts.non_multiples):
        return False
    return all(is_multiple(number, multiple) for multiple in facts.multiples)


def _admits_text(_: HoldsBelow, facts: Facts, value: Any) -> bool:
    if len(value) < facts.min_length:
        return False
    if facts.text is not ANY_TEXT and not regex.matches(facts.text, value):
        return False
    if facts.max_length is not None and len(value) > facts.max_length:
        return False
    if not all(regex.matches(possible(name), value) for name in facts.formats):
        return False
    for name in facts.formats:
        if not regex.matches(valid(name), value):
            reason = f"it is not certain whether {value!r} has the format {name!r}"
            raise Unprovable(f"{reason}; leave the format out where the texts are given")
    return True


def _admits_array(holds_below: HoldsBelow, facts: Facts, value: Any) -> bool:
    if len(value) < facts.min_items:
        return False
    if facts.max_items is not None and len(value) > facts.max_items:
        return False
    if facts.unique and len(keyed(value)) < len(value):
        return False
    counts = [0] * len(facts.contains)
    for index, item in enumerate(value):
        contained = set()
        for at, rule in enumerate(facts.contains):
            if holds_below(rule.places, item):
                contained.add(rule.places)
                counts[at] += index >= rule.start
        if not holds_below(facts.item(index, contained), item):
            return False
    return all(
        rule.least <= count and (rule.most is None or count <= rule.most)
        for rule, count in zip(facts.contains, counts, strict=True)
    )


def _admits_object(holds_below: HoldsBelow, facts: Facts, value: Any) -> bool:
    if len(value) < facts.min_properties or not set(facts.required) <= value.keys():
        return False
    if facts.max_properties is not None and len(value) > facts.max_properties:
        return False
    if not facts.forbidden.isdisjoint(value):
        return False
    if facts.names and not all(holds_below(facts.names, name) for name in value):
        return False
    if not all(_has_member(holds_below, rule, value) for rule in facts.members):
        return False
    return all(holds_below(facts.value(name), item) for name, item in value.items())


def _has_member(holds_below: HoldsBelow, rule: MemberRule, value: Mapping[str, Any]) -> bool:
    return any(
        regex.matches(rule.keys, name)
        and (not rule.names or holds_below(rule.names, name))
        and holds_below(rule.places, item)
        for name, item in value.items()
    )


ADMITS: dict[Kind, Callable[[HoldsBelow, Facts, Any], bool]] = {
    "null": lambda below, facts, value: True,
    "boolean": lambda below, facts, value: value in facts.booleans,
    "integer": _admits_number,
    "fraction": _admits_number,
    "string": _admits_text,
    "array": _admits_array,
    "object": _admits_object,
}
