"""Lowers a JSON schema to the grammar of its valid texts.

Law 3, "sound or loud": every text of the grammar is valid under the schema, by the 2020-12
standard with formats as assertions; a keyword that would break this is refused by its pointer.

The generation profile, always a subset of the schema: keys in the schema's order; objects closed
unless additionalProperties, patternProperties or propertyNames speak of further keys, or no key is
declared at all; a schema without type read by its keywords; numbers and blanks as json_text.py
writes them; const and enum values as given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from copy import deepcopy
from typing import Any

from msgspec.structs import replace

from plait.decoders.constrained.grammar import json_text, regex, residues
from plait.decoders.constrained.grammar.dfa import lexeme
from plait.decoders.constrained.grammar.nodes import (
    NOTHING,
    CharClass,
    Grammar,
    LiteralText,
    Node,
    Ref,
    alternation,
    is_nothing,
    seq,
)
from plait.decoders.constrained.grammar.regex import ANY_TEXT, Expr
from plait.decoders.constrained.schema.alternatives import (
    Alternatives,
    enforceable,
    untyped,
)
from plait.decoders.constrained.schema.arrays import ArrayRules, repeated
from plait.decoders.constrained.schema.facts import (
    NUMBERS,
    Facts,
    Kind,
    SchemaRef,
    SchemaRefs,
    meet,
)
from plait.decoders.constrained.schema.formats import asserted, with_formats
from plait.decoders.constrained.schema.numbers import (
    MAX_REMAINDERS,
    NeedsRemainders,
    by_kind,
    number_text,
    remainders_of,
    remainders_text,
    scientific_text,
)
from plait.decoders.constrained.schema.properties import ObjectWriter
from plait.decoders.constrained.schema.references.document import Document
from plait.decoders.constrained.schema.references.leaves import (
    LeafKey,
    keep_leaf,
    kept_leaf,
    leaf_key,
)
from plait.decoders.constrained.schema.references.reading import meant
from plait.decoders.constrained.schema.references.resources import schemas
from plait.decoders.constrained.schema.sets.outside import Unprovable
from plait.decoders.constrained.schema.unsatisfiable import UnsatisfiableDiagnosis
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    JsonStyle,
    Numbers,
    UnsupportedKeyword,
)

TOO_MANY_REMAINDERS = "its multiples need too many remainders; a small range makes them few"

_QUOTE = LiteralText('"')


def schema_grammar(schema: Any, limits: ConstraintLimits, style: JsonStyle) -> Grammar:
    """Return the grammar of a JSON schema; it may have dead rules (grammar.check.prune).

    Raises:
        UnsupportedKeyword: a keyword can't be enforced here.
        ConstraintError: the schema is malformed or too large.
    """
    if isinstance(schema, dict) and "/draft-04/" in str(schema.get("$schema")):
        numbers: Numbers = "decimals" if style.numbers == "any" else "plain"
        style = dataclasses.replace(style, numbers=numbers)
    if style.formats in ("annotate", "standard"):
        schema = with_only(schema, asserted(style.formats))
    document = Document(schema, max_depth=limits.max_depth)
    alternatives = Alternatives(document)
    lowering = _Lowering(document, alternatives, limits.max_rules, style)
    rules = lowering.run()
    rules |= json_text.json_rules(limits.max_whitespace, lowering.levels(), style.whitespace)
    return Grammar(
        rules, UnsatisfiableDiagnosis(rules, lowering.names, document, alternatives).error
    )


def with_only(schema: Any, formats: Set[str]) -> Any:
    """Return a copy of a schema in which no other format is named."""
    found = deepcopy(schema)
    for _, each in schemas(found):
        if each.get("format") not in formats:
            each.pop("format", None)
    return found


def longest_path(edges: Mapping[str, Set[str]], start: str) -> int | None:
    """Return how many edges the longest path from a node has; None: there is a cycle."""
    depth: dict[str, int] = {}
    open_nodes: set[str] = set()
    todo = [(start, False)]
    while todo:
        name, is_done = todo.pop()
        ahead = edges.get(name, set())
        if is_done:
            open_nodes.discard(name)
            depth[name] = max((1 + depth[target] for target in ahead), default=0)
        elif name in open_nodes:
            return None
        elif name not in depth:
            open_nodes.add(name)
            todo.append((name, True))
            todo.extend((target, False) for target in ahead if target not in depth)
    return depth[start]


class _Lowering:
    """Rules by name, and the places whose rules are still to be written."""

    def __init__(
        self, document: Document, alternatives: Alternatives, max_rules: int, style: JsonStyle
    ) -> None:
        self._document = document
        self._alternatives = alternatives
        self._max_rules = max_rules
        self._style = style
        self._rules: dict[str, Node] = {}
        self._names: dict[SchemaRefs, str] = {}
        self._todo: list[SchemaRefs] = []
        self._leaves: dict[LeafKey, Node] = {}  # of schemas of scalars
        self._inside: dict[str, set[str]] = {}  # the values inside a value, by their rules
        self._writing = "root"
        self._is_endless = False  # some value is any JSON
        self._listed_levels = 0  # of the values of const and enum

    @property
    def names(self) -> Mapping[SchemaRefs, str]:
        """The names of the rules that stand for values, by their places."""
        return self._names

    def run(self) -> dict[str, Node]:
        """Return the rules of the schema."""
        root = self._value((SchemaRef(self._document.root),))
        while self._todo:
            places = self._todo.pop(0)
            self._writing = self._names[places]
            self._define(self._writing, self._places(places))
        return {"root": json_text.whole_text(root, self._style.whitespace), **self._rules}

    def levels(self) -> int | None:
        """Return how deep objects and arrays nest, at most; None: without end."""
        levels = None if self._is_endless else longest_path(self._inside, "root")
        return None if levels is None else levels - 1 + self._listed_levels

    def _define(self, name: str, node: Node) -> None:
        self._rules[name] = node
        if len(self._rules) > self._max_rules:
            raise ConstraintError(f"it needs more than {self._max_rules} grammar rules")

    def _value(self, places: SchemaRefs) -> Node:
        """Return the rule of a value at some places, to be written later."""
        name = self._names.get(places)
        if name is None:
            target = tuple([meant(self._document, place) for place in places])
            target = target if len(target) < 2 else tuple(dict.fromkeys(target))
            name = self._names.get(target)
            if name is None and len(target) == 1 and (leaf := self._leaf(target[0])) is not None:
                self._inside.setdefault(self._writing, set()).add("leaf")
                return leaf
            if name is None:
                name = self._names[target] = f"v{len(self._names)}"
                self._todo.append(target)
            self._names[places] = name
        self._inside.setdefault(self._writing, set()).add(name)
        return Ref(name)

    def _leaf(self, place: SchemaRef) -> Node | None:
        """Return the node of a schema of scalars; None: it is none, or none of them is valid."""
        schema = self._document.at(place.pointer)
        key = None if place.negated else leaf_key(schema)
        if key is None:
            return None
        known = self._leaves.get(key)
        if known is not None:
            return known
        node = kept_leaf(key, self._style)
        if node is None:
            found = self._alternatives.of((place,))
            node = alternation([self._facts(facts, "leaf") for facts in found])
            if is_nothing(node):
                return None
            keep_leaf(key, self._style, node)
        if not isinstance(node, Ref | LiteralText):  # a rule, so that it is looked at once
            name = f"leaf{len(self._leaves)}"
            self._define(name, node)
            node = Ref(name)
        self._leaves[key] = node
        return node

    def _places(self, places: SchemaRefs) -> Node:
        name = self._names[places]
        found = self._alternatives.of(places)
        return alternation([self._facts(facts, f"{name}-{i}") for i, facts in enumerate(found)])

    def _facts(self, facts: Facts, name: str) -> Node:
        facts = untyped(facts) if self._style.untyped != "any" else facts
        if facts.literals is not None:
            return self._literals(facts)
        if not facts.is_typed and not facts.mentions():
            self._is_endless = True
            return json_text.VALUE
        if (parts := enforceable(facts)) is not None:
            return alternation([self._facts(part, f"{name}-{i}") for i, part in enumerate(parts)])
        kinds: list[Kind] = ["object", "array", "string", "boolean", "null"]
        found = [self._kind(facts, kind, name) for kind in kinds if kind in facts.kinds]
        return alternation([*found, self._number(facts)])

    def _literals(self, facts: Facts) -> Node:
        found = []
        others = replace(facts, literals=None)  # each of them is one of them
        for value in (facts.literals or {}).values():
            try:
                if self._alternatives.algebra.admits(others, value):
                    found.append(json_text.literal(value, self._style))
                    self._listed_levels = max(self._listed_levels, json_text.levels_of(value))
            except Unprovable as error:
                keyword = "format" if facts.formats else "enum"
                raise UnsupportedKeyword(facts.pointer, keyword, str(error)) from None
        return alternation(found)

    def _kind(self, facts: Facts, kind: Kind, name: str) -> Node:
        if kind == "object":
            return self._object(facts, name)
        if kind == "array":
            algebra = self._alternatives.algebra
            return ArrayRules(name, facts, self._value, self._define, algebra, self._style).node()
        if kind == "string":
            return self._string(facts)
        if kind == "boolean":
            return alternation([json_text.literal(value) for value in sorted(facts.booleans)])
        return json_text.NULL

    def _number(self, facts: Facts) -> Node:
        kinds = facts.kinds & NUMBERS
        if not kinds:
            return NOTHING
        if kinds == NUMBERS and not facts.mentions() & NUMBERS:
            return json_text.NUMBER
        numbers = self._style.numbers or "plain"
        if numbers == "plain" or (numbers == "decimals" and kinds == {"integer"}):
            return self._plain_number(facts)
        if kinds == NUMBERS and not facts.multiples and not facts.non_multiples:
            scientific = self._text(scientific_text(facts), facts, "maximum", is_quoted=False)
            return alternation([self._plain_number(facts), scientific])
        found = []
        for kind in sorted(kinds):
            node = self._plain_number(replace(facts, kinds=frozenset({kind})))
            found.append(json_text.with_zeros(node, is_integer=kind == "integer"))
        return alternation(found)

    def _plain_number(self, facts: Facts) -> Node:
        if facts.kinds & NUMBERS == {"integer"} and not facts.mentions() & NUMBERS:
            return json_text.INTEGER
        try:
            expr = number_text(facts)
        except NeedsRemainders:
            return self._multiples(facts)
        return self._text(expr, facts, "maximum", is_quoted=False)

    def _multiples(self, facts: Facts) -> Node:
        """Return the numbers that are multiples of some steps, and of no other."""
        if (parts := by_kind(facts)) != [facts]:
            return alternation([self._plain_number(part) for part in parts])
        try:
            remainders = remainders_of(facts)
            found = remainders_text(facts, remainders)
            return residues.multiples(found, remainders, max_states=2 * MAX_REMAINDERS)
        except regex.TooManyStates:
            raise UnsupportedKeyword(facts.pointer, "multipleOf", TOO_MANY_REMAINDERS) from None

    def _string(self, facts: Facts) -> Node:
        if facts.text is ANY_TEXT and not facts.formats:
            if not facts.min_length and facts.max_length is None:
                return json_text.STRING
            most = facts.max_length
            inner = repeated(json_text.CHARACTER, facts.min_length, most, facts, "minLength")
            return seq(_QUOTE, inner, _QUOTE)
        keyword = "format" if facts.text is ANY_TEXT else "pattern"
        facts = with_formats(facts)
        text, low, high = regex.counted(facts.text)
        facts = meet(replace(facts, text=text), Facts(min_length=low, max_length=high)) or facts
        return seq(_QUOTE, self._sized(text, facts, keyword), _QUOTE)

    def _sized(self, expr: Expr, facts: Facts, keyword: str) -> Node:
        """Return the node of the texts that also have the right length, inside quotes.

        A length that one loop over characters decides is that loop's count, any other is counted
        beside the expression's automaton.
        """
        least, most = regex.length_bounds(expr)
        low = facts.min_length if least < facts.min_length else 0
        is_longer = most is None or (facts.max_length is not None and most > facts.max_length)
        high = facts.max_length if is_longer else None
        if not low and high is None:
            return self._text(expr, facts, keyword, is_quoted=True)
        fitted = regex.fitted(expr, low, high) if expr.is_plain else None
        if fitted is not None:
            return self._text(fitted, facts, keyword, is_quoted=True)
        return self._lexeme(expr, (low, high), facts, keyword, is_quoted=True)

    def _text(self, expr: Expr, facts: Facts, keyword: str, *, is_quoted: bool) -> Node:
        """Return the node of a text, quoted: as it is written inside a JSON string."""
        if expr.is_plain:
            return regex.structure(expr, json_text.quoted if is_quoted else CharClass)
        return self._lexeme(expr, (0, None), facts, keyword, is_quoted=is_quoted)

    def _lexeme(
        self,
        expr: Expr,
        length: tuple[int, int | None],
        facts: Facts,
        keyword: str,
        *,
        is_quoted: bool,
    ) -> Node:
        try:
            return lexeme(expr, *length, is_quoted=is_quoted)
        except regex.TooManyStates as error:
            reason = f"together with its neighbours it is too complex: {error}"
            raise UnsupportedKeyword(facts.pointer, keyword, reason) from None

    def _object(self, facts: Facts, name: str) -> Node:
        return ObjectWriter(
            name, facts, self._value, self._key, self._define, self._alternatives, self._style
        ).node()

    def _key(self, expr: Expr, facts: Facts, keyword: str) -> Node:
        return self._text(expr, facts, keyword, is_quoted=True)
