"""Constraint specifications, their limits and errors. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from math import isfinite
from typing import Any, Literal

ConstraintKind = Literal["json_object", "json_schema", "regex", "grammar", "choice"]
Whitespace = Literal["pretty", "compact", "spaced", "any"]
Objects = Literal["closed", "open"]
KeyOrder = Literal["schema", "any"]
Untyped = Literal["described", "any"]
Formats = Literal["assert", "standard", "annotate"]
Numbers = Literal["plain", "decimals", "any"]  # where zeros may end a number
SCOPE_MARK = "@"  # in front of a place that is read in a dynamic scope
VALUE_MARK = "="  # in front of one where a given value alone is valid
_LOWERING = 4  # counts changes of what a constraint means; part of every content key


class ConstraintError(ValueError):
    """The constraint is malformed or too large; the message can be shown to the client."""


class NoDistinctText(ConstraintError):
    """No text is known whose members differ where they must."""


def plain_pointer(place: str) -> str:
    """Return a place's JSON pointer, without what a schema's Document writes in front of it."""
    return place[place.find("/") :] if "/" in place else ""


class UnsupportedKeyword(ConstraintError):
    """A JSON schema uses a keyword that cannot be enforced exactly by masks."""

    def __init__(self, pointer: str, keyword: str, reason: str) -> None:
        pointer = plain_pointer(pointer)
        super().__init__(f"{pointer or '/'}: keyword '{keyword}': {reason}")
        self.pointer = pointer
        self.keyword = keyword
        self.reason = reason


class Unsatisfiable(ConstraintError):
    """No answer can satisfy a JSON schema; the pointer is the deepest place that makes it so."""

    def __init__(self, pointer: str, keyword: str, reason: str) -> None:
        pointer = plain_pointer(pointer)
        where = f"{pointer or '/'}: keyword '{keyword}'" if keyword else pointer or "/"
        super().__init__(f"{where}: no answer can satisfy it: {reason}")
        self.pointer = pointer
        self.keyword = keyword


@dataclass(frozen=True, slots=True)
class JsonStyle:
    """How JSON is written where its schema leaves that open; None: the first of the choices.

    whitespace: "pretty": as pretty printers do, as far as the limits allow; "compact": none;
    "spaced": one blank after each comma and colon; "any": around every token.
    objects: whether an object may have properties that its schema does not name, where that says
    nothing of them.
    key_order: whether an object's properties come in the order of its schema.
    untyped: whether a schema without `type` is meant of the types that its keywords speak of, or,
    as the standard has it, of all.
    formats: which are enforced: all that are known, JSON Schema's own, or none, as the standard has
    it by default. The others say nothing.
    numbers: whether a number may have zeros at its end, 1.0 being an integer that equals the const
    1, and an exponent where bounds are given; "decimals": no zeros where an integer is asked for,
    as draft 4 has it.
    """

    whitespace: Whitespace | None = None
    objects: Objects | None = None
    key_order: KeyOrder | None = None
    untyped: Untyped | None = None
    formats: Formats | None = None
    numbers: Numbers | None = None

    def over(self, defaults: JsonStyle) -> JsonStyle:
        """Return this style, with the defaults where it says nothing."""
        said = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(defaults, **said)


PRETTY = JsonStyle()


@dataclass(frozen=True, slots=True)
class ConstraintSpec:
    """A constraint as text.

    text: the JSON schema, the regular expression, the GBNF grammar, or the JSON list of choices;
    "" for json_object. `strict` asks for OpenAI's strict subset of JSON schema. `style`: of JSON.
    """

    kind: ConstraintKind
    text: str
    strict: bool = False
    style: JsonStyle = PRETTY


@dataclass(frozen=True, slots=True)
class ConstraintLimits:
    """Limits of a constraint, and how much whitespace JSON may have."""

    max_bytes: int = 256 * 2**10
    max_depth: int = 64
    max_whitespace: int = 4  # between two JSON tokens, or an indented line; 0: compact JSON
    max_rules: int = 20_000


@dataclass(frozen=True, slots=True)
class AllowedTokens:
    """The tokens of the vocabulary that a constrained text may use."""

    only: frozenset[int] = frozenset()  # empty: all
    without: frozenset[int] = frozenset()

    def __contains__(self, token_id: int) -> bool:
        return token_id not in self.without and (not self.only or token_id in self.only)


ALL_TOKENS = AllowedTokens()


@dataclass(frozen=True, slots=True)
class CompiledTable:
    """A compiled constraint, serialised for the worker."""

    table: bytes  # of the operations that an automaton is made of; see table.py
    min_tokens: int  # tokens of the shortest complete answer
    checked: tuple[str, ...] = ()  # keywords of a schema that a check enforces, by their pointers
    ignored: tuple[str, ...] = ()  # formats that assert nothing


def canonical(spec: ConstraintSpec) -> ConstraintSpec:
    """Return the spec with its JSON in one spelling. Order of keys stays: it is the output order.

    Raises:
        ConstraintError: the text is not JSON where it must be.
    """
    if spec.kind not in ("json_schema", "choice"):
        return spec
    parsed = parse_json(spec)
    text = json.dumps(parsed, ensure_ascii=False, separators=(",", ":"))
    return replace(spec, text=text)


def parse_json(spec: ConstraintSpec) -> Any:
    """Return the JSON that the spec's text holds.

    Raises:
        ConstraintError: it is not JSON (NaN and Infinity are not).
    """
    try:
        return json.loads(spec.text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"{spec.kind} is not valid JSON: {error}") from None


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def vocabulary_fingerprint(token_bytes: Sequence[bytes], eos_token_ids: Iterable[int]) -> str:
    """Return a hash of what the tokens spell; compiled grammars are shared where it is equal."""
    digest = hashlib.blake2b(digest_size=16)
    for token in token_bytes:
        digest.update(len(token).to_bytes(4, "little"))
        digest.update(token)
    digest.update(repr(sorted(eos_token_ids)).encode())
    return digest.hexdigest()


def content_key(spec: ConstraintSpec, limits: ConstraintLimits, fingerprint: str) -> str:
    """Return the content hash under which a compiled constraint is cached."""
    parts = (
        spec.kind,
        spec.text,
        spec.strict,
        astuple(spec.style),
        astuple(limits),
        fingerprint,
        _LOWERING,
    )
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
