"""Arrays and objects that are ruled out by their value, part by part, on small instances."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    JsonStyle,
    UnsupportedKeyword,
)
from tests.fixtures.constraint_vocabularies import automaton_of, matches

ANY = JsonStyle("compact", "open", "any", "any", numbers="any")
SCALARS = [1, 2, "a", None, True]
INNER: list[Any] = [*SCALARS, [], [1], [1, "a"], ["a", 1], {}, {"a": 1}, {"a": "a"}, {"b": 1}]
INSTANCES: list[Any] = [
    *INNER,
    *([each] for each in INNER[5:]),
    *({"a": each} for each in INNER[5:]),
    {"a": 1, "b": 1},
    {"b": 1, "a": 1},
    {"a": 1.0},
    [1.0],
    [True],
]


def _accepted(schema: Any) -> list[Any]:
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=ANY)
    automaton = automaton_of(lower(spec, ConstraintLimits()))
    texts = [json.dumps(value, separators=(",", ":")).encode() for value in INSTANCES]
    return [v for v, text in zip(INSTANCES, texts, strict=True) if matches(automaton, text)]


def _valid(schema: Any) -> list[Any]:
    validator = jsonschema_rs.validator_for(schema)
    return [value for value in INSTANCES if validator.is_valid(value)]


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"const": {"a": 1}}},
        {"not": {"const": {"a": {"b": 1}}}},
        {"not": {"const": {"a": [1, "a"]}}},
        {"not": {"enum": [{"a": 1, "b": 1}, [1, "a"], {}, 2]}},
        {"type": "array", "not": {"enum": [[1, "a"], [], [[1]]]}},
        {"type": "object", "not": {"enum": [{"a": 1}, {"a": "a"}]}},
        {"oneOf": [{"const": {"a": 1}}, {"type": "object", "required": ["a"]}]},
        {"properties": {"a": {"not": {"const": [1]}}}},
        {"not": {"const": {"a": 1}, "required": ["b"]}},
        {"if": {"const": {"a": 1}}, "then": False, "else": {"maxProperties": 1}},
    ],
    ids=json.dumps,
)
def test_all_values_but_those_are_accepted(schema: Any) -> None:
    want = _valid(schema)

    assert _accepted(schema) == want
    assert len(want) > 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(INSTANCES), min_size=1, max_size=4), st.booleans())
def test_random_values_are_ruled_out_exactly_or_refused(values: list[Any], nested: bool) -> None:
    schema: Any = {"not": {"enum": values}}
    schema = {"properties": {"a": schema}, "required": ["a"]} if nested else schema
    want = _valid(schema)
    try:
        have = _accepted(schema)
    except UnsupportedKeyword as refused:
        assert "cannot be excluded one by one" in refused.reason
        return
    except ConstraintError:
        have = []
    assert have == want
