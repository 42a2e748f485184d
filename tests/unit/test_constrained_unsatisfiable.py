"""A schema that nothing satisfies is refused with the deepest place that makes it so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec, Unsatisfiable

Schema = dict[str, Any]


def _object(**properties: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _refusal(schema: Any) -> Unsatisfiable:
    with pytest.raises(Unsatisfiable, match="no answer can satisfy it") as have:
        lower(ConstraintSpec("json_schema", json.dumps(schema)), ConstraintLimits())
    return have.value


KINDS: list[tuple[str, Any, str]] = [
    ("enum of another type", {"type": "integer", "enum": ["1", None]}, "enum"),
    ("const of another type", {"type": "object", "const": []}, "const"),
    ("const outside of enum", {"const": True, "enum": [1, "true"]}, "const"),
    ("empty enum", {"enum": []}, "enum"),
    ("bounds crossed", {"type": "number", "minimum": 2.5, "maximum": -1}, "minimum"),
    (
        "open bounds",
        {"type": "integer", "exclusiveMinimum": 7, "exclusiveMaximum": 8},
        "exclusiveMinimum",
    ),
    (
        "no multiple",
        {"type": "integer", "multipleOf": 10, "minimum": 41, "maximum": 49},
        "multipleOf",
    ),
    ("lengths crossed", {"type": "string", "minLength": 9, "maxLength": 8}, "minLength"),
    ("pattern too long", {"type": "string", "pattern": "^abc$", "maxLength": 2}, "pattern"),
    ("items crossed", {"type": "array", "minItems": 2, "maxItems": 1}, "minItems"),
    (
        "too few properties",
        {"type": "object", "properties": {"a": True}, "additionalProperties": False}
        | {"minProperties": 2},
        "minProperties",
    ),
    ("too many required", {**_object(a=True, b=True), "maxProperties": 1}, "required"),
    ("name not allowed", {**_object(a=True), "propertyNames": {"minLength": 2}}, "propertyNames"),
    ("types of allOf", {"allOf": [{"type": "null"}, {"type": "array"}]}, "allOf"),
    ("not itself", {"type": "string", "not": {"type": ["string", "null"]}}, "not"),
    ("required and not", {**_object(a=True), "not": {"required": ["a"]}}, "not"),
    ("value of two branches", {"oneOf": [{"const": 2}, {"enum": [2.0]}]}, "oneOf"),
    ("false", False, ""),
]


@pytest.mark.parametrize(("schema", "keyword"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_the_keyword_and_its_place_are_named(schema: Any, keyword: str) -> None:
    inner = _object(fine={"type": "string"}, odd=schema)

    alone, deep = _refusal(schema), _refusal({**_object(list=inner), "description": "x"})

    assert (alone.pointer, alone.keyword) == ("", keyword)
    assert (deep.pointer, deep.keyword) == ("/properties/list/properties/odd", keyword)
    assert str(deep).startswith("/properties/list/properties/odd: ")


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"type": "array", "minItems": 1, "items": False}, "/items"),
        ({"type": "array", "minItems": 2, "prefixItems": [True, {"enum": []}]}, "/prefixItems/1"),
        (_object(a={"$ref": "#/$defs/x"}) | {"$defs": {"x": False}}, "/$defs/x"),
        ({"allOf": [True, {"allOf": [True, False]}]}, "/allOf/1/allOf/1"),
        (_object(a={"$ref": "#"}), "/properties/a"),
        (
            {"allOf": [_object(a={"type": "string"}), _object(a={"type": "null"})]},
            "/allOf/1/properties/a",
        ),
    ],
)
def test_the_place_is_the_deepest_one(schema: Schema, pointer: str) -> None:
    assert _refusal(schema).pointer == pointer


def test_of_several_alternatives_the_place_that_holds_them_is_named() -> None:
    have = _refusal(_object(a={"anyOf": [_object(x=False), _object(y={"enum": []})]}))

    assert have.pointer == "/properties/a"
    assert "/properties/a/anyOf/0/properties/x" in str(have)
    assert "/properties/a/anyOf/1/properties/y" in str(have)


def test_what_may_be_left_out_is_at_no_fault() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": []}, "b": False}, "required": ["b"]}

    assert _refusal(schema).pointer == "/properties/b"
