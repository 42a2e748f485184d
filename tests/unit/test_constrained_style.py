"""How JSON is written where its schema leaves that open: blanks, and undeclared properties."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.spec import (
    ConstraintKind,
    ConstraintLimits,
    ConstraintSpec,
    JsonStyle,
    content_key,
)
from tests.fixtures.constraint_vocabularies import automaton_of, matches

OPEN = JsonStyle(objects="open")
VALUE = {"a": [1, {"b": [], "c": {}}, "x, y: z"], "d": None}
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "array", "items": {"type": ["integer", "object", "string"]}},
        "d": {"const": None},
    },
}
CONSTANT = {"const": VALUE}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
EITHER = {
    "type": "object",
    "oneOf": [{"properties": {n: {"type": "integer"}}, "required": [n]} for n in ("a", "b")],
}


def _accepts(
    schema: Any, text: str, style: JsonStyle, kind: ConstraintKind = "json_schema"
) -> bool:
    spec = ConstraintSpec(kind, json.dumps(schema) if kind == "json_schema" else "", style=style)
    return matches(automaton_of(lower(spec, ConstraintLimits())), text.encode())


@pytest.mark.parametrize(
    ("kind", "schema"),
    [("json_schema", SCHEMA), ("json_schema", CONSTANT), ("json_object", None)],
    ids=["schema", "constant", "object"],
)
@pytest.mark.parametrize("asked", ["compact", "spaced"])
def test_one_way_to_write_blanks(kind: ConstraintKind, schema: Any, asked: Any) -> None:
    ways = {
        "compact": json.dumps(VALUE, separators=(",", ":")),
        "spaced": json.dumps(VALUE),
        "half": json.dumps(VALUE, separators=(", ", ":")),
        "pretty": json.dumps(VALUE, indent=2),
        "inside": json.dumps(VALUE).replace("{", "{ "),
    }
    style = JsonStyle(whitespace=asked)
    taken = {way for way, text in ways.items() if _accepts(schema, text, style, kind)}
    assert taken == {asked}


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        ('{"name": "A", "age": 1, "more": [true], "yet": {"x": 1}}', True),
        ('{"name": "A", "more": 1}', True),
        ('{"more": 1}', False),  # without what is required
        ('{"name": "A", "age": "1"}', False),
        ('{"name": "A", "more": 1, "age": "1"}', False),  # a declared name is no other's
    ],
)
def test_open_objects_keep_what_the_schema_says(text: str, is_taken: bool) -> None:
    assert _accepts(PERSON, text, OPEN) == is_taken
    assert not _accepts(PERSON, text, JsonStyle())


@pytest.mark.parametrize(
    "schema",
    [
        PERSON | {"additionalProperties": False},
        PERSON | {"unevaluatedProperties": False},
        PERSON | {"maxProperties": 1},
        PERSON | {"propertyNames": {"enum": ["name", "age"]}},
        {"allOf": [PERSON, {"properties": {"more": False}}]},
        {"allOf": [PERSON, {"not": {"required": ["more"]}}]},
    ],
)
def test_what_a_schema_forbids_stays_out_of_open_objects(schema: Any) -> None:
    assert _accepts(schema, '{"name": "A"}', OPEN)
    assert not _accepts(schema, '{"name": "A", "more": 1}', OPEN)


def test_keys_without_a_pattern_may_have_any_value_in_open_objects() -> None:
    schema = {"type": "object", "patternProperties": {"^n": {"type": "integer"}}}
    for text, is_taken in [('{"n1": 1, "x": "y"}', True), ('{"n1": "y"}', False)]:
        assert _accepts(schema, text, OPEN) == is_taken
    assert not _accepts(schema, '{"n1": 1, "x": "y"}', JsonStyle())


def test_open_objects_do_not_wander_into_another_branch_of_one_of() -> None:
    for text, is_taken in [
        ('{"a": 1}', True),
        ('{"b": 1, "c": 2}', True),
        ('{"a": 1, "b": 2}', False),
        ('{"b": 1, "a": 2}', False),
    ]:
        assert _accepts(EITHER, text, OPEN) == is_taken


def test_styles_are_cached_apart() -> None:
    styles = [
        JsonStyle(),
        OPEN,
        JsonStyle("compact"),
        JsonStyle("spaced"),
        JsonStyle("spaced", "open"),
    ]
    specs = [ConstraintSpec("json_schema", "{}", style=style) for style in styles]
    assert len({content_key(spec, ConstraintLimits(), "") for spec in specs}) == len(styles)
