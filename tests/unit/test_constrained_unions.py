"""Random unions of values, types and objects against a validator."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import pytest

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.spec import ConstraintError, ConstraintLimits, ConstraintSpec
from tests.fixtures.constraint_vocabularies import automaton_of, matches

Schema = dict[str, Any]

SIMPLE: list[Any] = [0, 1, 2, 1.0, 2.5, True, False, None, "a", "b", "ab", [], [1], [True], {}]
OBJECTS: list[Any] = [{"t": value} for value in (1, 1.0, True, "a", "b")]
OBJECTS += [{"t": "a", "n": 1}, {"t": "b", "n": 1}, {"t": "a", "n": "x"}, {"t": 1, "n": 2}]
OBJECTS += [{"n": 1}, {"t": "a", "n": 1, "m": 0}, {"u": "a"}, {"t": "b", "u": None}]
TYPES = ["string", "integer", "number", "null", "boolean", "object", "array"]
TAGS: list[Schema] = [{"const": tag} for tag in ("a", "b", 1, True)]
TAGS += [{"enum": ["a", 1.0]}, {"enum": ["b", True]}, {"type": "string"}]
TAGS += [{"anyOf": [{"const": "a"}, {"const": 1}]}]


def _leaf(draw: random.Random) -> Schema:
    listed = draw.sample([*SIMPLE, *OBJECTS], draw.randrange(1, 5))
    either: list[Schema] = [{"const": draw.choice(SIMPLE)}, {"enum": listed}, {"minimum": 1}, {}]
    either += [{"type": draw.choice(TYPES)}, {"type": "string", "maxLength": 1}]
    either += [{"type": ["string", "null"], "enum": ["a", None, 3]}]
    return draw.choice(either)


def _object(draw: random.Random) -> Schema:
    schema: Schema = {
        "properties": {"t": draw.choice(TAGS), "n": draw.choice([{"type": "integer"}, True])},
        "required": draw.choice([["t"], ["t", "n"], []]),
    }
    if draw.random() < 0.7:
        schema["type"] = draw.choice(["object", ["object", "null"]])
    if draw.random() < 0.5:
        schema["additionalProperties"] = False
    return schema


def _branch(draw: random.Random, depth: int) -> Schema:
    pick = draw.random()
    if pick < 0.2 and depth:
        return _union(draw, depth - 1)
    return _leaf(draw) if pick < 0.6 else _object(draw)


def _union(draw: random.Random, depth: int) -> Schema:
    branches = [_branch(draw, depth) for _ in range(draw.randrange(1, 7))]
    schema: Schema = {draw.choice(["oneOf", "anyOf"]): branches}
    if draw.random() < 0.15:
        schema["type"] = draw.choice(["object", "string", ["object", "integer"]])
    if draw.random() < 0.1:
        schema["not"] = _leaf(draw)
    return schema


@pytest.mark.parametrize("seed", range(4))
def test_a_union_accepts_nothing_that_a_validator_refuses(seed: int) -> None:
    draw = random.Random(seed)
    judged = accepted = valid = 0
    for _ in range(250):
        schema = _union(draw, 2)
        spec = ConstraintSpec("json_schema", json.dumps(schema))
        try:
            automaton = automaton_of(lower(spec, ConstraintLimits()))
        except ConstraintError:
            continue
        validator = jsonschema_rs.validator_for(schema)
        for value in [*SIMPLE, *OBJECTS]:
            text = json.dumps(value, separators=(",", ":")).encode()
            is_accepted, is_valid = matches(automaton, text), validator.is_valid(value)
            assert is_valid or not is_accepted, (schema, value)
            accepted, valid = accepted + is_accepted, valid + is_valid
        judged += 1

    assert judged > 120
    assert accepted > valid / 2
