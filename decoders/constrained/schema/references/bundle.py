"""Puts the documents that a schema refers to into it, from those that the operator supplies.

The result is a compound document (JSON Schema 2020-12 core, section 9.3): each document stands
under `$defs` with its URI as `$id`, so that all references lead somewhere inside. Nothing is
fetched; a reference to what was not supplied is left as it is, and refused when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urldefrag

from plait.decoders.constrained.schema.references.resources import (
    REFERENCES,
    Resources,
    absolute,
    schemas,
)
from plait.decoders.constrained.spec import ConstraintSpec, canonical

Library = Mapping[str, Any]  # documents by the URIs, without fragment, that references may use


def bundled(spec: ConstraintSpec, library: Library) -> ConstraintSpec:
    """Return the spec of a JSON schema with the documents that it needs; others as they are."""
    if spec.kind != "json_schema" or not library:
        return spec
    schema = json.loads(spec.text)
    whole = bundle(schema, library)
    return spec if whole is schema else canonical(replace(spec, text=json.dumps(whole)))


def bundle(schema: Any, library: Library) -> Any:
    """Return the schema with the documents of the library that it needs; it stays as it is.

    Law: every reference that leads to a document of the library, directly or from another one of
    them, leads to a place in the result. Cost: the size of what is added, times their chain.
    """
    if not isinstance(schema, dict) or not library:
        return schema
    added: dict[str, Any] = {}
    while found := dict(_missing(_with(schema, added), library)):
        added |= found
    return _with(schema, added)


def _with(schema: dict[str, Any], added: Mapping[str, Any]) -> Any:
    known = schema.get("$defs", {})
    if not added or not isinstance(known, dict):
        return schema
    return {**schema, "$defs": {**known, **added}}


def _missing(schema: Any, library: Library) -> Iterator[tuple[str, Any]]:
    """Yield what the references of a document need besides it, by URI."""
    resources = Resources(schema)
    references = (
        (pointer, found[keyword])
        for pointer, found in schemas(schema)
        for keyword in REFERENCES & found.keys()
        if isinstance(found[keyword], str)
    )
    for pointer, reference in references:
        uri = urldefrag(resources.uri(reference, pointer))[0]
        if uri in library and resources.find(uri) is None:
            yield from _named(uri, library[uri])


def _named(uri: str, document: Any) -> Iterator[tuple[str, Any]]:
    """Yield a document under its URI, and under the one that it gives itself, if that differs."""
    if not isinstance(document, dict):
        yield uri, {"$id": uri, "allOf": [document]}
        return
    name = document.get("$id", document.get("id"))
    own = urldefrag(absolute(name, uri))[0] if isinstance(name, str) else uri
    yield own, {**document, "$id": own}
    if own != uri:
        yield uri, {"$id": uri, "$ref": own}
