"""contains, minContains, maxContains and what negates them, on every small array."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import assume, given, settings
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

STYLE = JsonStyle(whitespace="compact", objects="open", untyped="any")
ITEMS = [1, 2, "a", None]
ARRAYS: list[Any] = [list(row) for n in range(5) for row in product(ITEMS, repeat=n)]
ARRAYS += [1, "a", {"a": 1}]
ONE, INTEGER, STRING = {"const": 1}, {"type": "integer"}, {"type": "string"}


def _accepted(schema: Any) -> list[Any]:
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=STYLE)
    automaton = automaton_of(lower(spec, ConstraintLimits()))
    return [v for v in ARRAYS if matches(automaton, json.dumps(v, separators=(",", ":")).encode())]


def _valid(schema: Any) -> list[Any]:
    validator = jsonschema_rs.validator_for(schema)
    return [value for value in ARRAYS if validator.is_valid(value)]


EXACT: dict[str, Any] = {
    "one": {"contains": ONE},
    "two": {"contains": INTEGER, "minContains": 2},
    "at most one": {"contains": ONE, "maxContains": 1},
    "none": {"contains": ONE, "minContains": 0, "maxContains": 0},
    "no number at all": {"contains": ONE, "minContains": 0},
    "between": {"contains": STRING, "minContains": 1, "maxContains": 2, "minItems": 2},
    "alone": {"minContains": 2, "maxContains": 1},
    "short": {"contains": INTEGER, "minContains": 2, "maxItems": 2},
    "listed items": {"prefixItems": [STRING, INTEGER], "items": INTEGER, "contains": ONE},
    "two of them": {"allOf": [{"contains": ONE}, {"contains": STRING, "maxContains": 1}]},
    "the same twice": {"allOf": [{"contains": ONE}, {"contains": ONE, "minContains": 2}]},
    "negated": {"type": "array", "not": {"contains": ONE}},
    "negated count": {
        "type": "array",
        "not": {"contains": INTEGER, "minContains": 2, "maxContains": 2},
    },
    "negated items": {"type": "array", "not": {"items": INTEGER}},
    "negated list": {"type": "array", "not": {"prefixItems": [INTEGER, STRING], "items": INTEGER}},
    "one or the other": {"oneOf": [{"contains": ONE}, {"contains": STRING}], "maxItems": 3},
    "if": {"if": {"contains": ONE}, "then": {"maxItems": 2}, "else": {"items": STRING}},
    "unevaluated": {"contains": ONE, "unevaluatedItems": STRING},
    "unevaluated behind a list": {
        "prefixItems": [STRING],
        "contains": ONE,
        "unevaluatedItems": False,
    },
    "evaluated by two": {
        "allOf": [{"contains": ONE}, {"contains": STRING, "minContains": 0}],
        "unevaluatedItems": {"type": "null"},
    },
    "if alone evaluates": {
        "if": {"prefixItems": [INTEGER]},
        "unevaluatedItems": False,
    },
    "anyOf evaluates together": {
        "anyOf": [{"prefixItems": [INTEGER]}, {"prefixItems": [True, STRING]}],
        "unevaluatedItems": False,
    },
}


@pytest.mark.parametrize("schema", EXACT.values(), ids=EXACT.keys())
def test_exactly_the_valid_arrays_are_accepted(schema: Any) -> None:
    want = _valid(schema)

    assert _accepted(schema) == want
    assert want
    assert (
        len(want) < len(ARRAYS) or schema == EXACT["alone"] or schema == EXACT["no number at all"]
    )


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"contains": INTEGER, "minContains": 6000}, "more than 5000 rules"),
        ({"contains": ONE, "minContains": -1}, "non-negative integer"),
        ({"contains": 3}, "a schema"),
    ],
)
def test_what_can_not_be_counted_is_refused_by_name(schema: Any, reason: str) -> None:
    with pytest.raises(UnsupportedKeyword, match=reason):
        _accepted({"type": "array", **schema})


@pytest.mark.parametrize(
    "schema",
    [
        {"contains": ONE, "minContains": 2, "maxContains": 1},
        {"contains": False},
        {"contains": ONE, "minContains": 3, "maxItems": 2},
        {"contains": ONE, "items": STRING},
    ],
)
def test_contradictions_are_found(schema: Any) -> None:
    with pytest.raises(ConstraintError, match="no answer can satisfy it"):
        _accepted({"type": "array", **schema})


leaves = st.sampled_from([ONE, INTEGER, STRING, {"enum": [1, "a"]}, True, {"not": ONE}])
array_schemas = st.fixed_dictionaries(
    {},
    optional={
        "contains": leaves,
        "minContains": st.integers(0, 3),
        "maxContains": st.integers(0, 3),
        "items": leaves,
        "prefixItems": st.lists(leaves, min_size=1, max_size=2),
        "minItems": st.integers(0, 3),
        "maxItems": st.integers(0, 4),
        "unevaluatedItems": leaves,
        "not": st.fixed_dictionaries({"contains": leaves}, optional={"items": leaves}),
        "allOf": st.lists(st.fixed_dictionaries({"contains": leaves}), min_size=1, max_size=2),
    },
)


@settings(max_examples=120, deadline=None)
@given(array_schemas)
def test_no_invalid_array_is_accepted(schema: Any) -> None:
    try:
        have = _accepted(schema)
    except ConstraintError:
        assume(False)

    assert [value for value in have if value not in _valid(schema)] == []
