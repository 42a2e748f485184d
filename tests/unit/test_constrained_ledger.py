"""What enforces each keyword of a schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.schema.ledger import ASSERTIONS, enforcement
from plait.decoders.constrained.schema.read import _READERS, APPLICATORS
from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec, JsonStyle
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES

UNIQUE = {"type": "array", "uniqueItems": True}


def _by(schema: Any, style: JsonStyle | None = None) -> dict[str, str]:
    """Return what enforces each keyword, by `pointer/keyword`."""
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=style or JsonStyle())
    done = compile_constraint(spec, BYTES_AND_PIECES, ConstraintLimits())
    rows = enforcement(schema, done.checked, done.ignored)
    return {f"{row['pointer']}/{row['keyword']}": row["by"] for row in rows}


def test_every_keyword_that_is_read_is_in_the_ledger() -> None:
    assert _READERS.keys() | APPLICATORS == ASSERTIONS


def test_each_keyword_stands_in_it_once_with_its_pointer() -> None:
    schema = {
        "title": "not an assertion",
        "type": "object",
        "properties": {"a/b": {"$ref": "#/$defs/x"}, "c": {"anyOf": [{"const": 1}, False]}},
        "$defs": {"x": {"minLength": 1, "default": ""}},
    }

    places = ["/type", "/properties", "/properties/a~1b/$ref", "/properties/c/anyOf"]
    places += ["/properties/c/anyOf/0/const", "/$defs/x/minLength"]
    assert _by(schema) == dict.fromkeys(places, "grammar")


@pytest.mark.parametrize(
    ("schema", "place", "want"),
    [
        (UNIQUE, "/uniqueItems", "check"),
        ({**UNIQUE, "items": {"enum": [1, 2]}}, "/uniqueItems", "grammar"),
        ({**UNIQUE, "maxItems": 1}, "/uniqueItems", "grammar"),
        ({"type": "array", "uniqueItems": False}, "/uniqueItems", "grammar"),
        ({"allOf": [{"type": "array"}, UNIQUE]}, "/allOf/1/uniqueItems", "check"),
        (
            {"type": "object", "minProperties": 3, "additionalProperties": {"type": "null"}},
            "/minProperties",
            "check",
        ),
        ({"type": "string", "format": "date"}, "/format", "grammar"),
        ({"type": "string", "format": "made-up"}, "/format", "annotation"),
    ],
)
def test_what_enforces_a_keyword(schema: Any, place: str, want: str) -> None:
    assert _by(schema)[place] == want


def test_formats_that_are_not_to_be_asserted_are_annotations() -> None:
    schema = {"type": "string", "format": "date"}

    assert _by(schema, JsonStyle(formats="annotate"))["/format"] == "annotation"
    assert _by(schema, JsonStyle(formats="standard"))["/format"] == "grammar"
    other = {"type": "string", "format": "uuid4"}
    assert _by(other)["/format"] == "grammar"
    assert _by(other, JsonStyle(formats="standard"))["/format"] == "annotation"
