"""The reference page's content, from the OpenAPI document: routes and objects with their fields."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FieldReference:
    """One field of a request or of an object."""

    name: str
    values: str
    meaning: str
    is_required: bool


@dataclass(frozen=True, slots=True)
class OperationReference:
    """One route."""

    method: str
    path: str
    summary: str
    body: str  # the name of the request object; "" for none
    fields: tuple[FieldReference, ...]  # of the body, or of the query


def operations(document: Json) -> list[OperationReference]:
    """Return the routes of an OpenAPI document."""
    schemas: Json = document["components"]["schemas"]
    found = []
    for path, methods in document["paths"].items():
        for method, own in methods.items():
            body = _body(own)
            fields = [*_parameters(own), *(_fields(schemas[body]) if body else ())]
            summary = own.get("description", "")
            found.append(OperationReference(method.upper(), path, summary, body, tuple(fields)))
    return found


def objects(document: Json, *, but: Collection[str]) -> dict[str, tuple[FieldReference, ...]]:
    """Return the fields of the objects of an OpenAPI document, except the objects in `but`."""
    return {
        name: tuple(_fields(schema))
        for name, schema in document["components"]["schemas"].items()
        if "properties" in schema and name not in but
    }


def _body(own: Json) -> str:
    if "requestBody" not in own:
        return ""
    return _name(own["requestBody"]["content"]["application/json"]["schema"])


def _parameters(own: Json) -> Iterator[FieldReference]:
    for each in own.get("parameters", ()):
        meaning = each.get("description", "")
        yield FieldReference(
            each["name"], _values(each["schema"]), meaning, each.get("required", False)
        )


def _fields(schema: Json) -> Iterator[FieldReference]:
    required = schema.get("required", ())
    for name, own in schema.get("properties", {}).items():
        yield FieldReference(name, _values(own), own.get("description", ""), name in required)


def _name(schema: Json) -> str:
    return str(schema["$ref"]).rsplit("/", 1)[1]


def _values(schema: Json) -> str:
    """Return a short description of the values that a schema admits."""
    if "$ref" in schema:
        return _name(schema)
    if "enum" in schema or "const" in schema:
        given = schema.get("enum", [schema.get("const")])
        return ", ".join(json.dumps(value) for value in given)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        shown = (_values(each) for each in options if each.get("type") != "null")
        return " or ".join(dict.fromkeys(shown))
    if schema.get("type") == "array":
        return f"list of {_values(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))
