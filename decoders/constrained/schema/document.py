"""A JSON schema document: pointers, references and limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag

from plait.decoders.constrained.spec import ConstraintError, UnsupportedKeyword

Pointer = str  # RFC 6901; "" is the root

_MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions"))
_MAPS |= {"dependentSchemas", "dependencies"}
_LISTS = frozenset(("anyOf", "allOf", "oneOf", "prefixItems", "items"))
_SINGLE = frozenset(("items", "additionalProperties", "additionalItems", "not", "if", "then"))
_SINGLE |= {"else", "propertyNames", "contains", "unevaluatedItems", "unevaluatedProperties"}


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
    """Yield every schema object of a document with its pointer."""
    todo: list[tuple[Pointer, Any]] = [("", root)]
    while todo:
        pointer, schema = todo.pop()
        if isinstance(schema, dict):
            yield pointer, schema
            todo.extend((pointer + step, found) for step, found in below(schema))


class Document:
    """A root schema and what its references point to."""

    def __init__(self, root: Any, *, max_depth: int) -> None:
        if not isinstance(root, dict | bool):
            raise ConstraintError("a JSON schema is an object or a boolean")
        _check_depth(root, max_depth)
        self._root = root
        self._at: dict[Pointer, Any] = {}  # schema objects, and whatever else was asked for
        self._named: dict[str, Pointer] = {}  # "#anchor" or "base" or "base#anchor" -> pointer
        self._bases: dict[Pointer, str] = {}  # where a new base URI begins
        for pointer, schema in schemas(root):
            self._at[pointer] = schema
            self._index(pointer, schema)

    def _index(self, pointer: Pointer, schema: dict[str, Any]) -> None:
        base = schema.get("$id", schema.get("id"))
        if isinstance(base, str) and "$ref" not in schema:
            if base.startswith("#"):
                self._named.setdefault(base, pointer)
            elif not pointer or "$id" in schema:
                self._bases[pointer] = base.rstrip("#")
                self._named.setdefault(base.rstrip("#"), pointer)
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(keyword), str):
                self._named.setdefault("#" + schema[keyword], pointer)

    def at(self, pointer: Pointer) -> Any:
        """Return the value at a pointer that is known to exist."""
        try:
            return self._at[pointer]
        except KeyError:
            found = self._step(pointer)
            assert found is not None, f"no {pointer} in the schema"
            self._at[pointer] = found[0]
            return found[0]

    def resolve(self, reference: str, pointer: Pointer) -> Pointer:
        """Return where a $ref inside the schema at `pointer` leads.

        Raises:
            UnsupportedKeyword: outside the document, or nowhere.
        """
        inner = [at for at in self._bases if at and (pointer + "/").startswith(at + "/")]
        if inner:
            reason = f"references below another $id ({self._bases[inner[0]]!r}) are not supported"
            raise UnsupportedKeyword(pointer, "$ref", reason)
        base, fragment = urldefrag(reference)
        start = self._base_pointer(base, reference, pointer)
        target = unquote(fragment)
        if target and not target.startswith("/"):
            found = self._named.get("#" + target)
        else:
            found = start + target if self._step(start + target) else None
        if found is None or not isinstance(self.at(found), dict | bool):
            raise UnsupportedKeyword(pointer, "$ref", f"{reference!r} leads to no schema")
        return found

    def _base_pointer(self, base: str, reference: str, pointer: Pointer) -> Pointer:
        if not base or base == self._bases.get("", "").partition("#")[0]:
            return ""
        found = self._named.get(base)
        if found is None:
            reason = f"{reference!r} lies outside the schema; nothing is fetched"
            raise UnsupportedKeyword(pointer, "$ref", reason)
        return found

    def _step(self, pointer: Pointer) -> tuple[Any] | None:
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


def _check_depth(root: Any, max_depth: int) -> None:
    todo = [(root, 0)]
    while todo:
        value, depth = todo.pop()
        if depth > max_depth:
            raise ConstraintError(f"the schema is nested more than {max_depth} deep")
        if isinstance(value, dict):
            todo.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            todo.extend((item, depth + 1) for item in value)
