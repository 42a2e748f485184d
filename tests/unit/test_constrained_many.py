"""Schemas with many values, branches or properties: work and rules grow linearly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.grammar import check
from plait.decoders.constrained.grammar.nodes import Grammar, Node, Ref, walk
from plait.decoders.constrained.schema.facts import json_key
from plait.decoders.constrained.schema.sets.algebra import Algebra
from plait.decoders.constrained.spec import (
    ConstraintLimits,
    ConstraintSpec,
    UnsupportedKeyword,
)
from tests.fixtures.constraint_vocabularies import automaton_of, matches

LIMITS = ConstraintLimits(max_bytes=2**24)
Schema = dict[str, Any]


def _lower(schema: Schema) -> Grammar:
    return lower(ConstraintSpec("json_schema", json.dumps(schema)), LIMITS)


def _judge(schema: Schema) -> Callable[[Any], bool]:
    """Return whether the schema's grammar accepts a value, written compactly."""
    automaton = automaton_of(_lower(schema))
    return lambda value: matches(automaton, json.dumps(value, separators=(",", ":")).encode())


def _size(grammar: Grammar) -> int:
    return sum(1 for node in grammar.rules.values() for _ in walk(node))


def _branch(number: int, **more: Any) -> Schema:
    return {
        "properties": {"kind": {"const": f"kind {number}"}, "size": {"type": "integer"}, **more},
        "required": ["size", "kind"],
        "additionalProperties": False,
    }


def _enum(count: int) -> Schema:
    return {"enum": [*range(count), *map(str, range(count)), True, False, None, [1], {"a": 1}]}


def _typed_enum(count: int) -> Schema:
    return {"type": "string", "maxLength": 9, "enum": [f"v{i}" for i in range(count)]}


def _consts(count: int) -> Schema:
    return {"oneOf": [{"const": f"c{i}", "title": f"No. {i}"} for i in range(count)]}


def _any_consts(count: int) -> Schema:
    return {"anyOf": [{"enum": [i, str(i)]} for i in range(count)]}


def _discriminated(count: int) -> Schema:
    return {"type": "object", "oneOf": [_branch(i) for i in range(count)]}


def _untyped(count: int) -> Schema:
    return {"oneOf": [_branch(i) for i in range(count)]}


def _referenced(count: int) -> Schema:
    branches = {f"b{i}": {"type": "object", **_branch(i)} for i in range(count)}
    return {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in branches], "$defs": branches}


def _mixed(count: int) -> Schema:
    listed = [{"enum": [[i], 2 * i]} for i in range(count)]
    return {"oneOf": [*listed, *(_branch(i) for i in range(count)), {"type": "string"}]}


def _optional(count: int) -> Schema:
    return {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(count)}}


def _required(count: int) -> Schema:
    schema = _optional(count)
    return {**schema, "required": list(schema["properties"]), "additionalProperties": False}


def _at_least_one(count: int) -> Schema:
    return {**_optional(count), "minProperties": 1}


MANY = [_enum, _typed_enum, _consts, _any_consts, _discriminated, _untyped, _referenced, _mixed]
MANY += [_optional, _required, _at_least_one]


@pytest.mark.parametrize("make", MANY)
def test_a_grammar_grows_with_its_schema_and_no_faster(make: Callable[[int], Schema]) -> None:
    small, large = _lower(make(500)), _lower(make(1000))

    assert _size(large) <= 2 * _size(small)
    assert len(large.rules) <= 2 * len(small.rules)


@pytest.mark.parametrize("make", MANY)
def test_questions_grow_with_the_schema_and_no_faster(
    make: Callable[[int], Schema], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is quadratic asks whether values are equal, admitted, or there at all."""
    asked = 0

    def counted(asking: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*args: Any) -> Any:
            nonlocal asked
            asked += 1
            return asking(*args)

        return ask

    for module in ("facts", "sets.algebra", "sets.branches"):
        monkeypatch.setattr(
            f"plait.decoders.constrained.schema.{module}.json_key", counted(json_key)
        )
    for name in ("admits", "is_empty", "exclude", "values"):
        monkeypatch.setattr(Algebra, name, counted(getattr(Algebra, name)))
    counts = []
    for size in (200, 400):
        asked = 0
        _lower(make(size))
        counts.append(asked)

    assert counts[1] <= 2 * counts[0] + 20


@pytest.mark.parametrize("make", MANY)
def test_pruning_looks_at_each_rule_once(
    make: Callable[[int], Schema], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    refs, is_productive = check._refs, check._is_productive

    def counted_refs(node: Node) -> Any:
        nonlocal looks
        looks += 1
        return refs(node)

    def counted_is_productive(node: Node, known: set[str]) -> bool:
        nonlocal looks
        looks += any(isinstance(part, Ref) for part in walk(node))
        return is_productive(node, known)

    monkeypatch.setattr(check, "_refs", counted_refs)
    monkeypatch.setattr(check, "_is_productive", counted_is_productive)

    grammar = _lower(make(100))

    assert looks <= len(grammar.rules) + 2  # any JSON value is recursive


def test_places_that_refer_to_the_same_schema_share_its_rules() -> None:
    target = {"$ref": "#/$defs/more", "description": "the same thing"}
    members = {f"p{i}": {"type": "array", "items": {"type": "null"}} for i in range(50)}
    grammar = _lower(
        {
            "type": "object",
            "properties": {f"q{i}": target for i in range(100)},
            "required": [f"q{i}" for i in range(100)],
            "$defs": {"more": {"$ref": "#/$defs/all"}, "all": {"properties": members}},
        }
    )

    assert len(grammar.rules) < 2 * 50 + 50 + 50 + 20


def test_values_of_many_branches_are_one_list() -> None:
    one_of = _judge({"oneOf": [*({"const": i} for i in range(300)), {"enum": [7.0, True, "7"]}]})
    any_of = _judge({"anyOf": [{"const": 1}, {"const": True}, {"enum": [[1], {"a": 0}]}]})

    assert [v for v in (0, 6, 8, 299, True, "7") if not one_of(v)] == []
    assert [v for v in (7, 300, False, 1.5, "8") if one_of(v)] == []
    assert [v for v in (1, True, [1], {"a": 0}) if not any_of(v)] == []
    assert [v for v in ([True], {"a": False}, 0) if any_of(v)] == []


def test_one_of_counts_values_of_lists_and_of_other_branches() -> None:
    accepts = _judge({"oneOf": [{"const": 3}, {"const": "ab"}, {"enum": [4, 5]}, {"minimum": 4.5}]})

    assert [v for v in (3, 4, 6) if not accepts(v)] == []
    assert [v for v in (5, "ab", 4.2) if accepts(v)] == []


def test_branches_are_told_apart_by_a_property_that_all_require() -> None:
    accepts = _judge({"type": "object", "oneOf": [_branch(i) for i in range(200)]})

    assert accepts({"kind": "kind 0", "size": 1})
    assert accepts({"kind": "kind 199", "size": 2})
    assert not accepts({"kind": "kind 200", "size": 1})
    assert not accepts({"kind": "kind 7"})


def test_branches_that_share_a_value_of_the_discriminator_exclude_each_other() -> None:
    twice = [_branch(1, x={"type": "null"}), _branch(1, y={"type": "null"})]
    for branch in twice:
        del branch["additionalProperties"]
    twice[1]["required"].append("y")
    accepts = _judge({"type": "object", "oneOf": [_branch(0), *twice, _branch(2)]})

    assert accepts({"kind": "kind 0", "size": 1})
    assert accepts({"kind": "kind 2", "size": 1})
    assert accepts({"kind": "kind 1", "size": 1, "x": None})
    assert not accepts({"kind": "kind 1", "size": 1, "y": None})  # valid under both


def test_a_kind_that_two_branches_leave_free_is_in_none_of_one_of() -> None:
    accepts = _judge({"oneOf": [{"maxLength": 3, "type": ["string", "integer"]}, {"minLength": 2}]})

    assert accepts("a") and accepts("abcd") and accepts(None) and accepts(1.5)
    assert not accepts("ab") and not accepts(1)


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        (
            {"allOf": [{"anyOf": [{"pattern": f"{a}{b}"} for b in "xyzuvw"]} for a in "abcdefgh"]},
            "allOf",
        ),
        ({"oneOf": [{"pattern": f"^a{i}$", "type": "string"} for i in range(999)]}, "oneOf"),
        ({"anyOf": [{"minLength": i} for i in range(5000)]}, "anyOf"),
        (
            {"not": {"anyOf": [{"required": [f"a{i}", f"b{i}", f"c{i}"]} for i in range(99)]}},
            "not",
        ),
    ],
)
def test_what_multiplies_is_bounded(schema: Schema, keyword: str) -> None:
    with pytest.raises(UnsupportedKeyword, match="spreads out into more than") as have:
        _lower(schema)

    assert have.value.keyword == keyword


def _open_branches(count: int) -> Schema:
    """Return a schema with so many places where branches overlap."""
    branches = [{"properties": {f"p{i}": {"type": "integer"}, "q": {}}} for i in range(3)]
    return {"properties": {f"k{n}": {"oneOf": branches} for n in range(count)}}


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("schema.sets.algebra.MAX_QUESTIONS", "too many comparisons"),
        ("schema.alternatives.MAX_ALL_PAIRS", "combinations in all"),
    ],
)
def test_the_work_on_all_places_together_is_bounded(
    monkeypatch: pytest.MonkeyPatch, limit: str, message: str
) -> None:
    monkeypatch.setattr(f"plait.decoders.constrained.{limit}", 100)

    assert _lower(_open_branches(1)).rules
    with pytest.raises(UnsupportedKeyword, match=message) as have:
        _lower(_open_branches(40))
    assert have.value.keyword == "oneOf"


def test_too_many_counted_properties_are_said_by_number() -> None:
    with pytest.raises(UnsupportedKeyword, match="1800 properties are too many") as have:
        _lower({**_optional(1800), "maxProperties": 9})

    assert (have.value.pointer, have.value.keyword) == ("", "maxProperties")
    assert _lower({**_optional(1600), "maxProperties": 9}).rules


def test_a_bound_that_no_object_reaches_costs_nothing() -> None:
    bounded, unbounded = _lower({**_optional(3000), "maxProperties": 3000}), _lower(_optional(3000))

    assert len(bounded.rules) == len(unbounded.rules)
