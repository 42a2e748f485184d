"""Items and keys that must differ: what is accepted, and that no text comes to a dead end."""

from __future__ import annotations

import json
import random
from itertools import product
from typing import Any

import jsonschema_rs
import pytest
import torch

from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.distinct import DistinctConstraint
from plait.decoders.constrained.load import ConstraintLoader
from plait.decoders.constrained.matcher import GrammarConstraint
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    JsonStyle,
)
from plait.decoders.contract.constraint import is_exact
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, byte_tokens, spell

COMPACT = JsonStyle(whitespace="compact", untyped="any", numbers="any")
OPEN = JsonStyle(whitespace="compact", objects="open", key_order="any")
Loaded = GrammarConstraint | DistinctConstraint


def _load(schema: Any, style: JsonStyle = COMPACT) -> Loaded:
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=style)
    done = compile_constraint(spec, BYTES_AND_PIECES, ConstraintLimits())
    return ConstraintLoader(BYTES_AND_PIECES).load("", done.table)


def _accepts(start: Loaded, text: str) -> bool:
    constraint = start.fork()
    return all(map(constraint.accept_token, byte_tokens(text))) and constraint.is_accepting()


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


UNIQUE = {"type": "array", "uniqueItems": True}
VALUES: list[Any] = [0, 1, 1.0, False, True, "1", "", None, [1], [True], {"a": 1, "b": 2}]
VALUES += [{"b": 2, "a": 1}, {"a": [0, False]}]


@pytest.mark.parametrize(
    "schema",
    [
        UNIQUE,
        {"uniqueItems": True},
        {**UNIQUE, "minItems": 2},
        {**UNIQUE, "contains": {"type": "integer"}},
        {**UNIQUE, "prefixItems": [True, {"type": ["integer", "boolean", "null"]}]},
        {"anyOf": [{**UNIQUE, "items": {"type": ["array", "object"]}}, {"type": "string"}]},
        {"type": "array", "items": {**UNIQUE, "items": True}},
    ],
    ids=json.dumps,
)
def test_an_array_is_accepted_if_it_is_valid(schema: Any) -> None:
    start = _load(schema)
    validator = jsonschema_rs.validator_for(schema)
    arrays = [list(row) for n in range(3) for row in product(VALUES, repeat=n)]
    arrays += [[a, b] for a, b in product([[1, 1], [1, True], ["a", "b", "a"]], VALUES)]

    assert [a for a in arrays if _accepts(start, _text(a)) != validator.is_valid(a)] == []


def test_items_of_a_few_values_are_told_apart_by_the_grammar() -> None:
    schema = {**UNIQUE, "items": {"enum": ["a", "ab", 1, {"c": 2}]}, "minItems": 2, "maxItems": 3}
    start = _load(schema)
    validator = jsonschema_rs.validator_for(schema)
    arrays = [list(row) for n in range(5) for row in product(["a", "ab", 1, {"c": 2}], repeat=n)]

    assert is_exact(start)
    assert [a for a in arrays if _accepts(start, _text(a)) != validator.is_valid(a)] == []
    with pytest.raises(ConstraintError, match="no answer can satisfy it"):
        _load({**UNIQUE, "items": {"enum": [1, 2]}, "minItems": 3})


def test_undeclared_keys_differ_where_objects_are_open() -> None:
    start = _load({"type": "object", "properties": {"a": True}, "minProperties": 3}, OPEN)

    assert not is_exact(start)
    for text in (
        '{"x":1,"a":1,"y":1}',
        '{"x":{"x":1,"y":[1,1]},"y":1,"z":1}',
        r'{"\"":1,"":2,"a":3}',
    ):
        assert _accepts(start, text), text
    for text in ('{"x":1,"x":1,"y":1}', '{"x":1,"a":1,"x":1}', '{"a":1,"x":1}'):
        assert not _accepts(start, text), text


def test_undeclared_properties_are_counted() -> None:
    start = _load({"type": "object", "minProperties": 3, "additionalProperties": {"type": "null"}})

    assert _accepts(start, '{"a":null,"b":null,"c":null}')
    assert not _accepts(start, '{"a":null,"b":null,"a":null}')
    assert not _accepts(start, '{"a":null,"b":null}')


WALKED: dict[str, tuple[Any, JsonStyle]] = {
    "any items": (UNIQUE, COMPACT),
    "integers": ({**UNIQUE, "items": {"type": "integer"}, "minItems": 4}, COMPACT),
    "few integers": (
        {**UNIQUE, "items": {"type": "integer", "minimum": 1, "maximum": 9}, "minItems": 5},
        COMPACT,
    ),
    "short strings": (
        {**UNIQUE, "items": {"type": "string", "maxLength": 1}, "minItems": 12},
        COMPACT,
    ),
    "objects": (
        {
            **UNIQUE,
            "minItems": 3,
            "items": {
                "type": "object",
                "properties": {"a": {"type": "boolean"}, "b": {"type": "string"}},
                "required": ["a", "b"],
            },
        },
        COMPACT,
    ),
    "open": ({"type": "object", "properties": {"ab": True}, "minProperties": 4}, OPEN),
    "nested": ({"type": "array", "minItems": 2, "items": {**UNIQUE, "minItems": 2}}, COMPACT),
}


@pytest.mark.parametrize(("schema", "style"), WALKED.values(), ids=WALKED.keys())
def test_a_random_walk_never_comes_to_a_dead_end(schema: Any, style: JsonStyle) -> None:
    draw = random.Random(json.dumps(schema))
    start = _load(schema, style)
    validator = jsonschema_rs.validator_for(schema)
    for _ in range(6):
        text = _walk(start.fork(), draw)
        pairs: list[list[tuple[str, Any]]] = []
        json.loads(text, object_pairs_hook=pairs.append)

        assert validator.is_valid(json.loads(text)), text
        assert all(len(dict(found)) == len(found) for found in pairs), text


def _walk(constraint: Loaded, draw: random.Random) -> bytes:
    """Return the text of a random walk, whose end is what closing_tokens say."""
    taken: list[int] = []
    for _ in range(draw.randrange(40)):
        _check_end(constraint)
        token = _accepted(constraint, draw)
        if token == EOS:
            break
        taken.append(token)
    end = list(constraint.closing_tokens())
    assert all(map(constraint.accept_token, end))
    assert constraint.is_accepting()
    return spell(taken + end)


def _check_end(constraint: Loaded) -> None:
    """The end is accepted, token by token, and gets shorter; afterwards all is as before."""
    end = list(constraint.closing_tokens())
    before = constraint.min_tokens()
    assert before == len(end)
    for index, token in enumerate(end):
        assert constraint.accept_token(token)
        assert constraint.min_tokens() <= before - index - 1
    assert constraint.is_accepting()
    constraint.rollback(len(end))
    assert list(constraint.closing_tokens()) == end


def _accepted(constraint: Loaded, draw: random.Random) -> int:
    """Take a random token whose bit is set and that is accepted; there is one."""
    bitmask = torch.full((1, 9), -1, dtype=torch.int32)
    constraint.fill_bitmask(bitmask, 0)
    bits = [word & 0xFFFFFFFF for word in bitmask[0].tolist()]
    legal = [32 * i + b for i, word in enumerate(bits) for b in range(32) if word >> b & 1]
    likely = [t for t in legal if t != EOS and spell([t])[:1] in (b'"', b",", b"0", b"a", b":")]
    for token in [*draw.sample(likely, len(likely)), *draw.sample(legal, len(legal))]:
        if constraint.accept_token(token):
            return token
    raise AssertionError("a dead end")


def test_what_was_rolled_back_and_forked_is_independent() -> None:
    start = _load(UNIQUE)
    constraint = start.fork()
    for token in byte_tokens('["a","b'):
        assert constraint.accept_token(token)
    twin = constraint.fork()
    constraint.rollback(2)
    for token in byte_tokens('"c","b"]'):
        assert constraint.accept_token(token)

    assert constraint.is_accepting()
    assert twin.accept_token(ord('"'))
    assert all(map(twin.accept_token, byte_tokens(',"c"]')))
    assert not _accepts(start, '["a","b","b"]')


def test_a_prefill_is_read_as_well() -> None:
    constraint = _load(UNIQUE)

    assert constraint.accept_text(b'["a","b",')
    assert not all(map(constraint.fork().accept_token, byte_tokens('"a"')))
    assert all(map(constraint.fork().accept_token, byte_tokens('"c"]')))
    assert not _load(UNIQUE).accept_text(b'["a","a"')


def test_a_form_of_which_no_text_is_found_is_refused() -> None:
    with pytest.raises(ConstraintError, match="differ as uniqueItems asks"):
        _load({**UNIQUE, "items": {"type": "integer", "minimum": 1, "maximum": 3}, "minItems": 4})
