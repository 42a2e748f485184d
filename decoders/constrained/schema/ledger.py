"""Says of each keyword of a schema what enforces it. Light: the front end imports it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from plait.decoders.constrained.schema.references.resources import REFERENCES, schemas

# The keywords that assert something; a test holds them against the reader's.
ASSERTIONS = REFERENCES | {"type", "enum", "const", "format", "pattern", "minLength", "maxLength"}
ASSERTIONS |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
ASSERTIONS |= {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"}
ASSERTIONS |= {"contains", "minContains", "maxContains", "unevaluatedItems", "required"}
ASSERTIONS |= {"properties", "patternProperties", "additionalProperties", "propertyNames"}
ASSERTIONS |= {"minProperties", "maxProperties", "unevaluatedProperties", "nullable"}
ASSERTIONS |= {"dependentRequired", "dependentSchemas", "dependencies"}
ASSERTIONS |= {"allOf", "anyOf", "oneOf", "not", "if", "then", "else"}


def enforcement(
    schema: Any, checked: Collection[str], ignored: Collection[str]
) -> list[dict[str, str]]:
    """Return what enforces each keyword that may assert something, by its pointer.

    "grammar": the bits of the legal tokens; "check": beside them, a look at what was written;
    "annotation": nothing, it asserts nothing. What nothing can enforce has been refused before.

    checked, ignored: of spec.CompiledTable.
    """
    return [
        {
            "pointer": pointer,
            "keyword": keyword,
            "by": _by(f"{pointer}/{keyword}", checked, ignored),
        }
        for pointer, found in schemas(schema)
        for keyword in found
        if keyword in ASSERTIONS
    ]


def _by(place: str, checked: Collection[str], ignored: Collection[str]) -> str:
    if place in checked:
        return "check"
    return "annotation" if place in ignored else "grammar"
