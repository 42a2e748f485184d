"""How JSON is written where its schema leaves that open: blanks, and undeclared properties."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.spec import (
    PRETTY,
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


def _in_every_order(value: dict[str, Any]) -> list[str]:
    return [json.dumps(dict(row)) for row in permutations(value.items())]


def test_keys_come_in_any_order_if_that_is_asked() -> None:
    any_order = JsonStyle(key_order="any")
    own = {"name": {"type": "string"}, "age": {"type": "integer"}}
    nested = {**PERSON, "properties": {**own, "pet": PERSON}}
    whole = {"name": "a", "age": 1, "pet": {"age": 2, "name": "b"}}

    assert [t for t in _in_every_order(whole) if not _accepts(nested, t, any_order)] == []
    assert sum(_accepts(nested, text, PRETTY) for text in _in_every_order(whole)) == 0
    for text in ("{}", '{"age": 1}', '{"name": "a", "name": "b"}', '{"age": 1, "age": 2}'):
        assert not _accepts(PERSON, text, any_order), text
    for text in ('{"name": "a"}', '{"age": 1, "name": "a"}', '{ "name": "a"\n}'):
        assert _accepts(PERSON, text, any_order), text


def test_any_order_counts_declared_properties_once() -> None:
    style = JsonStyle(key_order="any", whitespace="compact")
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in "abc"},
        "additionalProperties": False,
        "minProperties": 2,
        "maxProperties": 2,
        "required": ["b"],
    }
    pairs = [f'{{"{x}":1,"{y}":2}}' for x, y in permutations("abc", 2)]

    assert [p for p in pairs if _accepts(schema, p, style)] == [p for p in pairs if "b" in p]
    assert not _accepts(schema, '{"b":1}', style)
    assert not _accepts(schema, '{"a":1,"b":1,"c":1}', style)


def test_undeclared_keys_stand_anywhere_in_any_order() -> None:
    style = JsonStyle(key_order="any", objects="open", whitespace="compact")

    for text in ('{"x":1,"name":"a","y":[]}', '{"name":"a","x":1,"age":2}', r'{"\"":1,"name":""}'):
        assert _accepts(PERSON, text, style), text
    assert not _accepts(PERSON, '{"x":1,"age":2}', style)
    assert not _accepts(PERSON, '{"age":"x","name":"a"}', style)


def test_members_of_a_constant_come_in_any_order() -> None:
    style = JsonStyle(key_order="any", whitespace="compact")
    text = json.dumps(VALUE, separators=(",", ":"))
    turned = '{"d":null,"a":[1,{"c":{},"b":[]},"x, y: z"]}'

    assert _accepts(CONSTANT, text, style)
    assert _accepts(CONSTANT, turned, style)
    assert not _accepts(CONSTANT, turned, JsonStyle(whitespace="compact"))
    assert not _accepts(CONSTANT, '{"d":null}', style)


def test_any_blanks_stand_around_every_token() -> None:
    style = JsonStyle(whitespace="any")
    spaced = '\t{ "a" : [ 1 ,\n2 ] , "d"\r:null } \n'
    assert _accepts(SCHEMA, spaced, style)
    assert not _accepts(SCHEMA, spaced, PRETTY)
    assert _accepts(None, spaced, style, "json_object")
    assert not _accepts(None, spaced, PRETTY, "json_object")
    assert not _accepts(SCHEMA, '{"a" :1 }' + " " * 200, style)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, ["1", "1.0", "-2.000"], ["1.5", "1.", "01.0"]),
        ({"type": "integer", "maximum": 3}, ["3.0", "0.0"], ["4.0", "3.1"]),
        ({"const": 1}, ["1", "1.00"], ["1.01", "2.0", "true"]),
        ({"enum": [-2.0, "a"]}, ["-2", "-2.0", '"a"'], ["2"]),
        ({"type": "number", "multipleOf": 0.25}, ["2.0", "0.250"], ["0.2"]),
        ({"const": [0]}, ["[0.0]"], ["[false]"]),
    ],
)
def test_numbers_have_zeros_at_their_end(schema: Any, good: list[str], bad: list[str]) -> None:
    style = JsonStyle(numbers="any")
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", **schema}

    assert [text for text in good if not _accepts(schema, text, style)] == []
    assert [text for text in bad if _accepts(schema, text, style)] == []
    zeros = [text for text in good if text.endswith(".0") and schema != {"enum": [-2.0, "a"]}]
    assert not any(_accepts(schema, text, PRETTY) for text in zeros)
    if schema.get("type") == "integer":
        assert not any(_accepts(draft4, text, style) for text in good if "." in text)


def test_a_schema_without_type_speaks_of_every_type_if_that_is_asked() -> None:
    schema = {"properties": {"a": {"minimum": 3}}}

    for text in ("1", "[]", '{"a":"x"}', '{"a":3}'):
        assert _accepts(schema, text, JsonStyle(untyped="any")), text
    assert not _accepts(schema, '{"a":1}', JsonStyle(untyped="any"))
    assert [t for t in ("1", "[]", '{"a":"x"}') if _accepts(schema, t, PRETTY)] == []


def test_formats_say_nothing_if_that_is_asked() -> None:
    schema = {"type": "object", "properties": {"format": {"type": "string", "format": "date"}}}

    assert not _accepts(schema, '{"format":"soon"}', PRETTY)
    assert _accepts(schema, '{"format":"soon"}', JsonStyle(formats="annotate"))
    assert _accepts({"type": "integer", "format": "int8"}, "1000", JsonStyle(formats="annotate"))


def test_formats_of_libraries_say_nothing_if_the_standard_s_are_asked_for() -> None:
    standard = JsonStyle(formats="standard")
    for name, text, is_standard in (("date", '"soon"', True), ("byte", '"?"', False)):
        schema = {"type": "string", "format": name}
        assert not _accepts(schema, text, PRETTY)
        assert _accepts(schema, text, standard) != is_standard
    assert _accepts({"type": "integer", "format": "int8"}, "1000", standard)
