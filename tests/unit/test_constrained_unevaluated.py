"""unevaluatedProperties and unevaluatedItems, and keys with a format, against a validator."""

from __future__ import annotations

import json
import random
from itertools import combinations
from typing import Any

import jsonschema_rs
import pytest

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.spec import ConstraintError, ConstraintLimits, ConstraintSpec
from plait.kernels.grammar import Automaton
from tests.fixtures.constraint_vocabularies import automaton_of, matches

Schema = dict[str, Any]


def _automaton(schema: Any) -> Automaton:
    spec = ConstraintSpec("json_schema", json.dumps(schema))
    return automaton_of(lower(spec, ConstraintLimits()))


def _accepts(automaton: Automaton, value: Any) -> bool:
    return matches(automaton, json.dumps(value, separators=(",", ":")).encode())


STRING, INTEGER = {"type": "string"}, {"type": "integer"}
OF_A: Schema = {"properties": {"a": INTEGER}, "required": ["a"]}
OF_B: Schema = {"properties": {"b": INTEGER}, "required": ["b"]}

CASES: list[tuple[Schema, list[Any], list[Any]]] = [
    ({**OF_A, "unevaluatedProperties": False}, [{"a": 1}], [{"a": 1, "b": 1}, {}]),
    (
        {**OF_A, "unevaluatedProperties": STRING},
        [{"a": 1}, {"a": 1, "c": "x"}],
        [{"a": "x"}, {"a": 1, "c": 2}],
    ),
    (
        {"type": "object", "allOf": [OF_A, {"$ref": "#/$defs/b"}], "$defs": {"b": OF_B}}
        | {"unevaluatedProperties": False},
        [{"a": 1, "b": 2}],
        [{"a": 1}, {"a": 1, "b": 2, "c": 3}],
    ),
    (
        {"type": "object", "oneOf": [OF_A, OF_B], "unevaluatedProperties": False},
        [{"a": 1}, {"b": 1}],
        [{"a": 1, "b": 1}, {"a": 1, "c": 1}],
    ),
    (
        {"type": "object", "patternProperties": {"^x": STRING}, "unevaluatedProperties": INTEGER},
        [{"x1": "a", "y": 2}, {"y": 2}],
        [{"x1": 2}, {"y": "a"}],
    ),
    (
        {"type": "object", "properties": {"c": True}, "if": OF_A, "else": OF_B}
        | {"unevaluatedProperties": False},
        [{"c": 1, "a": 1}, {"c": 1, "b": 1}],
        [{"c": 1, "a": 1, "b": 1}, {"c": 1}],
    ),
    (
        {"type": "object", "not": {"not": OF_A}, "unevaluatedProperties": STRING},
        [],
        [{"a": 1}, {"a": "x"}, {}],
    ),
    (
        {"allOf": [{**OF_A, "unevaluatedProperties": STRING}], "unevaluatedProperties": False},
        [{"a": 1}, {"a": 1, "z": "s"}],
        [{"a": 1, "z": 1}],
    ),
    (
        {"type": "array", "prefixItems": [INTEGER], "unevaluatedItems": False},
        [[], [1]],
        [[1, 2], ["a"]],
    ),
    (
        {"type": "array", "allOf": [{"prefixItems": [True, STRING]}], "prefixItems": [INTEGER]}
        | {"unevaluatedItems": {"type": "null"}},
        [[1, "a"], [1, "a", None]],
        [[1, 2], [1, "a", 3]],
    ),
    ({"type": "array", "items": INTEGER, "unevaluatedItems": False}, [[], [1, 2]], [["a"]]),
    (
        {"type": "object", "propertyNames": {"format": "uuid"}, "additionalProperties": INTEGER},
        [{"0f0e0d0c-0b0a-4908-8706-050403020100": 1}, {}],
        [{"0f0e": 1}, {"0f0e0d0c-0b0a-4908-8706-050403020100": "a"}],
    ),
    (
        {"type": "object", "propertyNames": {"format": "date"}, "properties": {"2024-02-30": True}},
        [{"2024-02-29": 1}],
        [{"2024-02-30": 1}, {"2024-2-1": 1}],
    ),
    (
        {"propertyNames": {"enum": ["up", "down"], "maxLength": 3}, "type": "object"},
        [{"up": 1}, {}],
        [{"down": 1}, {"u": 1}],
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=[json.dumps(c[0]) for c in CASES])
def test_what_a_schema_accepts(schema: Schema, good: list[Any], bad: list[Any]) -> None:
    try:
        automaton = _automaton(schema)
    except ConstraintError:
        assert good == []
        return
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)

    assert [v for v in good if not (_accepts(automaton, v) and validator.is_valid(v))] == []
    assert [v for v in bad if _accepts(automaton, v) or validator.is_valid(v)] == []


def _random_schema(draw: random.Random, depth: int = 2) -> Schema:
    """Return a schema of objects that names some of a, b, c in some place."""
    schema: Schema = {}
    if draw.random() < 0.6:
        names = draw.sample("abc", draw.randrange(1, 3))
        schema["properties"] = {name: draw.choice([INTEGER, STRING, True]) for name in names}
        schema["required"] = draw.sample(names, draw.randrange(len(names) + 1))
    if draw.random() < 0.2:
        schema["patternProperties"] = {draw.choice("bcd"): draw.choice([INTEGER, True])}
    if depth:
        for keyword in draw.sample(["allOf", "anyOf", "oneOf"], draw.randrange(3)):
            schema[keyword] = [_random_schema(draw, depth - 1) for _ in range(draw.randrange(1, 3))]
        if draw.random() < 0.25:
            parts = ["if", "then", "else"][: draw.randrange(1, 4)]
            schema |= {part: _random_schema(draw, depth - 1) for part in parts}
        if draw.random() < 0.15:
            schema["not"] = {"not": _random_schema(draw, 0)}
        if draw.random() < 0.15:
            schema["dependentSchemas"] = {draw.choice("abc"): _random_schema(draw, 0)}
    if draw.random() < 0.5:
        schema["unevaluatedProperties"] = draw.choice([False, INTEGER, STRING, True])
    return schema


VALUES = [
    dict(zip(names, values, strict=False))
    for count in range(4)
    for names in combinations("abcd", count)
    for values in ((1, "s", 2), ("s", 1, "t"))
]


def test_nothing_is_accepted_that_a_validator_refuses() -> None:
    draw = random.Random(13)
    judged = accepted = 0
    for _ in range(600):
        schema = {"type": "object", **_random_schema(draw), "unevaluatedProperties": False}
        try:
            automaton = _automaton(schema)
        except ConstraintError:
            continue
        validator = jsonschema_rs.validator_for(schema)
        taken = [value for value in VALUES if _accepts(automaton, value)]
        judged, accepted = judged + 1, accepted + len(taken)
        assert [(schema, value) for value in taken if not validator.is_valid(value)] == []

    assert judged > 200
    assert accepted > 600
