"""References: resources with their own URI, dynamic scopes, and documents that are bundled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import pytest

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.schema.references.bundle import bundle
from plait.decoders.constrained.schema.references.document import Document
from plait.decoders.constrained.spec import (
    ConstraintLimits,
    ConstraintSpec,
    JsonStyle,
    UnsupportedKeyword,
)
from tests.fixtures.constraint_vocabularies import automaton_of, matches

STYLE = JsonStyle(whitespace="compact", objects="open", untyped="any")
BASE = "https://example.com/"
VALUES: list[Any] = [1, "a", None, [1], ["a"], [None], {"a": 1}, {"a": "x"}, {"b": 1}, {}]
VALUES += [{"a": {"a": 1}}, {"a": {"b": 1}}, {"b": {"b": 1}}]


def _accepted(schema: Any) -> list[Any]:
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=STYLE)
    automaton = automaton_of(lower(spec, ConstraintLimits()))
    texts = [json.dumps(value, separators=(",", ":")) for value in VALUES]
    return [v for v, text in zip(VALUES, texts, strict=True) if matches(automaton, text.encode())]


def _valid(schema: Any) -> list[Any]:
    validator = jsonschema_rs.validator_for(schema)
    return [value for value in VALUES if validator.is_valid(value)]


STRING, INTEGER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}
LIST: dict[str, Any] = {
    "$id": "list",
    "type": "array",
    "items": {"$dynamicRef": "#item"},
    "$defs": {"any": {"$dynamicAnchor": "item"}},
}
TREE: dict[str, Any] = {
    "$id": BASE + "tree",
    "$dynamicAnchor": "node",
    "type": "object",
    "properties": {"a": {"$dynamicRef": "#node"}},
}
CASES: dict[str, Any] = {
    "relative to the root": {"$id": BASE + "root", "$ref": "part", "$defs": {"p": {"$id": "part"}}},
    "relative to a resource": {
        "$id": BASE + "root",
        "properties": {"a": {"$id": "x/one", "$ref": "two"}, "b": {"$ref": "x/two"}},
        "$defs": {"p": {"$id": "x/two", **STRING}},
    },
    "a pointer into a resource": {
        "$id": BASE + "root",
        "$ref": "part#/$defs/in",
        "$defs": {"p": {"$id": "part", "$defs": {"in": INTEGER}, **STRING}},
    },
    "an anchor of a resource": {
        "$id": BASE + "root",
        "$ref": "part#here",
        "$defs": {
            "p": {"$id": "part", "$defs": {"in": {"$anchor": "here", **INTEGER}}},
            "q": {"$anchor": "here", **NULL},
        },
    },
    "a URN": {
        "$id": "urn:uuid:deadbeef-1234-00ff-ff00-4321feebdaed",
        "properties": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#c"}},
        "$defs": {"b": STRING, "c": {"$anchor": "c", **INTEGER}},
    },
    "the outermost scope": {
        "$id": BASE + "root",
        "$ref": "list",
        "$defs": {"s": {"$dynamicAnchor": "item", **STRING}, "l": LIST},
    },
    "two scopes": {
        "$id": BASE + "root",
        "anyOf": [{"$ref": "strings"}, {"$ref": "nulls"}],
        "$defs": {
            "s": {
                "$id": "strings",
                "$ref": "list",
                "$defs": {"i": {"$dynamicAnchor": "item"} | STRING},
            },
            "n": {
                "$id": "nulls",
                "$ref": "list",
                "$defs": {"i": {"$dynamicAnchor": "item"} | NULL},
            },
            "l": LIST,
        },
    },
    "no bookend": {
        "$id": BASE + "root",
        "$ref": "list",
        "$defs": {
            "s": {"$dynamicAnchor": "item", **STRING},
            "l": {**LIST, "$defs": {"any": {"$anchor": "item", **INTEGER}}},
        },
    },
    "a tree made strict": {
        "$id": BASE + "strict",
        "$dynamicAnchor": "node",
        "$ref": "tree",
        "unevaluatedProperties": False,
        "$defs": {"t": TREE},
    },
}


@pytest.mark.parametrize("schema", CASES.values(), ids=CASES.keys())
def test_references_lead_where_a_validator_goes(schema: Any) -> None:
    want = _valid(schema)

    assert _accepted(schema) == want
    assert len(want) < len(VALUES) or schema is CASES["relative to the root"]


def test_what_stands_beside_a_reference_is_ignored_by_the_drafts_that_say_so() -> None:
    schema = {"$ref": "#/definitions/a", "type": "null", "definitions": {"a": STRING}}

    assert _accepted({"$schema": "http://json-schema.org/draft-07/schema#", **schema}) == ["a"]
    with pytest.raises(Exception, match="no answer can satisfy it"):
        _accepted(schema)


def test_a_fragment_is_looked_for_in_the_whole_document() -> None:
    inner = {"id": "schema/x", "properties": {"a": {"$ref": "#/definitions/x/definitions/s"}}}
    schema = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "object",
        "allOf": [{"$ref": "#/definitions/x"}],
        "definitions": {"x": {**inner, "definitions": {"s": STRING}}},
    }

    assert {"a": "x"} in _accepted(schema)
    assert {"a": 1} not in _accepted(schema)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": BASE + "x"}, "lies outside the schema; nothing is fetched"),
        ({"$ref": "#/$defs/x"}, "leads to no schema"),
        ({"$dynamicRef": "#x"}, "leads to no schema"),
        ({"$id": BASE, "$defs": {"p": {"$id": "x"}}, "$ref": "x#y"}, "leads to no schema"),
    ],
)
def test_a_reference_to_nothing_is_refused_by_name(schema: Any, reason: str) -> None:
    with pytest.raises(UnsupportedKeyword, match=reason) as have:
        _accepted({"properties": {"a": schema}} if "$id" not in schema else schema)

    assert have.value.pointer == ("" if "$id" in schema else "/properties/a")


LIBRARY: Mapping[str, Any] = {
    "address.json": {"properties": {"a": {"$ref": "parts/zip.json"}}},
    "parts/zip.json": INTEGER,
    BASE + "got": {"$id": BASE + "own", "$ref": "beside"},
    BASE + "beside": STRING,
    BASE + "loop": {"properties": {"a": {"$ref": "loop"}}, "type": "object"},
    BASE + "true": True,
    BASE + "parts": {"$defs": {"n": NULL}, "definitions": {"n": STRING}},
    "unused.json": {"extends": "nothing that can be read"},
}
BUNDLED: dict[str, tuple[Any, Any]] = {
    "two files": ({"$ref": "address.json"}, {"properties": {"a": INTEGER}}),
    "another name": ({"$ref": BASE + "got"}, STRING),
    "recursive": (
        {"$ref": BASE + "loop"},
        {"properties": {"a": {"$ref": "#"}}, "type": "object"},
    ),
    "true": ({"$ref": BASE + "true"}, True),
    "a fragment": ({"$id": BASE + "x", "$ref": "parts#/$defs/n"}, NULL),
    "beside definitions": (
        {"$defs": {"s": {"$ref": "parts/zip.json"}}, "items": {"$ref": "#/$defs/s"}},
        {"items": INTEGER},
    ),
}


@pytest.mark.parametrize(("schema", "meant"), BUNDLED.values(), ids=BUNDLED.keys())
def test_documents_of_the_library_are_bundled_in(schema: Any, meant: Any) -> None:
    before = json.dumps(schema)
    whole = bundle(schema, LIBRARY)

    assert _accepted(whole) == _accepted(meant)
    assert json.dumps(schema) == before
    assert "extends" not in json.dumps(whole)


def test_a_schema_that_refers_to_nothing_outside_stays_as_it_is() -> None:
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": BASE + "unknown"}}}

    assert bundle(schema, LIBRARY) is schema
    assert bundle(True, LIBRARY) is True


def test_places_are_plain_pointers_unless_a_dynamic_reference_stands_somewhere() -> None:
    assert Document({"properties": {"a": {"$ref": "#"}}}, max_depth=9).root == ""
    document = Document(CASES["two scopes"], max_depth=9)
    lists = {
        document.resolve("list", document.resolve(f"#/$defs/{x}", document.root)) for x in "sn"
    }

    assert len(lists) == 2
    assert {json.dumps(document.at(place)) for place in lists} == {json.dumps(LIST)}
