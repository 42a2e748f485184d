"""Compiles a request's constraint into an operation table. Runs in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from plait.decoders.constrained.grammar import gbnf, json_text, regex
from plait.decoders.constrained.grammar.check import left_recursion, prune
from plait.decoders.constrained.grammar.dfa import lexeme
from plait.decoders.constrained.grammar.json_text import json_rules
from plait.decoders.constrained.grammar.nodes import (
    CharClass,
    Grammar,
    LiteralText,
    Mark,
    alternation,
    walk,
)
from plait.decoders.constrained.grammar.regex_parser import RegexError, parse_full_match
from plait.decoders.constrained.schema.formats import asserted
from plait.decoders.constrained.schema.lower import schema_grammar
from plait.decoders.constrained.schema.references.resources import schemas
from plait.decoders.constrained.schema.strict import check_strict
from plait.decoders.constrained.spec import (
    CompiledTable,
    ConstraintError,
    ConstraintKind,
    ConstraintLimits,
    ConstraintSpec,
    parse_json,
)
from plait.decoders.constrained.table import build_table, encode_table, load_automaton
from plait.decoders.constrained.vocabulary import Vocabulary
from plait.kernels.grammar import UNREACHABLE, OpKind, TooLarge

MAX_CHOICES = 10_000
COMMON_FORMATS = ("date-time", "date", "time", "email", "uri", "uuid", "hostname", "ipv4")


def compile_constraint(
    spec: ConstraintSpec, vocabulary: Vocabulary, limits: ConstraintLimits
) -> CompiledTable:
    """Return the compiled constraint; a worker loads it with load.ConstraintLoader.

    Law: no text outside the constraint is ever legal, or this raises ("sound or loud").

    Raises:
        ConstraintError: malformed, unsupported (UnsupportedKeyword), unsatisfiable or too large.
    Cost: milliseconds for usual schemas, without bound for hostile ones: call it where it can be
        killed.
    """
    grammar = lower(spec, limits)
    table = build_table(grammar)
    try:
        automaton = load_automaton(table, vocabulary)
    except TooLarge as error:
        raise ConstraintError(f"{spec.kind}: {error}") from None
    shortest = automaton.num_closing(automaton.start)
    if shortest >= UNREACHABLE:
        raise ConstraintError("the model's vocabulary cannot spell any complete answer")
    has_marks = any(kind == OpKind.MARK for kind, *_ in table.operations)
    checked = tuple(_checked(grammar)) if has_marks else ()
    return CompiledTable(encode_table(table), shortest, checked, tuple(_ignored(spec)))


def prepare() -> None:
    """Read what most schemas hold once, in a process whose forks compile one constraint each."""
    scalars: list[dict[str, Any]] = [{"type": name} for name in ("string", "integer", "number")]
    scalars += [{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}]
    scalars += [{"type": "string", "format": name} for name in COMMON_FORMATS]
    schema = {"properties": {str(index): each for index, each in enumerate(scalars)}}
    spec = ConstraintSpec("json_schema", json.dumps({"type": "object", **schema}))
    build_table(lower(spec, ConstraintLimits()))


def _checked(grammar: Grammar) -> list[str]:
    """Return the keywords that marks stand for."""
    marks = (n for node in grammar.rules.values() for n in walk(node) if isinstance(n, Mark))
    return sorted({pointer for mark in marks for pointer in mark.pointers})


def _ignored(spec: ConstraintSpec) -> Iterator[str]:
    """Yield the places of formats that assert nothing."""
    may_name_formats = '"format"' in spec.text or "\\u" in spec.text
    if spec.kind != "json_schema" or not may_name_formats:
        return
    for pointer, schema in schemas(parse_json(spec)):
        if "format" in schema and schema["format"] not in asserted(spec.style.formats):
            yield f"{pointer}/format"


def lower(spec: ConstraintSpec, limits: ConstraintLimits) -> Grammar:
    """Return the pruned grammar of a constraint.

    Raises:
        ConstraintError: as compile_constraint.
    """
    if len(spec.text.encode()) > limits.max_bytes:
        raise ConstraintError(f"{spec.kind} is larger than {limits.max_bytes} bytes")
    whole = _LOWER[spec.kind](spec, limits)
    grammar = prune(whole)
    if grammar is None and whole.diagnose is not None:
        raise whole.diagnose()
    if grammar is None:
        raise ConstraintError(f"{spec.kind}: no answer can satisfy it")
    if len(grammar.rules) > limits.max_rules:
        raise ConstraintError(f"{spec.kind}: it needs more than {limits.max_rules} grammar rules")
    return grammar


def _json_object(spec: ConstraintSpec, limits: ConstraintLimits) -> Grammar:
    rules = json_rules(limits.max_whitespace, whitespace=spec.style.whitespace)
    root = json_text.whole_text(json_text.OBJECT, spec.style.whitespace)
    return Grammar({"root": root, **rules})


def _json_schema(spec: ConstraintSpec, limits: ConstraintLimits) -> Grammar:
    schema = parse_json(spec)
    if spec.strict:
        check_strict(schema)
    return schema_grammar(schema, limits, spec.style)


def _regex(spec: ConstraintSpec, _: ConstraintLimits) -> Grammar:
    try:
        expr = parse_full_match(spec.text)
    except RegexError as error:
        raise ConstraintError(str(error)) from None
    if expr.is_plain:
        return Grammar({"root": regex.structure(expr, CharClass)})
    try:
        return Grammar({"root": lexeme(*regex.counted(expr), is_quoted=False)})
    except regex.TooManyStates as error:
        raise ConstraintError(f"regex: it is too complex: {error}") from None


def _grammar(spec: ConstraintSpec, _: ConstraintLimits) -> Grammar:
    try:
        grammar = gbnf.parse(spec.text)
    except gbnf.GrammarError as error:
        raise ConstraintError(f"grammar: {error}") from None
    if (rule := left_recursion(grammar)) is not None:
        raise ConstraintError(f"grammar: rule {rule!r} is left-recursive")
    return grammar


def _choice(spec: ConstraintSpec, _: ConstraintLimits) -> Grammar:
    choices = parse_json(spec)
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise ConstraintError("choice must be a list of strings")
    if not 0 < len(choices) <= MAX_CHOICES:
        raise ConstraintError(f"choice must hold 1 to {MAX_CHOICES} strings")
    if not all(_is_text(c) for c in choices):
        raise ConstraintError("choice holds half of a surrogate pair, which is no text")
    return Grammar({"root": alternation([LiteralText(c) for c in choices])})


def _is_text(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


_LOWER: Mapping[ConstraintKind, Callable[[ConstraintSpec, ConstraintLimits], Grammar]] = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _regex,
    "grammar": _grammar,
    "choice": _choice,
}
