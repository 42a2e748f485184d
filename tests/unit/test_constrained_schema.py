"""JSON schemas: what their grammars accept, and what is refused with its pointer (law 3)."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import fields

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.grammar.regex import EMPTY_SET
from plait.decoders.constrained.schema.facts import (
    NUMBERS,
    Bound,
    ContainsRule,
    Facts,
    Obstacle,
    SchemaRef,
    meet,
)
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    UnsupportedKeyword,
)
from tests.fixtures.constraint_vocabularies import automaton_of, matches

Schema = dict[str, Any] | bool


def _accepts(schema: Schema, text: str, *, strict: bool = False) -> bool:
    spec = ConstraintSpec("json_schema", json.dumps(schema), strict)
    return matches(automaton_of(lower(spec, ConstraintLimits())), text.encode())


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


RECURSIVE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            },
            "required": ["value"],
        }
    },
}
AB = {"a": {"type": "integer"}, "b": {"type": "integer"}}

CASES: list[tuple[Schema, list[str], list[str]]] = [
    # numbers
    (
        {"type": "integer"},
        ["0", "-7", "1234567890123456789"],
        ["01", "1.0", "1e3", "+1", "- 1", "12345678901234567890"],
    ),
    (
        {"type": "number"},
        ["0", "-0.5", "1e10", "1.25E-3"],
        [".5", "1.", "1e", "1e999", "NaN", "Infinity"],
    ),
    (
        {"type": "integer", "minimum": -3, "maximum": 12},
        ["-3", "0", "12", "9"],
        ["-4", "13", "100"],
    ),
    ({"type": "integer", "exclusiveMinimum": 9}, ["10", "99", "1000"], ["9", "0", "-10"]),
    ({"type": "integer", "minimum": 0.5}, ["1", "20"], ["0", "-1"]),
    (
        {"type": "number", "minimum": 0.25, "exclusiveMaximum": 10},
        ["0.25", "0.3", "1", "9.99", "0.250"],
        ["0.2", "0.249", "10", "10.0", "-0.3"],
    ),
    ({"type": "number", "maximum": -1.5}, ["-1.5", "-2", "-1.51"], ["-1.4", "-1", "0", "1.5"]),
    ({"type": "number", "exclusiveMinimum": 0}, ["0.001", "7"], ["0", "0.000", "-1"]),
    ({"minimum": 5, "exclusiveMinimum": True, "type": "integer"}, ["6"], ["5"]),
    ({"type": "number", "multipleOf": 0.01}, ["0.25", "3", "-1.5"], ["0.255", "1e1"]),
    ({"type": "integer", "multipleOf": 25}, ["0", "25", "175", "-50"], ["5", "30", "115"]),
    ({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 21}, ["0", "14"], ["6", "28"]),
    ({"type": "number", "not": {"type": "integer"}}, ["0.5", "2.25"], ["1", "1.0"]),
    # strings
    (
        {"type": "string"},
        ['""', '"é😀"', r'"\u00e9\n\""', r'"\ud83d\ude00"'],
        ['"\n"', r'"\x"', "x"],
    ),
    ({"type": "string"}, [], [r'"\ud83d"', r'"\ude00"', '"\t"', '"\x00"']),
    (
        {"type": "string", "minLength": 2, "maxLength": 3},
        ['"ab"', '"é😀a"', r'"\n\u0041"', r'"\ud83d\ude00x"'],
        ['"a"', '"abcd"', r'"\ud83d\ude00"', '"a\tb"'],
    ),
    ({"type": "string", "maxLength": 100}, [f'"{"x" * 100}"'], [f'"{"x" * 101}"']),
    ({"type": "string", "pattern": "^[a-c]+$"}, ['"abc"'], ['""', '"abd"', r'"\u0061"']),
    ({"type": "string", "pattern": '"'}, [r'"say \"x\""'], ['"say"', '"""']),
    ({"type": "string", "pattern": "^a", "maxLength": 2}, ['"a"', '"ab"'], ['"b"', '"abc"']),
    ({"type": "string", "allOf": [{"pattern": "a"}, {"pattern": "b"}]}, ['"xbya"'], ['"a"', '"b"']),
    (
        {"type": "string", "format": "date"},
        ['"2024-02-29"', '"2023-12-31"'],
        ['"2023-02-29"', '"2023-13-01"', '"2023-04-31"', '"1900-02-29"'],
    ),
    ({"type": "string", "format": "ipv4"}, ['"127.0.0.1"'], ['"256.0.0.1"', '"1.2.3"']),
    ({"type": "string", "not": {"enum": ["a", "b"]}}, ['"c"', '"ab"', '""'], ['"a"', '"b"']),
    # const, enum and their siblings
    ({"enum": ["a", 1, None, True]}, ['"a"', "1", "null", "true"], ["false", '"1"', "2"]),
    ({"enum": ["a", 1, 2.5], "type": "integer"}, ["1"], ['"a"', "2.5"]),
    ({"enum": ["ab", "abc"], "maxLength": 2}, ['"ab"'], ['"abc"']),
    ({"const": {"a": [1, "x"]}}, ['{"a":[1,"x"]}', '{ "a": [ 1, "x" ] }'], ['{"a":[1]}', "{}"]),
    ({"enum": [1, 2], "not": {"const": 2}}, ["1"], ["2"]),
    # arrays
    ({"type": "array", "items": {"type": "integer"}}, ["[]", "[1, 2]"], ['["a"]', "[1,]", "[,1]"]),
    ({"type": "array", "minItems": 1, "maxItems": 2}, ["[1]", '[1,"a"]'], ["[]", "[1,2,3]"]),
    (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
        ["[]", "[1]", '[1,"a"]'],
        ['["a"]', '[1,"a",2]'],
    ),
    (
        {"type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "null"}},
        ["[1,null,null]", "[1]"],
        ["[null]", "[1,2]"],
    ),
    (
        {"type": "array", "prefixItems": [True, True], "minItems": 2, "items": False},
        ["[1,2]"],
        ["[1]"],
    ),
    ({"type": "array", "items": False}, ["[]"], ["[1]"]),
    # objects
    (
        _object(a={"type": "integer"}),
        ['{"a":1}', '{ "a": 1 }'],
        ["{}", '{"a":1,"b":2}', '{"a":"x"}'],
    ),
    (
        {"type": "object", "properties": AB},
        ["{}", '{"a":1}', '{"b":1}', '{"a":1,"b":2}'],
        ['{"b":1,"a":2}', '{"a":1,}', '{,"a":1}', '{"a":1,"a":2}'],
    ),
    ({"type": "object"}, ["{}", '{"x":[1]}'], ["[]", '{"x"}']),
    (
        {"type": "object", "properties": {"ab": {"type": "integer"}}, "additionalProperties": True},
        ['{"ab":1,"x":"y"}', '{"a":"x"}', '{"abc":null}'],
        ['{"ab":"x"}', '{"x":1,"ab":"y"}', r'{"\u0061b":"x"}'],
    ),
    ({"type": "object", "additionalProperties": {"type": "null"}}, ['{"x":null}'], ['{"x":1}']),
    (
        {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}},
        ['{"x-a":1}', "{}"],
        ['{"x-a":"s"}', '{"y":1}'],
    ),
    (
        {
            "type": "object",
            "properties": {"x-a": {"minimum": 5}},
            "patternProperties": {"^x-": {"type": "integer"}, "b$": {"maximum": 9}},
            "additionalProperties": False,
        },
        ['{"x-a":5}', '{"x-b":9}', '{"x-c":100}'],
        ['{"x-a":4}', '{"x-b":10}', '{"q":1}'],
    ),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, ['{"ab":1}'], ['{"b":1}']),
    ({"type": "object", "required": ["q"]}, ['{"q":1}'], ["{}"]),
    (
        {"type": "object", "properties": AB, "minProperties": 1, "maxProperties": 1},
        ['{"a":1}', '{"b":1}'],
        ["{}", '{"a":1,"b":1}'],
    ),
    ({"type": "object", "minProperties": 1}, ['{"x":1}'], ["{}"]),
    ({"properties": AB}, ['{"a":1}'], ["1", '"x"']),
    # combinators
    ({"type": ["string", "null"], "maxLength": 1}, ["null", '"a"'], ['"ab"', "1"]),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["1", "null"], ['"a"']),
    (
        {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": AB},
        ['{"a":1}', '{"b":1}', '{"a":1,"b":2}'],
        ["{}"],
    ),
    (
        {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": AB},
        ['{"a":1}', '{"b":1}'],
        ["{}", '{"a":1,"b":2}'],
    ),
    ({"oneOf": [{"type": "string"}, {"type": ["string", "null"]}]}, ["null"], ['"a"']),
    ({"oneOf": [{"minimum": 5}, {"maximum": 7}], "type": "integer"}, ["4", "8"], ["5", "7"]),
    (
        {"allOf": [_object(a={"type": "integer"}), _object(b={"type": "null"})]},
        ['{"a":1,"b":null}'],
        ['{"a":1}', '{"a":1,"b":null,"c":0}'],
    ),
    (
        {
            "allOf": [
                {"properties": {"a": True}, "additionalProperties": False},
                {"required": ["a"]},
            ]
        },
        ['{"a":1}'],
        ["{}", '{"b":1}'],
    ),
    (
        {
            "type": "object",
            "properties": {"kind": {"enum": ["x", "y"]}, "n": {"type": "integer"}},
            "required": ["kind"],
            "if": {"properties": {"kind": {"const": "x"}}},
            "then": {"required": ["n"]},
        },
        ['{"kind":"x","n":1}', '{"kind":"y"}', '{"kind":"y","n":1}'],
        ['{"kind":"x"}', '{"kind":"z"}'],
    ),
    (
        {"type": "object", "properties": AB, "dependentRequired": {"a": ["b"]}},
        ["{}", '{"b":1}', '{"a":1,"b":1}'],
        ['{"a":1}'],
    ),
    (
        {"type": "object", "properties": AB, "not": {"required": ["a", "b"]}},
        ["{}", '{"a":1}', '{"b":1}'],
        ['{"a":1,"b":1}'],
    ),
    # references
    (
        RECURSIVE,
        ['{"value":1}', '{"value":1,"children":[{"value":2,"children":[]}]}'],
        ['{"children":[]}', '{"value":1,"children":[{}]}'],
    ),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, ["null"], ["1"]),
    ({"$ref": "#/$defs/a%25", "$defs": {"a%": {"type": "null"}}}, ["null"], ["1"]),
    ({"$ref": "#n", "$defs": {"x": {"$anchor": "n", "type": "null"}}}, ["null"], ["1"]),
    ({"$ref": "#/$defs/i", "minimum": 3, "$defs": {"i": {"type": "integer"}}}, ["3"], ["2"]),
    (True, ["1", '{"a":[null]}'], ["x"]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=[json.dumps(c[0]) for c in CASES])
def test_what_a_schema_accepts(schema: Schema, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not _accepts(schema, text)] == []
    assert [text for text in bad if _accepts(schema, text)] == []


REFUSED: list[tuple[Schema, str, str]] = [
    (
        {"type": "object", "not": {"enum": [dict.fromkeys("abcde", i) for i in range(4)]}},
        "/not",
        "enum",
    ),
    ({"type": "array", "not": {"uniqueItems": True}}, "", "not"),
    (_object(a={"type": "array", "contains": 1}), "/properties/a", "contains"),
    (_object(a={"type": "string", "format": 7}), "/properties/a", "format"),
    ({"type": "string", "pattern": r"(a)\1"}, "", "pattern"),
    ({"type": "integer", "multipleOf": 3001}, "", "multipleOf"),
    ({"type": "string", "minLenght": 2}, "", "minLenght"),
    ({"type": "string", "maxlength": 2}, "", "maxlength"),
    ({"extends": {"type": "null"}}, "", "extends"),
    ({"$ref": "https://example.com/x.json"}, "", "$ref"),
    ({"$ref": "#/$defs/missing"}, "", "$ref"),
    ({"$ref": "#"}, "", "$ref"),
    ({"anyOf": [{"$ref": "#/anyOf/0"}]}, "/anyOf/0", "$ref"),
    ({"type": "object", "required": True}, "", "required"),
    ({"type": "strong"}, "", "type"),
    ({"minLength": -1}, "", "minLength"),
    ({"items": 3}, "", "items"),
    ({"anyOf": []}, "", "anyOf"),
    ({"type": "array", "minItems": 10**9}, "", "minItems"),
]


@pytest.mark.parametrize(
    ("schema", "pointer", "keyword"), REFUSED, ids=[json.dumps(c[0]) for c in REFUSED]
)
def test_what_is_refused_names_its_pointer_and_keyword(
    schema: Schema, pointer: str, keyword: str
) -> None:
    with pytest.raises(UnsupportedKeyword) as have:
        _accepts(schema, "")

    assert (have.value.pointer, have.value.keyword) == (pointer, keyword)


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"enum": ["a"], "type": "integer"},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"allOf": [{"type": "integer"}, {"type": "string"}]},
    ],
)
def test_a_schema_that_nothing_satisfies_is_refused(schema: Schema) -> None:
    with pytest.raises(ConstraintError, match="no answer can satisfy it"):
        _accepts(schema, "")


def test_unsatisfiable_options_are_left_out_not_offered() -> None:
    schema = {"type": "object", "properties": {"a": False, "b": {"type": "integer"}}}

    assert _accepts(schema, '{"b":1}')
    assert not _accepts(schema, '{"a":1}')


def test_half_a_surrogate_pair_is_in_no_answer() -> None:
    half = "\ud83d"
    named = {"type": "object", "properties": {half: {}, "b": {}}, "additionalProperties": {}}

    assert _accepts({"enum": [half, [half], {half: 1}, "b"]}, '"b"')
    assert _accepts(named, '{"b":1,"c":2}')
    assert _accepts({"type": "string", "not": {"enum": [half, "b"]}}, '"c"')
    assert _accepts({"type": "object", "propertyNames": {"enum": [half, "b"]}}, '{"b":1}')
    for schema in ({"const": half}, {"const": [half]}, {**named, "required": [half]}):
        with pytest.raises(ConstraintError, match="no answer can satisfy it"):
            _accepts(schema, "")


@pytest.mark.parametrize("name", [field.name for field in fields(Facts)])
def test_a_conjunction_keeps_each_assertion_of_either_side(name: str) -> None:
    said: Any = {"kinds": NUMBERS, "is_typed": True, "text": EMPTY_SET, "pointer": "/a"}
    said |= {"booleans": frozenset({True}), "forbidden": frozenset({"a"}), "literals": {"a": "a"}}
    said |= dict.fromkeys(("low", "high"), Bound(Decimal(1), is_open=True))
    said |= dict.fromkeys(("min_length", "max_length", "min_items", "max_items"), 3)
    said |= dict.fromkeys(("min_properties", "max_properties"), 3)
    said["contains"] = (ContainsRule((SchemaRef("/a"),), 1),)
    said["obstacles"] = (Obstacle("array", "/a", "contains", "x"),)
    value = said.get(name, ("x",))
    facts = Facts(**{name: value})

    assert facts.is_telling() or name in ("kinds", "is_typed", "pointer")
    for both in (meet(facts, Facts()), meet(Facts(), facts)):
        assert both is not None
        assert getattr(both, name) == value or name == "pointer"


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(65):
        schema = {"items": schema}

    with pytest.raises(ConstraintError, match="nested more than 64 deep"):
        _accepts(schema, "")


@pytest.mark.parametrize(
    ("schema", "pointer", "keyword"),
    [
        ({"type": "array"}, "", "type"),
        ({"anyOf": [_object()]}, "", "type"),
        (_object(a={"type": "null"}), "", "additionalProperties"),
        ({**_object(), "properties": {"a": {}}, "additionalProperties": False}, "", "required"),
        (
            {**_object(a=_object()), "additionalProperties": False},
            "/properties/a",
            "additionalProperties",
        ),
    ],
)
def test_strict_mode_wants_objects_that_say_all(schema: Schema, pointer: str, keyword: str) -> None:
    with pytest.raises(UnsupportedKeyword) as have:
        _accepts(schema, "", strict=True)

    assert (have.value.pointer, have.value.keyword) == (pointer, keyword)


def test_strict_mode_accepts_what_the_sdk_writes() -> None:
    schema = {**_object(a={"type": ["string", "null"]}), "additionalProperties": False}

    assert _accepts(schema, '{"a":null}', strict=True)
