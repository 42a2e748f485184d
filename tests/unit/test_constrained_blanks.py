"""Blanks between JSON tokens: what pretty printers write is allowed, and no run is endless."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.grammar.nodes import CharClass, walk
from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec
from plait.kernels.grammar import DEAD, Automaton
from tests.fixtures.constraint_vocabularies import automaton_of, matches
from tests.fixtures.constraint_vocabularies import walk as walk_text

Schema = dict[str, Any]
ANYTHING = ConstraintSpec("json_object", "")


def _spec(schema: Schema) -> ConstraintSpec:
    return ConstraintSpec("json_schema", json.dumps(schema))


def _automaton(spec: ConstraintSpec, max_whitespace: int) -> Automaton:
    return automaton_of(lower(spec, ConstraintLimits(max_whitespace=max_whitespace)))


def _fits(spec: ConstraintSpec, text: str, max_whitespace: int = 4) -> bool:
    """Tell whether an answer may begin so."""
    return walk_text(_automaton(spec, max_whitespace), text.encode()) != DEAD


def _accepts(spec: ConstraintSpec, text: str, max_whitespace: int = 4) -> bool:
    return matches(_automaton(spec, max_whitespace), text.encode())


def _nested(levels: int) -> tuple[Schema, Any]:
    """Return a schema whose values nest as deep as that, objects and arrays by turns, and one."""
    schema: Schema = {"type": "integer"}
    value: Any = 7
    for level in range(levels):
        if level % 2:
            schema, value = {"type": "array", "items": schema}, [value, value]
        else:
            properties = {"a": schema, "b": schema}
            schema = {"type": "object", "properties": properties, "required": ["a", "b"]}
            value = {"a": value, "b": value}
    return schema, value


TREE = {
    "type": "object",
    "properties": {"v": {"type": "null"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
}
DEEP: Schema = {"type": "null"}
for _ in range(30):
    DEEP = {"type": "array", "items": DEEP}
LITERAL = {"type": "array", "items": {"const": {"a": [{"b": [1, 2]}, []]}}}


@pytest.mark.parametrize("indent", [2, 4, "\t", 1, 3])
@pytest.mark.parametrize("levels", [1, 2, 4, 7])
def test_pretty_printed_values_are_accepted(levels: int, indent: int | str) -> None:
    schema, value = _nested(levels)

    assert _accepts(_spec(schema), json.dumps(value, indent=indent))


@pytest.mark.parametrize(("indent", "deep"), [(2, 7), (4, 3), ("\t", 15)])
def test_where_nesting_has_no_end_there_is_room_for_some_levels(
    indent: int | str, deep: int
) -> None:
    value: Any = {"v": None}
    for _ in range(deep):
        value = {"v": None, "kids": [value]}
    text = json.dumps(value, indent=indent)

    assert _accepts(_spec(TREE), text)
    assert _accepts(ANYTHING, text)
    assert _accepts(_spec({"type": "object"}), text)


def test_fixed_values_are_indented_too() -> None:
    assert _accepts(_spec(LITERAL), json.dumps([LITERAL["items"]["const"]], indent=4))  # type: ignore[index]


@pytest.mark.parametrize(
    "text", ['{\r\n    "a": 7,\r\n    "b": 7\r\n}', '{ "a" : 7}', '{"a":7 ,"b":7}']
)
def test_lines_may_end_as_on_windows_and_blanks_stand_where_printers_put_them(text: str) -> None:
    assert _accepts(_spec(_nested(1)[0]), text) == ("\r" in text)


def test_indentation_ends_where_the_deepest_level_does() -> None:
    schema = _spec(_nested(2)[0])

    assert _fits(schema, "[\n" + 8 * " ")
    assert not _fits(schema, "[\n" + 9 * " ")
    assert _fits(schema, "[" + 4 * " ")
    assert not _fits(schema, "[" + 5 * " ")
    assert not _fits(schema, "[ \n" + 3 * " ")


@pytest.mark.parametrize("spec", [ANYTHING, _spec(TREE), _spec(DEEP), _spec({})])
def test_no_run_of_blanks_is_longer_than_a_deep_indentation(spec: ConstraintSpec) -> None:
    start = "[" if _fits(spec, "[") else "{"

    assert not _fits(spec, start + "\n" + 65 * " ")
    assert not _fits(spec, start + "\n\n\n\n\n")


def test_no_blanks_means_compact_json() -> None:
    schema, value = _nested(3)

    assert _accepts(_spec(schema), json.dumps(value, separators=(",", ":")), max_whitespace=0)
    assert not _fits(_spec(schema), "{\n", max_whitespace=0)
    assert not _fits(_spec(schema), "{ ", max_whitespace=0)


def test_blanks_are_one_rule_however_deep_the_schema() -> None:
    grammar = lower(_spec(_nested(9)[0]), ConstraintLimits())
    blanks = {
        name
        for name, rule in grammar.rules.items()
        for node in walk(rule)
        if isinstance(node, CharClass) and (0x20, 0x20) in node.ranges
    }

    assert blanks == {"ws"}
