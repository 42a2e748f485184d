"""multipleOf of any step, alone and within bounds: exactly the multiples, by exact arithmetic."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.grammar.residues import RemainderAutomaton
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    UnsupportedKeyword,
)
from plait.kernels.grammar import Automaton
from tests.fixtures.constraint_vocabularies import automaton_of, matches

STEPS = [1, 2, 3, 6, 7, 8, 11, 12, 24, 30, 40, 60, 75, 90, 128, 300, 1000, 1024, 20000]
FRACTIONS = ["0.3", "0.75", "1.5", "0.07", "2.25", "0.012"]


def _automaton(schema: Any) -> Automaton | None:
    """Return the schema's automaton; None: it says that no answer is valid."""
    spec = ConstraintSpec("json_schema", json.dumps(schema))
    try:
        return automaton_of(lower(spec, ConstraintLimits()))
    except UnsupportedKeyword:
        raise
    except ConstraintError:
        return None


def _accepts(automaton: Automaton | None, text: str) -> bool:
    return automaton is not None and matches(automaton, text.encode())


bounds = st.fixed_dictionaries(
    {},
    optional={
        "minimum": st.integers(-3000, 3000),
        "exclusiveMinimum": st.integers(-3000, 3000),
        "maximum": st.integers(-3000, 30_000),
        "exclusiveMaximum": st.integers(-3000, 30_000),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(STEPS), bounds, st.lists(st.integers(-4000, 40_000), max_size=30))
def test_integers_are_accepted_as_a_validator_does(
    step: int, limits: dict[str, int], values: list[int]
) -> None:
    schema = {"type": "integer", "multipleOf": step, **limits}
    automaton = _automaton(schema)
    judge = jsonschema_rs.validator_for(schema)

    ends = [end + near for end in limits.values() for near in (-step, -1, 0, 1, step)]
    for value in [*values, *(value // step * step for value in [*values, *ends]), *ends]:
        assert _accepts(automaton, str(value)) == judge.is_valid(value), value


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FRACTIONS), bounds, st.lists(st.integers(-4000, 40_000), max_size=30))
def test_decimals_are_accepted_by_exact_arithmetic(
    step: str, limits: dict[str, int], counts: list[int]
) -> None:
    automaton = _automaton({"type": "number", "multipleOf": float(step), **limits})
    unit = Decimal(step)
    places = -int(unit.as_tuple().exponent)

    for count in counts:
        for value in (unit * count, unit * count + Decimal(1).scaleb(-places)):
            is_valid = Fraction(value) % Fraction(unit) == 0 and _is_within(value, limits)
            written = f"{value:f}" if value else "0"  # not -0
            assert _accepts(automaton, written) == is_valid, value


def _is_within(value: Decimal, limits: dict[str, int]) -> bool:
    return all(
        {
            "minimum": value >= limit,
            "exclusiveMinimum": value > limit,
            "maximum": value <= limit,
            "exclusiveMaximum": value < limit,
        }[name]
        for name, limit in limits.items()
    )


@pytest.mark.parametrize("unit", [1, 3, 8, 12, 49, 50, 64, 100, 360, 1024])
def test_classes_of_remainders_tell_multiples(unit: int) -> None:
    remainders = RemainderAutomaton(Decimal(unit))

    for value in range(0, 3 * unit + 200):
        state = remainders.start
        for digit in str(value):
            state = remainders.after(state, int(digit))
        assert remainders.is_multiple(state, 0) == (value % unit == 0)
    assert remainders.count <= unit + 2


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        (
            {"multipleOf": 7, "type": "integer"},
            ["0", "-7", "7000000000000000007"],
            ["-0", "8", "7.0"],
        ),
        (
            {"multipleOf": 86400, "type": "integer", "minimum": 1},
            ["86400", "8640000"],
            ["0", "864"],
        ),
        ({"type": "number", "allOf": [{"multipleOf": 1.5}, {"multipleOf": 2}]}, ["6"], ["3", "2"]),
        ({"type": "number", "multipleOf": 0.3, "not": {"type": "integer"}}, ["0.3"], ["3", "0.4"]),
        (
            {"type": "integer", "multipleOf": 97, "minimum": 10**6, "maximum": 10**9},
            ["1000070"],
            ["97", "1000071"],
        ),
        # Beyond the digits of decimal arithmetic.
        (
            {"type": "integer", "minimum": 10**40 + 1, "maximum": 10**40 + 3, "multipleOf": 3},
            [str(10**40 + 2)],
            [str(10**40), str(10**40 + 5)],
        ),
        (
            {"type": "integer", "maximum": -(10**30) - 1, "minimum": -(10**30) - 2},
            [str(-(10**30) - 1)],
            [str(-(10**30)), str(-(10**30) - 3)],
        ),
    ],
)
def test_multiples_beside_other_keywords(
    schema: Any, accepted: list[str], refused: list[str]
) -> None:
    automaton = _automaton(schema)

    assert [text for text in accepted if not _accepts(automaton, text)] == []
    assert [text for text in refused if _accepts(automaton, text)] == []


def test_a_step_with_too_many_remainders_is_refused() -> None:
    with pytest.raises(
        UnsupportedKeyword, match="its multiples need too many remainders"
    ) as caught:
        _automaton({"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 3001}}})

    assert (caught.value.pointer, caught.value.keyword) == ("/properties/n", "multipleOf")


def test_a_range_may_hold_few_multiples_of_any_step() -> None:
    automaton = _automaton({"type": "integer", "multipleOf": 3001, "minimum": 0, "maximum": 10**6})

    assert _accepts(automaton, "9003")
    assert not _accepts(automaton, "9004")


negations = st.recursive(
    st.fixed_dictionaries({"multipleOf": st.sampled_from([2, 3, 4, 5, 6, 10, 0.5, 1.5])}),
    lambda inner: st.one_of(
        inner.map(lambda schema: {"not": schema}),
        st.lists(inner, min_size=1, max_size=2).map(lambda schemas: {"allOf": schemas}),
        st.lists(inner, min_size=1, max_size=2).map(lambda schemas: {"anyOf": schemas}),
        st.lists(inner, min_size=1, max_size=2).map(lambda schemas: {"oneOf": schemas}),
    ),
    max_leaves=3,
)


@settings(max_examples=80, deadline=None)
@given(negations, st.sampled_from(["integer", "number"]))
def test_negated_multiples_are_those_of_a_validator(schema: Any, kind: str) -> None:
    whole = {**schema, "type": kind, "minimum": -13}
    try:
        automaton = _automaton(whole)
    except UnsupportedKeyword:
        assume(False)
    judge = jsonschema_rs.validator_for(whole)

    for value in range(-14, 70):
        assert _accepts(automaton, str(value)) == judge.is_valid(value), value
        if kind == "number" and _accepts(automaton, f"{value}.5"):
            assert judge.is_valid(value + (0.5 if value >= 0 else -0.5))


def test_what_is_no_multiple_may_be_a_fraction() -> None:
    automaton = _automaton({"type": "number", "not": {"multipleOf": 3}})

    assert [t for t in ("1", "0.5", "3.25", "-4") if not _accepts(automaton, t)] == []
    assert [t for t in ("3", "0", "-6", "3.0") if _accepts(automaton, t)] == []


@pytest.mark.parametrize("negated", [{"type": "integer"}, {"multipleOf": 2}, {"multipleOf": 1}])
def test_fractions_are_no_integers_for_readers_of_64_bits_either(negated: Any) -> None:
    automaton = _automaton({"type": "number", "not": negated})

    assert _accepts(automaton, "-123456789.654321")
    assert not _accepts(automaton, "7941013342459714983.71")
    assert not _accepts(automaton, "1.00000000000000000001")


def test_bounds_may_ask_for_longer_fractions() -> None:
    bounds = {"exclusiveMinimum": 1e-9, "maximum": 2e-9}
    automaton = _automaton({"type": "number", "not": {"type": "integer"}, **bounds})

    assert _accepts(automaton, "0.0000000015")


@pytest.mark.parametrize("step", [0.3, 0.75, 2.5, 0.07, 6.25])
def test_multiples_of_decimals_are_multiples_for_readers_of_64_bits_too(step: float) -> None:
    schema = {"type": "number", "multipleOf": step}
    automaton, judge = _automaton(schema), jsonschema_rs.validator_for(schema)
    unit = Decimal(str(step))

    accepted = []
    for power in range(18):
        for factor in (1, 3, 7, 123, 99_999_999):
            text = f"{(unit * factor * 10**power).normalize():f}"
            if _accepts(automaton, text):
                accepted.append(float(text))
    assert len(accepted) > 30
    assert [value for value in accepted if not judge.is_valid(value)] == []
