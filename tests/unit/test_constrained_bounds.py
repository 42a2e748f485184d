"""Bounds of numbers with and without exponents, near the bounds too: as a validator reads them."""

from __future__ import annotations

import json
import math
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
)
from plait.kernels.grammar import Automaton
from tests.fixtures.constraint_vocabularies import automaton_of, matches

ANY = JsonStyle(numbers="any")
BOUNDS = [0, 1, -1, 0.1, -0.1, 9.99, 10, 100, 12345678, 1e-6, -1e-6, 1e-7, 3e20, 1e300]
KEYWORDS = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]


def _automaton(schema: Any, style: JsonStyle = ANY) -> Automaton:
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=style)
    return automaton_of(lower(spec, ConstraintLimits()))


def _accepts(schema: Any, text: str, style: JsonStyle = ANY) -> bool:
    return matches(_automaton(schema, style), text.encode())


limits = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYWORDS, st.sampled_from(BOUNDS)))
near = st.builds(
    lambda bound, factor: bound * factor,
    st.sampled_from(BOUNDS),
    st.sampled_from([1, 1 + 1e-15, 1 - 1e-15, 1.5, -1]),
)
numbers = st.one_of(near, st.floats(-1e25, 1e25), st.integers(-(10**9), 10**9))


@settings(max_examples=100, deadline=None)
@given(limits, st.lists(numbers, min_size=1, max_size=40))
def test_numbers_are_accepted_as_a_validator_does(said: Any, values: list[float]) -> None:
    schema = {"type": "number", **said}
    assume(said)
    validator = jsonschema_rs.validator_for(schema)
    try:
        automaton = _automaton(schema)
    except ConstraintError:
        assert not any(map(validator.is_valid, values))
        return

    for value in values:
        text = json.dumps(value)
        is_plain = text != "-0.0" and abs(value) > 1e-20 and len(text) < 40
        want = validator.is_valid(value)
        assert matches(automaton, text.encode()) == want or (want and not is_plain), text


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"minimum": 0}, ["1e-07", "1E+5", "2.5e007", "0"], ["-1e-07", "1e-999", "0e5x"]),
        ({"maximum": -1.5}, ["-1.5e0", "-1.5E-0", "-2e+00"], ["-1.4e0", "-9e-1", "1e1"]),
        ({"exclusiveMaximum": 1e-3}, ["9.99e-4", "0.0009"], ["1e-3", "0.001", "1.0e-03"]),
        ({"minimum": 20, "maximum": 30}, ["2e1", "2.5e+1", "3e1"], ["1e1", "3.1e1", "2e2"]),
        ({"minimum": 5, "maximum": 4}, [], ["4e0", "5e0", "4.5"]),
    ],
)
def test_exponents_are_within_the_bounds(schema: Any, good: list[str], bad: list[str]) -> None:
    schema = {"anyOf": [{"type": "number", **schema}, {"type": "null"}]}

    assert [text for text in good if not _accepts(schema, text)] == []
    assert [text for text in bad if _accepts(schema, text)] == []
    assert not any(_accepts(schema, text, JsonStyle()) for text in good if "e" in text.lower())


@pytest.mark.parametrize("style", [JsonStyle(), ANY])
@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"exclusiveMaximum": 1}, "0.99999999999999999999"),
        ({"exclusiveMaximum": -1}, "-1.00000000000000000001"),
        ({"exclusiveMinimum": 0.1}, "0.100000000000000000001"),
        ({"exclusiveMinimum": 1e15}, "1000000000000000.00000001"),
    ],
)
def test_no_number_is_rounded_to_an_open_bound(schema: Any, text: str, style: JsonStyle) -> None:
    (bound,) = schema.values()
    inwards = -math.inf if "exclusiveMaximum" in schema else math.inf
    nearest = repr(math.nextafter(bound, inwards))

    assert float(text) == bound
    assert not _accepts({"type": "number", **schema}, text, style)
    assert _accepts({"type": "number", **schema}, nearest, style)


def test_decimals_of_unbounded_length_are_accepted_where_both_kinds_of_numbers_are() -> None:
    schema = {"type": "number", "minimum": 0}
    for text in ("0.0160425", "28.0134001", "1234567890123.125", "3.0"):
        assert _accepts(schema, text)
