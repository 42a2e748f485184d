"""Negations of what speaks of all properties: patterns, others, names, counts; on small objects."""

from __future__ import annotations

import json
from itertools import combinations, permutations, product
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plait.decoders.constrained.compile import compile_constraint, lower
from plait.decoders.constrained.load import ConstraintLoader
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    JsonStyle,
    UnsupportedKeyword,
)
from plait.decoders.constrained.vocabulary import make_vocabulary
from tests.fixtures.constraint_vocabularies import automaton_of, matches

ANY = JsonStyle("compact", "open", "any", "any")
ORDERED = JsonStyle("compact", "open", untyped="any")
LIMITS = ConstraintLimits()
BYTES = make_vocabulary([*(bytes([b]) for b in range(256)), b""], [256])
KEYS, VALUES = ["a", "b", "ab"], [1, "x", None]
OBJECTS: list[Any] = [
    dict(zip(keys, values, strict=True))
    for n in range(len(KEYS) + 1)
    for keys in combinations(KEYS, n)
    for values in product(VALUES, repeat=n)
]
INSTANCES = [*OBJECTS, 1, "a", [], {"a": {"b": 1}}, {"a": {"b": "x"}}, {"a": {}}]
INTEGER, STRING, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}


def _accepted(schema: Any, style: JsonStyle = ANY) -> list[Any]:
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=style)
    automaton = automaton_of(lower(spec, LIMITS))
    return [v for v in INSTANCES if matches(automaton, _text(v))]


def _text(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _valid(schema: Any) -> list[Any]:
    validator = jsonschema_rs.validator_for(schema)
    return [value for value in INSTANCES if validator.is_valid(value)]


EXACT: dict[str, Any] = {
    "others": {"not": {"additionalProperties": INTEGER}},
    "others beside declared ones": {
        "properties": {"a": INTEGER},
        "not": {"properties": {"b": True}, "additionalProperties": INTEGER},
    },
    "closed": {"type": "object", "not": {"properties": {"a": {}}, "additionalProperties": False}},
    "a pattern": {"type": "object", "not": {"patternProperties": {"a": STRING}}},
    "two patterns": {"not": {"patternProperties": {"a": STRING, "^b": INTEGER}}},
    "names": {"type": "object", "not": {"propertyNames": {"minLength": 2}}},
    "names of an enum": {"not": {"propertyNames": {"enum": ["a", "ab"]}}},
    "a name is there": {"type": "object", "not": {"propertyNames": {"not": {"const": "b"}}}},
    "no name is good": {"type": "object", "not": {"propertyNames": False}},
    "most": {"type": "object", "not": {"maxProperties": 1}},
    "least within most": {"maxProperties": 2, "not": {"minProperties": 2}},
    "least beyond most": {"type": "object", "maxProperties": 1, "not": {"minProperties": 3}},
    "two rules, one property or two": {
        "type": "object",
        "allOf": [
            {"not": {"patternProperties": {"a": STRING}}},
            {"not": {"patternProperties": {"b": INTEGER}}},
        ],
        "maxProperties": 2,
    },
    "not not": {"not": {"anyOf": [{"not": {"patternProperties": {"b": NULL}}}, INTEGER]}},
    "below": {"properties": {"a": {"type": "object", "not": {"additionalProperties": INTEGER}}}},
    "negated below": {
        "properties": {"a": {"type": "object"}},
        "required": ["a"],
        "not": {"properties": {"a": {"additionalProperties": INTEGER}}},
    },
    "one or the other": {
        "type": "object",
        "oneOf": [{"patternProperties": {"a": NULL}}, {"patternProperties": {"b": NULL}}],
    },
    "one of closed ones": {
        "oneOf": [{"properties": {k: True}, "additionalProperties": False} for k in ("a", "b")],
    },
    "if": {
        "if": {"additionalProperties": INTEGER},
        "then": {"maxProperties": 1},
        "else": {"required": ["ab"]},
    },
}


@pytest.mark.parametrize("schema", EXACT.values(), ids=EXACT.keys())
def test_exactly_the_valid_objects_are_accepted(schema: Any) -> None:
    want = _valid(schema)

    assert _accepted(schema) == want
    assert 0 < len(want) < len(INSTANCES)


@pytest.mark.parametrize("schema", EXACT.values(), ids=EXACT.keys())
def test_in_the_order_of_the_schema_some_order_of_each_is_accepted(schema: Any) -> None:
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=ORDERED)
    automaton = automaton_of(lower(spec, LIMITS))

    def some_order(value: Any) -> bool:
        orders = permutations(value.items()) if isinstance(value, dict) else [value]
        return any(matches(automaton, _text(dict(o) if value is not o else o)) for o in orders)

    assert [value for value in INSTANCES if some_order(value)] == _valid(schema)


def test_a_property_that_must_break_a_rule_stays_possible() -> None:
    """Where only one name can break it, that name is not spent on a value that does not."""
    schema = {
        "type": "object",
        "additionalProperties": {"enum": [1, "x"]},
        "propertyNames": {"enum": ["a", "b"]},
        "not": {"patternProperties": {"a": INTEGER}},
    }
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=ANY)
    done = compile_constraint(spec, BYTES, LIMITS)
    assert done.checked == ("/not/patternProperties",)
    start = ConstraintLoader(BYTES).load("", done.table)

    def accepted(text: bytes) -> int:
        constraint = start.fork()
        return next((i for i, b in enumerate(text) if not constraint.accept_token(b)), len(text))

    assert accepted(b'{"b":1,"a":"x"}') == len(b'{"b":1,"a":"x"}')
    assert accepted(b'{"a":1') == len(b'{"a":')
    assert accepted(b'{"b":1}') == len(b'{"b":1')


def test_too_many_ways_to_break_rules_are_refused_by_name() -> None:
    names = {f"p{i}": True for i in range(20)}
    broken = [{"not": {"patternProperties": {f"p{end}": INTEGER}}} for end in ("", "+", ".*")]
    with pytest.raises(UnsupportedKeyword, match="more than 256 kinds of objects") as have:
        _accepted({"type": "object", "properties": names, "allOf": broken})
    assert have.value.keyword == "patternProperties"


leaf = st.sampled_from([True, False, INTEGER, STRING, {"enum": [1, "x"]}])
said = st.fixed_dictionaries(
    {},
    optional={
        "properties": st.dictionaries(st.sampled_from(KEYS), leaf, max_size=2),
        "patternProperties": st.dictionaries(st.sampled_from(["a", "^b", "b$"]), leaf, max_size=2),
        "additionalProperties": leaf,
        "propertyNames": st.sampled_from([{"maxLength": 1}, {"const": "a"}, {"pattern": "b"}]),
        "required": st.lists(st.sampled_from(KEYS), max_size=2, unique=True),
        "minProperties": st.integers(0, 2),
        "maxProperties": st.integers(0, 2),
    },
)


@settings(max_examples=150, deadline=None)
@given(said, st.lists(said, min_size=1, max_size=2), st.sampled_from(["anyOf", "oneOf", "allOf"]))
def test_random_negations_are_exact_or_refused(own: Any, negated: list[Any], how: str) -> None:
    schema = {**own, "not": {how: negated}}
    want = _valid(schema)
    try:
        have = _accepted(schema)
    except UnsupportedKeyword:
        assume(False)
    except ConstraintError:
        have = []
    assert have == want
