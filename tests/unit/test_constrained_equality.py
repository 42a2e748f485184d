"""When two JSON values are equal: in enum, const and uniqueItems, against jsonschema-rs."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.load import ConstraintLoader, LoadedConstraint
from plait.decoders.constrained.schema.facts import json_key
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    JsonStyle,
    UnsupportedKeyword,
)
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES

LEAVES = [True, False, 1, 1.0, 0, 0.0, -0.0, 2, 0.5, "", "1", "true", None]
LOOK_ALIKES = [(True, 1, 1.0), (False, 0, 0.0, -0.0), ("", None), ("1", 1), ("true", True)]
PROPERTY = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)

values = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def _like(draw: st.DrawFn, value: Any) -> Any:
    """Draw a value that Python, or a careless reader, takes for the given one."""
    if isinstance(value, list):
        return [draw(_like(item)) for item in value]
    if isinstance(value, dict):
        names = draw(st.permutations(list(value)))
        return {name: draw(_like(value[name])) for name in names}
    alike = [other for group in LOOK_ALIKES if value in group for other in group]
    return draw(st.sampled_from([value, *alike]))


@st.composite
def _assertions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw enum, const and uniqueItems, each or not, const like a value of the enum."""
    schema: dict[str, Any] = {}
    if draw(st.booleans()):
        schema["enum"] = draw(st.lists(values, min_size=1, max_size=4))
    if draw(st.booleans()):
        known = schema.get("enum")
        schema["const"] = draw(_like(draw(st.sampled_from(known)))) if known else draw(values)
    if draw(st.booleans()):
        schema["uniqueItems"] = draw(st.booleans())
    return schema


def _literals(schema: Any) -> list[Any]:
    if not isinstance(schema, dict):
        return []
    found = [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])]
    for keyword in ("allOf", "anyOf", "oneOf"):
        found += [value for branch in schema.get(keyword, []) for value in _literals(branch)]
    return [*found, *_literals(schema.get("not"))]


@st.composite
def _with_look_alikes(draw: st.DrawFn, keywords: tuple[str, ...]) -> tuple[Any, Any]:
    """Draw a schema whose parts speak of values that look alike, and such a value."""
    schema = draw(_assertions())
    for keyword in draw(st.lists(st.sampled_from(keywords), max_size=2)):
        parts = [draw(_assertions()) for _ in range(draw(st.integers(1, 2)))]
        known = _literals(schema)
        for part in parts if known else []:
            part["enum"] = [draw(_like(value)) for value in known]
        schema = {**schema, keyword: parts[0] if keyword == "not" else parts}
        schema = draw(st.sampled_from([schema, {"allOf": [schema]}]))
    known = _literals(schema)
    return schema, draw(_like(draw(st.sampled_from(known)))) if known else draw(values)


def _loaded(schema: Any) -> LoadedConstraint | None:
    """Return the schema's constraint; None: it says that no answer is valid."""
    style = JsonStyle(untyped="any")
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=style)
    try:
        done = compile_constraint(spec, BYTES_AND_PIECES, ConstraintLimits())
        return ConstraintLoader(BYTES_AND_PIECES).load("", done.table)
    except UnsupportedKeyword:
        event("refused")
        assume(False)
    except ConstraintError as error:
        assert "no answer can satisfy it" in str(error)
    return None


def _accepts(start: LoadedConstraint | None, text: str) -> bool:
    if start is None:
        return False
    constraint = start.fork()
    return all(map(constraint.accept_token, text.encode())) and constraint.is_accepting()


@PROPERTY
@given(_with_look_alikes(("allOf",)))
def test_a_value_is_accepted_exactly_when_a_validator_accepts_it(drawn: tuple[Any, Any]) -> None:
    schema, value = drawn
    start = _loaded(schema)
    is_equal = jsonschema_rs.validator_for({"const": value}).is_valid
    # The grammar writes an enum's 1.0 as it stands there, so each spelling of the value is tried.
    spellings = [value, *(other for other in _literals(schema) if is_equal(other))]

    accepted = any(_accepts(start, json.dumps(spelling)) for spelling in spellings)

    assert accepted == jsonschema_rs.validator_for(schema).is_valid(value)


@PROPERTY
@given(_with_look_alikes(("allOf", "anyOf", "oneOf", "not")))
def test_what_is_accepted_among_negations_is_valid(drawn: tuple[Any, Any]) -> None:
    schema, value = drawn
    start = _loaded(schema)

    if _accepts(start, json.dumps(value)):
        assert jsonschema_rs.validator_for(schema).is_valid(value)


@settings(PROPERTY, max_examples=1000)
@given(values, st.data())
def test_keys_are_equal_exactly_when_a_validator_finds_the_values_equal(
    left: Any, data: st.DataObject
) -> None:
    right = data.draw(_like(left))

    assert (json_key(left) == json_key(right)) == jsonschema_rs.validator_for(
        {"const": left}
    ).is_valid(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [(2**53 + 1, float(2**53)), (0.1, 0.1 + 2e-17), (10**40, 10**40 + 1)],
)
def test_neighbours_are_different(left: Any, right: Any) -> None:
    assert json_key(left) != json_key(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [(10**40, 1e40), (-0.0, 0), (1e-5, 0.00001), ({"a": 0, "b": 1}, {"b": 1, "a": 0})],
)
def test_spellings_of_one_value_are_equal(left: Any, right: Any) -> None:
    assert json_key(left) == json_key(right)
    assert len({json_key(left), json_key(right)}) == 1


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        # Distinct items of a fixed value can be judged.
        ({"enum": [[0, False], [0, -0.0]], "uniqueItems": True}, "[0,false]", "[0,-0.0]"),
        # What an enum lists twice, by whatever spelling, is there once.
        ({"enum": [1, 1.0, True], "maximum": 1}, "1", "1.0"),
        # A negated enum gives back only what it would have allowed.
        (
            {"not": {"allOf": [{"not": {"enum": ["a", "bbb"], "maxLength": 2}}]}},
            '"a"',
            '"bbb"',
        ),
        # What is ruled out is judged by a list that is read later, whatever the lengths.
        ({"allOf": [{"not": {"enum": [[{"a": 1}], [3]]}}, {"enum": [[2], [3.0]]}]}, "[2]", "[3.0]"),
        (
            {"allOf": [{"not": {"const": {"a": 1}}}, {"enum": [{"a": True}, {"a": 1}]}]},
            '{"a":true}',
            '{"a":1}',
        ),
        ({"type": "array", "not": {"const": [1]}}, "[1,1]", "[1]"),
        ({"type": "array", "not": {"enum": [[1], [0]]}}, "[]", "[0]"),
        # Exact beyond the 28 digits of decimal arithmetic.
        ({"enum": [10**30 + 2, 10**30 + 3], "multipleOf": 2}, str(10**30 + 2), str(10**30 + 3)),
        ({"enum": [1e300, 1.5], "multipleOf": 5}, "1e+300", "1.5"),
    ],
)
def test_fixed_values_are_judged_exactly(schema: Any, accepted: str, refused: str) -> None:
    start = _loaded(schema)

    assert _accepts(start, accepted)
    assert not _accepts(start, refused)


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [[False]], "const": [0]},
        {"enum": [{"a": {"b": [1]}}], "allOf": [{"const": {"a": {"b": [True]}}}]},
        {"properties": {"x": {"enum": [0], "const": False}}, "required": ["x"], "type": "object"},
        {"allOf": [{"enum": [True, "x"]}, {"enum": [1, 1.0]}]},
    ],
)
def test_look_alikes_leave_no_answer(schema: Any) -> None:
    assert _loaded(schema) is None
