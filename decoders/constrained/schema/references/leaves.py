"""Schemas of scalars alone: most places of most documents, and the same few again and again.

What such a schema means depends on its own keywords and on nothing around it.
"""

from __future__ import annotations

from typing import Any

from plait.decoders.constrained.grammar.nodes import Node
from plait.decoders.constrained.schema.read import ANNOTATIONS
from plait.decoders.constrained.spec import JsonStyle

LeafKey = tuple[tuple[Any, ...], ...]
MAX_KEPT = 1024  # nodes

_SCALARS = frozenset(("string", "integer", "number", "boolean", "null"))
_ASSERTIONS = frozenset(("type", "enum", "const", "nullable", "format", "pattern"))
_ASSERTIONS |= {"minLength", "maxLength", "multipleOf"}
_ASSERTIONS |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_kept: dict[tuple[LeafKey, JsonStyle], Node] = {}


def leaf_key(schema: Any) -> LeafKey | None:
    """Return a key that two schemas of scalars share only if they mean the same.

    None: it is no such schema, or what it means may depend on its place.
    """
    if not isinstance(schema, dict):
        return None
    found: list[tuple[Any, ...]] = []
    for keyword, value in schema.items():
        if keyword not in _ASSERTIONS:
            if keyword not in ANNOTATIONS:
                return None
        elif type(value) is list:
            found.append((keyword, *((type(each), each) for each in value)))
            if any(type(each) is list or type(each) is dict for each in value):
                return None
        elif type(value) is dict:
            return None
        else:
            found.append((keyword, type(value), value))
    return tuple(found) if _is_of_scalars(schema) else None


def _is_of_scalars(schema: dict[str, Any]) -> bool:
    if "type" not in schema:
        return "enum" in schema or "const" in schema
    given = schema["type"]
    return all(type(each) is str and each in _SCALARS for each in _listed(given))


def _listed(value: Any) -> list[Any]:
    return value if type(value) is list else [value]


def kept_leaf(key: LeafKey, style: JsonStyle) -> Node | None:
    """Return the node of a schema that this process has read before."""
    return _kept.get((key, style))


def keep_leaf(key: LeafKey, style: JsonStyle, node: Node) -> None:
    """Keep a node, unless it is of a pattern: these are large, and each document has its own."""
    if any(keyword == "pattern" for keyword, *_ in key):
        return
    if len(_kept) >= MAX_KEPT:
        _kept.clear()
    _kept[key, style] = node
