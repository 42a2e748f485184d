"""From what a request asked for to a compiled constraint. Runs in the compile service's child."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from plait.decoders.constrained.automaton import Automaton
from plait.decoders.constrained.closing import UNREACHABLE
from plait.decoders.constrained.grammar import gbnf, json_text, regex
from plait.decoders.constrained.grammar.check import left_recursion, prune
from plait.decoders.constrained.grammar.for_matcher import for_matcher
from plait.decoders.constrained.grammar.json_text import json_rules
from plait.decoders.constrained.grammar.nodes import Chars, Grammar, Text, choice
from plait.decoders.constrained.grammar.regex_parser import RegexError, parse_whole
from plait.decoders.constrained.load import compile_for_matcher
from plait.decoders.constrained.program import TooLong
from plait.decoders.constrained.schema.lower import schema_grammar
from plait.decoders.constrained.schema.strict import check_strict
from plait.decoders.constrained.spec import (
    Compiled,
    ConstraintError,
    ConstraintKind,
    ConstraintLimits,
    ConstraintSpec,
    parse_json,
)
from plait.decoders.constrained.vocabulary import Vocabulary

MAX_CHOICES = 10_000
MAX_STATES = 4000  # of a regular expression that looks around


def compile_constraint(
    spec: ConstraintSpec, vocabulary: Vocabulary, limits: ConstraintLimits
) -> Compiled:
    """Return the constraint in a form that a worker loads (load.ConstraintLoader).

    Law: nothing outside the constraint is ever legal, or this raises ("sound or loud").

    Raises:
        ConstraintError: malformed, unsupported (UnsupportedKeyword), unsatisfiable or too large.
    Cost: milliseconds for usual schemas, without bound for hostile ones: call it where it can be
        killed.
    """
    grammar = lower(spec, limits)
    text = str(grammar)
    try:
        shortest = Automaton(grammar, vocabulary).start.closing.tokens
    except TooLong as error:
        raise ConstraintError(f"{spec.kind}: {error}") from None
    if shortest >= UNREACHABLE:
        raise ConstraintError("the model's vocabulary cannot spell any complete answer")
    matched = str(for_matcher(grammar))
    # Only to learn whether it can be done in time: xgrammar's own serialised form is up to 4,000
    # times as long as the grammar, and slower to read than to compute again.
    compile_for_matcher(matched, vocabulary)
    return Compiled(matched.encode(), text, shortest)


def lower(spec: ConstraintSpec, limits: ConstraintLimits) -> Grammar:
    """Return the pruned grammar of a constraint.

    Raises:
        ConstraintError: as compile_constraint.
    """
    if len(spec.text.encode()) > limits.max_bytes:
        raise ConstraintError(f"{spec.kind} is larger than {limits.max_bytes} bytes")
    whole = _LOWER[spec.kind](spec, limits)
    grammar = prune(whole)
    if grammar is None and whole.blame is not None:
        raise whole.blame()
    if grammar is None:
        raise ConstraintError(f"{spec.kind}: no answer can satisfy it")
    if len(grammar.rules) > limits.max_rules:
        raise ConstraintError(f"{spec.kind}: it needs more than {limits.max_rules} grammar rules")
    return grammar


def _json_object(_: ConstraintSpec, limits: ConstraintLimits) -> Grammar:
    return Grammar({"root": json_text.OBJECT, **json_rules(limits.max_whitespace)})


def _json_schema(spec: ConstraintSpec, limits: ConstraintLimits) -> Grammar:
    schema = parse_json(spec)
    if spec.strict:
        check_strict(schema)
    return schema_grammar(schema, limits)


def _regex(spec: ConstraintSpec, _: ConstraintLimits) -> Grammar:
    try:
        expr = parse_whole(spec.text)
    except RegexError as error:
        raise ConstraintError(str(error)) from None
    if expr.is_plain:
        return Grammar({"root": regex.structure(expr, Chars)})
    try:
        root, rules = regex.automaton(expr, Chars, "t", max_states=MAX_STATES)
    except regex.TooManyStates:
        raise ConstraintError(f"regex: it needs more than {MAX_STATES} states") from None
    return Grammar({"root": root, **rules})


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
    return Grammar({"root": choice([Text(c) for c in choices])})


def _is_text(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


_LOWER: Mapping[ConstraintKind, Callable[[ConstraintSpec, ConstraintLimits], Grammar]] = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _regex,
    "grammar": _grammar,
    "choice": _choice,
}
