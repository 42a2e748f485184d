"""Masks that are put together from what other grammars have found out, against whole walks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.grammar.nodes import CharClass, Grammar
from plait.decoders.constrained.grammar.regex import structure
from plait.decoders.constrained.grammar.regex_parser import parse_full_match
from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec, JsonStyle
from plait.decoders.constrained.table import build_table, load_automaton
from plait.decoders.constrained.vocabulary import Vocabulary, make_vocabulary
from plait.kernels.grammar import DEAD, Automaton, extension_or_none, make_automaton
from tests.fixtures.grammar_automata import compiled

pytestmark = compiled
WORDS = (b"name", b"tags", b"ab", b"abc", b"true", b"12", b"0.5", "é".encode(), b"\xe2\x82")
SIGNS = (b'"', b'":', b'",', b'"}', b'": "', b'", "', b"\\", b"\\u", b"00", b"  ", b"\n    ", b"}}")
PIECES = [*WORDS, *SIGNS, *(sign + word for sign in SIGNS for word in WORDS)]
PIECES += [word + sign for sign in SIGNS for word in WORDS]
TOKENS = [*(bytes([byte]) for byte in range(256)), *PIECES, b"name", b""]  # a twin, and the end
VALUES: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "maxLength": 3},
    {"type": "string", "minLength": 2, "maxLength": 40},
    {"type": "string", "pattern": "^[a-z]+(12|tags)?$"},
    {"type": "string", "pattern": "b", "maxLength": 4},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uri"},
    {"type": "string", "minLength": 3},
    {"type": "number"},
    {"type": "integer", "minimum": 3, "maximum": 120},
    {"type": ["string", "integer"]},
    {"enum": ["ab", "abc", 12]},
    {"type": "object", "properties": {"name": {}}, "additionalProperties": {"type": "string"}},
    {"type": "object", "propertyNames": {"pattern": "^a"}, "additionalProperties": True},
    {"type": "array", "items": {"type": "string"}, "maxItems": 2},
]


def _schemas(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Yield objects with a few of the values under names that share their beginnings."""
    while True:
        names = draw.sample(["name", "names", "tags", "ab", "abc", "é"], 3)
        schema: dict[str, Any] = {"type": "object"}
        schema["properties"] = {name: draw.choice(VALUES) for name in names}
        schema["required"] = names[: draw.randrange(3)]
        if draw.randrange(2):
            schema["additionalProperties"] = draw.choice(VALUES)
        yield schema


def _automaton(schema: dict[str, Any], style: JsonStyle, vocabulary: Vocabulary) -> Automaton:
    spec = ConstraintSpec("json_schema", json.dumps(schema), style=style)
    return load_automaton(build_table(lower(spec, ConstraintLimits())), vocabulary)


def _mask(automaton: Automaton, state: int) -> list[int]:
    row = np.zeros(-(-len(TOKENS) // 32), np.int32)
    automaton.write_mask(state, row)
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()


@pytest.mark.parametrize("shared_bytes", [300_000, 32 * 2**20], ids=["begun anew", "kept"])
@pytest.mark.parametrize("style", [JsonStyle(), JsonStyle("any", "open", "any", "any")])
def test_masks_do_not_depend_on_other_grammars(style: JsonStyle, shared_bytes: int) -> None:
    draw = random.Random(16)
    alone = replace(make_vocabulary(TOKENS, [len(TOKENS) - 1]), shared_bytes=0)
    shared = replace(alone, shared_bytes=shared_bytes)
    num_wide = 0
    for schema, _ in zip(_schemas(draw), range(40), strict=False):
        own, other = (_automaton(schema, style, each) for each in (alone, shared))
        num_wide += sum(_count_wide(own, other, draw) for _ in range(6))
    assert num_wide > 300  # inside strings


def _count_wide(own: Automaton, other: Automaton, draw: random.Random) -> int:
    """Write a text with both automata; return how many of their masks, which agree, are large."""
    at, beside = own.start, other.start
    num_wide = 0
    for _ in range(25):
        legal = _mask(own, at)
        assert _mask(other, beside) == legal
        num_wide += len(legal) > 200
        if not legal:
            break
        token = draw.choice(legal)
        at, beside = own.advance(at, token), other.advance(beside, token)
        assert DEAD not in (at, beside)
    return num_wide


WIDE = ["[ -!#-z]", "[!#-é]", '[^a"]']
CLASSES = [*WIDE, *WIDE, "[a-z]", "[ab]", "a", "ab", "name", "é", "(ab|b)", "(a|ab)", "(a|aa)"]
LOOPS = ["{2,4}", "{0,2}", "{3,}", "{1,30}", "{0,1}", "*", "+", ""]


def _pattern(draw: random.Random, depth: int) -> str:
    """Return loops in loops; some can be read in several ways, within and at their ends."""
    parts = []
    for _ in range(draw.randrange(1, 4)):
        is_leaf = depth == 0 or draw.randrange(2)
        item = draw.choice(CLASSES) if is_leaf else f"({_pattern(draw, depth - 1)})"
        loop = draw.choice(LOOPS)
        parts.append(f"({item}){loop}" if loop else item)
    return draw.choice(["", "|"]).join(parts)


def test_bounds_of_loops_are_met_by_what_was_found_without_them() -> None:
    draw = random.Random(15)
    alone = replace(make_vocabulary(TOKENS, [len(TOKENS) - 1]), shared_bytes=0)
    shared = replace(alone, shared_bytes=32 * 2**20)
    num_wide = 0
    for _ in range(150):
        text = f'"({_pattern(draw, 2)})"(, "[ -!#-z]{{1,5}}")?'
        table = build_table(Grammar({"root": structure(parse_full_match(text), CharClass)}))
        own, other = (load_automaton(table, each) for each in (alone, shared))
        num_wide += sum(_count_wide(own, other, draw) for _ in range(4))
    assert num_wide > 100


def test_what_stands_deep_in_one_place_is_kept_where_it_does_not() -> None:
    short: dict[str, Any] = {"type": "string", "maxLength": 7}
    deep = short
    for _ in range(10):
        deep = {"type": "object", "properties": {"ab": deep}}
    properties = {"name": {"type": "string"}, "tags": deep, "true": short}
    spec = ConstraintSpec("json_schema", json.dumps({"type": "object", "properties": properties}))
    table = build_table(lower(spec, ConstraintLimits()))
    handle = extension_or_none().Vocabulary(TOKENS[:-1], 32 * 2**20)
    automaton = make_automaton(table.operations, table.dfas, table.root, handle)
    for text in (b'{"name":"', b'{"true":"'):
        state = automaton.start
        for byte in text:
            _mask(automaton, state)  # what may follow leads deep into the grammar
            state = automaton.step(state, byte)
        before = handle.num_shared_bytes
        _mask(automaton, state)
        assert handle.num_shared_bytes > before


def test_what_is_kept_is_bounded() -> None:
    limit = 20_000
    bounded, free = _most_kept(limit), _most_kept(32 * 2**20)

    assert bounded < 2 * limit < free


def _most_kept(shared_bytes: int) -> int:
    """Return how many bytes were kept at most while strings of many patterns were walked."""
    handle = extension_or_none().Vocabulary(TOKENS[:-1], shared_bytes)
    found = []
    for count in range(40):
        spec = ConstraintSpec("regex", f'"([!#-Z]{{{count}}}x|[ -z]*)"')
        table = build_table(lower(spec, ConstraintLimits()))
        automaton = make_automaton(table.operations, table.dfas, table.root, handle)
        state = automaton.start
        for byte in b'"' + b"A" * count:
            state = automaton.step(state, byte)
            _mask(automaton, state)
            found.append(handle.num_shared_bytes)
    return max(map(int, found))
