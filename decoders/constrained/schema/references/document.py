"""A JSON schema document: its places, its references, and the dynamic scope they are read in."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from plait.decoders.constrained.schema.facts import json_key
from plait.decoders.constrained.schema.references.resources import Pointer, Resource, Resources
from plait.decoders.constrained.spec import (
    SCOPE_MARK,
    VALUE_MARK,
    ConstraintError,
    UnsupportedKeyword,
    plain_pointer,
)

_UNEVALUATED = frozenset(("unevaluatedProperties", "unevaluatedItems"))
Scope = tuple[tuple[str, Pointer], ...]  # dynamic anchors, each with where it leads, by name


class Document:
    """A root schema and what its references point to.

    Where `$schema` names one of the drafts 4 to 7, what stands beside a `$ref` is ignored, as they
    say; a fragment that leads nowhere in its own resource is looked for in the whole document.

    A place is a JSON pointer. Where the document has dynamic references, the number of the scope
    that it is read in comes first ("@2/properties/x"), since that decides where they lead: the same
    schema read in two scopes is two places. Places beside the document stand for values that it
    lists ("=3/properties/x").
    """

    def __init__(self, root: Any, *, max_depth: int) -> None:
        if not isinstance(root, dict | bool):
            raise ConstraintError("a JSON schema is an object or a boolean")
        _check_depth(root, max_depth)
        self._resources = Resources(root)
        self._at: dict[Pointer, Any] = {}  # schema objects, and whatever else was asked for
        self._values: dict[Hashable, Pointer] = {}
        self._scopes: list[Scope] = []
        self._scope_numbers: dict[Scope, int] = {}
        self.tracks_evaluated = False  # whether unevaluatedProperties or -Items stand anywhere
        is_dynamic = False
        for pointer, schema in self._resources.schemas:
            is_alone = "$ref" in schema and self._resources.of(pointer).is_old
            self._at[pointer] = {"$ref": schema["$ref"]} if is_alone else schema
            self.tracks_evaluated |= not _UNEVALUATED.isdisjoint(schema)
            is_dynamic |= "$dynamicRef" in schema or "$recursiveRef" in schema
        self.root: Pointer = self._place("", ()) if is_dynamic else ""

    def at(self, pointer: Pointer) -> Any:
        """Return the value at a place that is known to exist."""
        try:
            return self._at[pointer]
        except KeyError:
            found = self._resources.step(plain_pointer(pointer))
            assert found is not None, f"no {pointer} in the schema"
            self._at[pointer] = found[0]
            return found[0]

    def place_of(self, value: Any, pointer: Pointer) -> Pointer:
        """Return a place where one value alone is valid.

        pointer: of the schema that names it, for messages.
        """
        key = json_key(value)
        if key not in self._values:
            place = f"{VALUE_MARK}{len(self._values)}{plain_pointer(pointer)}"
            self._values[key] = place
            self._at[place] = {"const": value}
        return self._values[key]

    def entered(self, pointer: Pointer) -> Pointer:
        """Return a place as it is read: a resource that begins there joins the scope."""
        if not pointer.startswith(SCOPE_MARK):
            return pointer
        return self._place(plain_pointer(pointer), self._scope(pointer))

    def resolve(self, reference: str, pointer: Pointer, keyword: str = "$ref") -> Pointer:
        """Return where a reference inside the schema at a place leads.

        Raises:
            UnsupportedKeyword: outside the document, or nowhere.
        """
        plain = plain_pointer(pointer)
        uri = self._resources.uri(reference, plain)
        found = self._resources.find(uri)
        if found is None and reference.startswith("#/") and self._resources.step(reference[1:]):
            found = reference[1:]
        if found is None and self._resources.find(uri.partition("#")[0]) is None:
            reason = f"{reference!r} lies outside the schema; nothing is fetched"
            raise UnsupportedKeyword(plain, keyword, reason)
        if found is None or not isinstance(self.at(found), dict | bool):
            raise UnsupportedKeyword(plain, keyword, f"{reference!r} leads to no schema")
        if not pointer.startswith(SCOPE_MARK):
            return found
        scope = self._scope(pointer)
        anchor = self._resources.dynamic_anchor(uri) if keyword != "$ref" else None
        if anchor is not None:
            found = dict(scope).get(anchor, found)
        return self._place(found, scope)

    def _scope(self, pointer: Pointer) -> Scope:
        return self._scopes[int(pointer.partition("/")[0][len(SCOPE_MARK) :])]

    def _place(self, plain: Pointer, scope: Scope) -> Pointer:
        """Return the place of a pointer whose resource is entered from a scope.

        What is bound already stays: the outermost resource decides.
        """
        resource: Resource = self._resources.of(plain)
        bound = dict(scope)
        if not resource.dynamic_anchors.keys() <= bound.keys():
            scope = tuple(sorted({**resource.dynamic_anchors, **bound}.items()))
        number = self._scope_numbers.setdefault(scope, len(self._scopes))
        if number == len(self._scopes):
            self._scopes.append(scope)
        return f"{SCOPE_MARK}{number}{plain}"


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
