"""OpenAI's strict subset of JSON schema, as far as it is structure.

`strict: true` promises that every object says all it holds: the root is an object, all properties
are required, and nothing else may appear. Keywords are judged elsewhere, as for any other schema.
"""

from __future__ import annotations

from typing import Any

from plait.decoders.constrained.schema.references.resources import schemas
from plait.decoders.constrained.spec import UnsupportedKeyword


def check_strict(schema: Any) -> None:
    """Check the structural rules of strict mode.

    Raises:
        UnsupportedKeyword: a rule is broken; its pointer names the place.
    """
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise UnsupportedKeyword("", "type", "strict mode needs an object at the root")
    for pointer, found in schemas(schema):
        if found.get("type") == "object" or "properties" in found:
            _check_object(pointer, found)


def _check_object(pointer: str, schema: dict[str, Any]) -> None:
    if schema.get("additionalProperties") is not False:
        reason = "strict mode needs it to be false in every object"
        raise UnsupportedKeyword(pointer, "additionalProperties", reason)
    required = schema.get("required", [])
    for name in schema.get("properties", {}):
        if name not in required:
            reason = f"strict mode needs every property in it; {name!r} is missing"
            raise UnsupportedKeyword(pointer, "required", reason)
