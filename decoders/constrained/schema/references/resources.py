"""Which schemas a document holds, under which URIs, and where its references lead.

A schema with an `$id` begins a resource of its own: references below it are relative to its URI,
and anchors are its own. Nothing is fetched: what a reference names must be in the document (see
bundle.py for what an operator supplies).

Source: JSON Schema 2020-12 core, sections 8.2 and 9.2; `id`, `$id` beside `$ref` and `$id` as an
anchor as drafts 4 to 7 have them, `$recursiveRef` as 2019-09 has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

Pointer = str  # RFC 6901; "" is the root

REFERENCES = frozenset(("$ref", "$dynamicRef", "$recursiveRef"))
_MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions"))
_MAPS |= {"dependentSchemas", "dependencies"}
_LISTS = frozenset(("anyOf", "allOf", "oneOf", "prefixItems", "items"))
_SINGLE = frozenset(("items", "additionalProperties", "additionalItems", "not", "if", "then"))
_SINGLE |= {"else", "propertyNames", "contains", "unevaluatedItems", "unevaluatedProperties"}
_OLD_DRAFTS = ("/draft-03/", "/draft-04/", "/draft-05/", "/draft-06/", "/draft-07/")
_NAMING = frozenset(("$id", "id", "$schema", "$anchor", "$dynamicAnchor", "$recursiveAnchor"))
RECURSIVE = ""  # the dynamic anchor of a resource with "$recursiveAnchor": true


def escape(name: str) -> str:
    """Return a key as a step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def below(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the schemas right inside a schema, with the rest of their pointers."""
    for keyword, value in schema.items():
        if keyword in _MAPS and isinstance(value, dict):
            yield from ((f"/{escape(keyword)}/{escape(name)}", v) for name, v in value.items())
        elif keyword in _LISTS and isinstance(value, list):
            yield from ((f"/{keyword}/{index}", v) for index, v in enumerate(value))
        elif keyword in _SINGLE:
            yield f"/{keyword}", value


def schemas(root: Any) -> Iterator[tuple[Pointer, dict[str, Any]]]:
    """Yield every schema object of a document with its pointer, outer ones first."""
    todo: list[tuple[Pointer, Any]] = [("", root)]
    while todo:
        pointer, schema = todo.pop()
        if isinstance(schema, dict):
            yield pointer, schema
            todo.extend((pointer + step, found) for step, found in below(schema))


def absolute(reference: str, base: str) -> str:
    """Return a URI reference resolved against a base URI, whatever its scheme."""
    if reference.startswith("#"):
        return base + reference
    return urljoin(base, reference) or reference


@dataclass(slots=True)
class Resource:
    """A schema with a URI of its own: the root, or one with an `$id`."""

    pointer: Pointer
    uri: str  # without fragment; "" for a root without `$id`
    is_old: bool  # drafts 4 to 7
    anchors: dict[str, Pointer] = field(default_factory=dict)
    dynamic_anchors: dict[str, Pointer] = field(default_factory=dict)


class Resources:
    """The resources of one document. Cost: one visit to each schema."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._by_pointer: dict[Pointer, Resource] = {}
        self._by_uri: dict[str, Resource] = {}
        self._of: dict[Pointer, Resource] = {}  # the innermost resource, where something is named
        self._begin("", "", is_old=False)
        self.schemas = [*schemas(root)]  # with their pointers, outer ones first
        for pointer, schema in self.schemas:
            if not pointer or not _NAMING.isdisjoint(schema):
                self._index(pointer, schema)

    def _begin(self, pointer: Pointer, uri: str, *, is_old: bool) -> Resource:
        resource = Resource(pointer, uri, is_old)
        self._by_pointer[pointer] = resource
        self._by_uri.setdefault(uri, resource)
        return resource

    def _index(self, pointer: Pointer, schema: dict[str, Any]) -> None:
        resource = self.of(pointer)
        dialect = schema.get("$schema")
        is_old = resource.is_old
        if isinstance(dialect, str):
            is_old = any(draft in dialect for draft in _OLD_DRAFTS)
        name = schema.get("$id", schema.get("id") if not pointer or is_old else None)
        if isinstance(name, str) and not (is_old and "$ref" in schema):
            uri, fragment = urldefrag(absolute(name, resource.uri))
            if fragment and not fragment.startswith("/"):
                resource.anchors.setdefault(fragment, pointer)
            if uri != resource.uri or not pointer:
                resource = self._begin(pointer, uri, is_old=is_old)
        resource.is_old |= is_old and not pointer
        self._of[pointer] = resource
        for keyword, found in (
            ("$anchor", (resource.anchors,)),
            ("$dynamicAnchor", (resource.anchors, resource.dynamic_anchors)),
        ):
            if isinstance(schema.get(keyword), str):
                for anchors in found:
                    anchors.setdefault(schema[keyword], pointer)
        if schema.get("$recursiveAnchor") is True and pointer == resource.pointer:
            resource.dynamic_anchors[RECURSIVE] = pointer

    def of(self, pointer: Pointer) -> Resource:
        """Return the innermost resource that a place is in. Cost: the steps of the pointer."""
        if len(self._by_pointer) == 1:
            return self._by_pointer[""]
        at = pointer
        while at and at not in self._of and at not in self._by_pointer:
            at = at.rpartition("/")[0]
        return self._by_pointer.get(at) or self._of[at]

    def uri(self, reference: str, pointer: Pointer) -> str:
        """Return the absolute URI that a reference at a place means."""
        return absolute(reference, self.of(pointer).uri)

    def find(self, uri: str) -> Pointer | None:
        """Return where an absolute URI leads; None: to nothing in the document."""
        resource, fragment = self._resource(uri)
        if resource is None:
            return None
        alias = self._alias(resource)
        if alias is not None and fragment:
            return self.find(absolute(f"#{fragment}", alias))
        if not fragment or fragment.startswith("/"):
            found = resource.pointer + fragment
            return found if self.step(found) is not None else None
        return resource.anchors.get(fragment)

    def dynamic_anchor(self, uri: str) -> str | None:
        """Return the dynamic anchor that an absolute URI names in its resource, if it does."""
        resource, fragment = self._resource(uri)
        is_one = resource is not None and fragment in resource.dynamic_anchors
        return fragment if is_one else None

    def _resource(self, uri: str) -> tuple[Resource | None, str]:
        base, fragment = urldefrag(uri)
        return self._by_uri.get(base), unquote(fragment)

    def _alias(self, resource: Resource) -> str | None:
        """Return the URI of what a resource stands for, if it is another name and no more."""
        schema = self.step(resource.pointer)
        if schema is None or not isinstance(schema[0], dict) or not resource.pointer:
            return None
        is_alias = schema[0].keys() == {"$id", "$ref"} and isinstance(schema[0]["$ref"], str)
        return absolute(schema[0]["$ref"], resource.uri) if is_alias else None

    def step(self, pointer: Pointer) -> tuple[Any] | None:
        """Return the value at a pointer, wrapped; None if there is none."""
        value = self._root
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                return None
        return (value,)
