"""Read the assertions of one schema object, keyword by keyword.

By the standard an unknown keyword asserts nothing. Those that resemble an assertion, or are one in
another dialect, are refused by name all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from msgspec.structs import replace

from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.regex import Expr
from plait.decoders.constrained.grammar.regex_parser import RegexError, parse_search
from plait.decoders.constrained.schema.facts import (
    ALL,
    TYPES,
    ArrayRule,
    Bound,
    ContainsRule,
    Facts,
    Kinds,
    ObjectRule,
    SchemaRef,
    SchemaRefs,
    decimal_of,
    keyed,
    kind_of,
    tighter,
)
from plait.decoders.constrained.schema.formats import FORMATS, NUMBER_FORMATS, number_bounds
from plait.decoders.constrained.schema.references.resources import REFERENCES, escape
from plait.decoders.constrained.spec import UnsupportedKeyword

Schema = dict[str, Any]
Reader = Callable[[Facts, Schema, str], Facts]

# Spread out by alternatives.py.
APPLICATORS = REFERENCES | {"allOf", "anyOf", "oneOf", "not", "if", "then", "else"}
APPLICATORS |= {"dependentRequired", "dependentSchemas", "dependencies"}
# Assertions and references of other drafts and of validators' extensions.
FOREIGN = frozenset(("$data", "$merge", "$patch", "extends"))
FOREIGN |= {"disallow", "divisibleBy", "propertyDependencies", "uniqueItemProperties", "min", "max"}
FOREIGN |= {"allRequired", "anyRequired", "oneRequired", "patternRequired", "prohibited", "regexp"}
FOREIGN |= {"formatMinimum", "formatMaximum", "formatExclusiveMinimum", "formatExclusiveMaximum"}
FOREIGN |= {"instanceof", "range", "exclusiveRange", "select", "selectCases", "deepRequired"}
# Say nothing about the instance by the standard, though they resemble keywords that do.
ANNOTATIONS = frozenset(("$schema", "$id", "id", "$anchor", "$comment", "$defs", "definitions"))
ANNOTATIONS |= {"$vocabulary", "$dynamicAnchor", "$recursiveAnchor", "title", "description"}
ANNOTATIONS |= {"default", "examples", "deprecated", "readOnly", "writeOnly", "contentEncoding"}
ANNOTATIONS |= {"contentMediaType", "contentSchema", "types", "formats", "propertyOrder"}
TYPO_RATIO = 0.87  # difflib's; "minLenght" is 0.89 like minLength, "links" is like nothing


def read_assertions(schema: Schema, pointer: str) -> Facts:
    """Return what the schema's own keywords assert, applicators left out.

    Raises:
        UnsupportedKeyword: unknown, malformed, or beyond any mask.
    """
    is_typed = "type" in schema
    facts = Facts(_types(schema, pointer) if is_typed else ALL, is_typed, pointer=pointer)
    for keyword in schema:
        reader = _READERS.get(keyword)
        if reader is not None:
            facts = reader(facts, schema, pointer)
        elif keyword not in APPLICATORS:
            _check_unknown(keyword, pointer)
    return facts


def _check_unknown(keyword: str, pointer: str) -> None:
    """Let annotations pass: the standard's own, and by the standard all unknown keywords.

    Raises:
        UnsupportedKeyword: another dialect's assertion, or a misspelt one of ours.
    """
    if keyword in FOREIGN:
        raise UnsupportedKeyword(pointer, keyword, "this keyword is not supported")
    if keyword in ANNOTATIONS or keyword.startswith(("x-", "_", "//", "@")):
        return
    if (meant := _resembling(keyword)) is not None:
        reason = f"this keyword is not known; is {meant!r} meant?"
        raise UnsupportedKeyword(pointer, keyword, reason)


@lru_cache(1024)  # the same few stand in many places
def _resembling(keyword: str) -> str | None:
    """Return the keyword that is spelled almost like this one."""
    known = [*_READERS, *APPLICATORS]
    folded = [name for name in known if name.lower() == keyword.lower()]
    found = folded or get_close_matches(keyword, known, n=1, cutoff=TYPO_RATIO)
    return found[0] if found else None


def _malformed(pointer: str, keyword: str, want: str) -> UnsupportedKeyword:
    return UnsupportedKeyword(pointer, keyword, f"its value must be {want}")


def _count(schema: Schema, pointer: str, keyword: str) -> int:
    value = schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value % 1:
        raise _malformed(pointer, keyword, "a non-negative integer")
    return int(value)


def _number(schema: Schema, pointer: str, keyword: str) -> Decimal:
    value = schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _malformed(pointer, keyword, "a number")
    return decimal_of(value)


def _object_of(schema: Schema, pointer: str, keyword: str) -> dict[str, Any]:
    value = schema[keyword]
    if not isinstance(value, dict):
        raise _malformed(pointer, keyword, "an object")
    return value


def _places(schema: Schema, pointer: str, keyword: str) -> SchemaRefs:
    if not isinstance(schema[keyword], dict | bool):
        raise _malformed(pointer, keyword, "a schema")
    return (SchemaRef(f"{pointer}/{escape(keyword)}"),)


def _types(schema: Schema, pointer: str) -> Kinds:
    value = schema["type"]
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name in TYPES for name in names):
        raise _malformed(pointer, "type", f"one or more of {', '.join(TYPES)}")
    return frozenset(kind for name in names for kind in TYPES[name])


def _enum(facts: Facts, schema: Schema, pointer: str) -> Facts:
    if not isinstance(schema["enum"], list):
        raise _malformed(pointer, "enum", "a list")
    return _literals(facts, schema["enum"])


def _const(facts: Facts, schema: Schema, _: str) -> Facts:
    return _literals(facts, [schema["const"]])


def _literals(facts: Facts, values: list[Any]) -> Facts:
    found = keyed(values)
    if facts.literals is not None:
        found = {key: value for key, value in found.items() if key in facts.literals}
    kinds = facts.kinds & set(map(kind_of, found.values()))
    return replace(facts, kinds=kinds, literals=found, is_typed=True)


def _low(facts: Facts, schema: Schema, pointer: str) -> Facts:
    found = _bound(schema, pointer, ("minimum", "exclusiveMinimum"), max)
    return replace(facts, low=tighter(facts.low, found, 1))


def _high(facts: Facts, schema: Schema, pointer: str) -> Facts:
    found = _bound(schema, pointer, ("maximum", "exclusiveMaximum"), min)
    return replace(facts, high=tighter(facts.high, found, -1))


def _bound(
    schema: Schema, pointer: str, keywords: tuple[str, str], pick: Callable[..., Any]
) -> Bound | None:
    """Return the tighter one of two bounds; draft 4's boolean exclusive... is understood."""
    closed, exclusive = keywords
    found = []
    if closed in schema:
        is_open = schema.get(exclusive) is True
        found.append((_number(schema, pointer, closed), is_open))
    if exclusive in schema and not isinstance(schema[exclusive], bool):
        found.append((_number(schema, pointer, exclusive), True))
    if not found:
        return None
    value = pick(value for value, _ in found)
    return Bound(value, any(is_open for other, is_open in found if other == value))


def _multiple(facts: Facts, schema: Schema, pointer: str) -> Facts:
    value = _number(schema, pointer, "multipleOf")
    if value <= 0:
        raise _malformed(pointer, "multipleOf", "a positive number")
    return replace(facts, multiples=(value,))


def _min_length(facts: Facts, schema: Schema, pointer: str) -> Facts:
    return replace(facts, min_length=_count(schema, pointer, "minLength"))


def _max_length(facts: Facts, schema: Schema, pointer: str) -> Facts:
    return replace(facts, max_length=_count(schema, pointer, "maxLength"))


def _pattern(facts: Facts, schema: Schema, pointer: str) -> Facts:
    if not isinstance(schema["pattern"], str):
        raise _malformed(pointer, "pattern", "a string")
    text = read_pattern(schema["pattern"], pointer, "pattern")
    return replace(facts, text=regex.intersection(facts.text, text))


def read_pattern(pattern: str, pointer: str, keyword: str) -> Expr:
    """Return the texts in which the pattern is found.

    Raises:
        UnsupportedKeyword: it is not regular, or malformed.
    """
    try:
        return parse_search(pattern)
    except RegexError as error:
        raise UnsupportedKeyword(pointer, keyword, str(error)) from None


def _format(facts: Facts, schema: Schema, pointer: str) -> Facts:
    """Read a format; one that is not known is an annotation, which asserts nothing."""
    name = schema["format"]
    if not isinstance(name, str):
        raise _malformed(pointer, "format", "a string")
    if name in NUMBER_FORMATS:
        bounds = number_bounds(name)
        low, high = tighter(facts.low, bounds.low, 1), tighter(facts.high, bounds.high, -1)
        return replace(facts, formats=(name,), low=low, high=high)
    return replace(facts, formats=(name,)) if name in FORMATS else facts


def _array_rule(facts: Facts, schema: Schema, pointer: str) -> Facts:
    """Read prefixItems and items, or the older items list and additionalItems."""
    if facts.arrays:
        return facts
    lists = [k for k in ("prefixItems", "items") if isinstance(schema.get(k), list)]
    rest_keyword = "additionalItems" if "items" in lists else "items"
    prefix: tuple[SchemaRefs, ...] = ()
    if lists:
        count = len(schema[lists[0]])
        prefix = tuple((SchemaRef(f"{pointer}/{lists[0]}/{index}"),) for index in range(count))
    rest = _places(schema, pointer, rest_keyword) if rest_keyword in schema else None
    if not prefix and rest is None:
        return facts
    return replace(facts, arrays=(ArrayRule(prefix, rest),))


def _min_items(facts: Facts, schema: Schema, pointer: str) -> Facts:
    return replace(facts, min_items=_count(schema, pointer, "minItems"))


def _max_items(facts: Facts, schema: Schema, pointer: str) -> Facts:
    return replace(facts, max_items=_count(schema, pointer, "maxItems"))


def _unique(facts: Facts, schema: Schema, pointer: str) -> Facts:
    if not isinstance(schema["uniqueItems"], bool):
        raise _malformed(pointer, "uniqueItems", "a boolean")
    return replace(facts, unique=(f"{pointer}/uniqueItems",)) if schema["uniqueItems"] else facts


def _contains(facts: Facts, schema: Schema, pointer: str) -> Facts:
    places = _places(schema, pointer, "contains")
    least = _count(schema, pointer, "minContains") if "minContains" in schema else 1
    most = _count(schema, pointer, "maxContains") if "maxContains" in schema else None
    return replace(facts, contains=(ContainsRule(places, least, most),))


def _read_elsewhere(facts: Facts, schema: Schema, pointer: str) -> Facts:
    del schema, pointer  # type comes first; counts are read with contains, and say nothing alone
    return facts


def _object_rule(facts: Facts, schema: Schema, pointer: str) -> Facts:
    """Read properties, patternProperties and additionalProperties, once."""
    if facts.objects:
        return facts
    named: dict[str, SchemaRefs] = {}
    patterns: list[tuple[Expr, SchemaRefs]] = []
    if "properties" in schema:
        for name in _object_of(schema, pointer, "properties"):
            named[name] = (SchemaRef(f"{pointer}/properties/{escape(name)}"),)
    if "patternProperties" in schema:
        for pattern in _object_of(schema, pointer, "patternProperties"):
            at = f"{pointer}/patternProperties"
            expr = read_pattern(pattern, at, pattern)
            patterns.append((expr, (SchemaRef(f"{at}/{escape(pattern)}"),)))
    keyword = "additionalProperties"
    extra = _places(schema, pointer, keyword) if keyword in schema else None
    return replace(facts, objects=(ObjectRule(named, tuple(patterns), extra),))


def _required(facts: Facts, schema: Schema, pointer: str) -> Facts:
    value = schema["required"]
    if isinstance(value, bool):
        reason = "draft 3's boolean is not supported; list the names in the object's schema"
        raise UnsupportedKeyword(pointer, "required", reason)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _malformed(pointer, "required", "a list of names")
    return replace(facts, required=tuple(dict.fromkeys(value)))


def _names(facts: Facts, schema: Schema, pointer: str) -> Facts:
    return replace(facts, names=_places(schema, pointer, "propertyNames"))


def _min_properties(facts: Facts, schema: Schema, pointer: str) -> Facts:
    return replace(facts, min_properties=_count(schema, pointer, "minProperties"))


def _max_properties(facts: Facts, schema: Schema, pointer: str) -> Facts:
    return replace(facts, max_properties=_count(schema, pointer, "maxProperties"))


def _unevaluated(keyword: str) -> Reader:
    def read(facts: Facts, schema: Schema, pointer: str) -> Facts:
        _places(schema, pointer, keyword)  # what it says depends on all other keywords
        return facts

    return read


def close(facts: Facts, schema: Schema, pointer: str) -> Facts:
    """Return the facts with what the schema says of unevaluated properties and items.

    facts: one alternative of all that the schema's other keywords say; what it names is evaluated.
    """
    if "unevaluatedProperties" in schema:
        rules = [rule for rule in facts.objects if rule.evaluates]
        if all(rule.extra is None for rule in rules):
            named: dict[str, SchemaRefs] = {name: () for rule in rules for name in rule.named}
            patterns = tuple((expr, ()) for rule in rules for expr, _ in rule.patterns)
            extra = _places(schema, pointer, "unevaluatedProperties")
            rule = ObjectRule(named, patterns, extra)
            facts = replace(facts, objects=(*facts.objects, rule))
    if "unevaluatedItems" in schema:
        lists = [rule for rule in facts.arrays if rule.evaluates]
        if all(rule.rest is None for rule in lists):
            listed = max((len(rule.prefix) for rule in lists), default=0)
            rest = _places(schema, pointer, "unevaluatedItems")
            unless = frozenset(rule.places for rule in facts.contains if rule.evaluates)
            others = ArrayRule(((),) * listed, rest, unless=unless)
            facts = replace(facts, arrays=(*facts.arrays, others))
    return facts


def _nullable(facts: Facts, schema: Schema, pointer: str) -> Facts:
    """OpenAPI 3.0's nullable: true widens the type; not granting null is the narrower reading."""
    if not isinstance(schema["nullable"], bool):
        raise _malformed(pointer, "nullable", "a boolean")
    return facts


_READERS: dict[str, Reader] = {
    "type": _read_elsewhere,
    "enum": _enum,
    "const": _const,
    "nullable": _nullable,
    **dict.fromkeys(("minimum", "exclusiveMinimum"), _low),
    **dict.fromkeys(("maximum", "exclusiveMaximum"), _high),
    "multipleOf": _multiple,
    "minLength": _min_length,
    "maxLength": _max_length,
    "pattern": _pattern,
    "format": _format,
    **dict.fromkeys(("items", "prefixItems", "additionalItems"), _array_rule),
    "minItems": _min_items,
    "maxItems": _max_items,
    "uniqueItems": _unique,
    "contains": _contains,
    **dict.fromkeys(("minContains", "maxContains"), _read_elsewhere),
    **dict.fromkeys(("properties", "patternProperties", "additionalProperties"), _object_rule),
    "required": _required,
    "propertyNames": _names,
    "minProperties": _min_properties,
    "maxProperties": _max_properties,
    "unevaluatedProperties": _unevaluated("unevaluatedProperties"),
    "unevaluatedItems": _unevaluated("unevaluatedItems"),
}
