"""The cost curve: never falling, near what was measured, quick to follow a slower machine."""

from __future__ import annotations

import random
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.decoders.contract.costs import SIZES, CostCurve

SECONDS = st.floats(1e-9, 1e6)
OBSERVED = st.lists(st.tuples(st.integers(-1, 5000), SECONDS | st.just(0.0) | st.just(inf)))


@given(st.dictionaries(st.integers(1, 4096), SECONDS, max_size=8), OBSERVED)
def test_seconds_never_fall_with_rows(
    measured: dict[int, float], observed: list[tuple[int, float]]
) -> None:
    curve = CostCurve(measured)
    for rows, seconds in observed:
        curve.observe(rows, seconds)
    for limit in (1, 63, 64, 300, 5000):
        table = curve.seconds(limit)
        assert len(table) == limit + 1
        assert table[0] == 0.0
        assert np.isfinite(table).all()
        assert (table[1:] > 0).all()
        assert (np.diff(table) >= 0).all()


def test_what_was_measured_is_what_is_said() -> None:
    measured = {1: 1.0, 2: 1.0, 4: 1.5, 8: 2.0, 16: 4.0, 32: 7.0}
    table = CostCurve(measured).seconds(64)
    assert [table[rows] for rows in measured] == list(measured.values())
    assert table[3] == pytest.approx(1.25)
    assert table[64] == pytest.approx(14.0)  # in proportion, beyond the largest


def test_rows_cost_the_same_where_nothing_is_known() -> None:
    table = CostCurve().seconds(3 * SIZES[-1])
    assert np.allclose(table, np.arange(len(table)))


def test_a_slower_machine_moves_the_scale_and_keeps_the_shape() -> None:
    measured = {1: 1.0, 8: 1.0, 64: 8.0}
    before = CostCurve(measured).seconds(64).copy()
    curve = CostCurve(measured)
    for _ in range(100):
        for rows in (1, 8, 64):
            curve.observe(rows, 3.0 * before[rows])
    assert curve.seconds(64)[1:] == pytest.approx(3.0 * before[1:], rel=0.1)


def test_the_shape_follows_what_is_observed() -> None:
    """Profiled flat, but in truth in proportion to the rows."""
    curve = CostCurve({1: 1.0, 64: 1.0})
    for _ in range(3000):
        for rows in (1, 8, 64):
            curve.observe(rows, float(rows))
    table = curve.seconds(64)
    assert table[64] / table[1] == pytest.approx(64.0, rel=0.2)
    assert table[8] / table[1] == pytest.approx(8.0, rel=0.2)


def test_the_shape_is_learnt_while_the_machine_changes_its_pace() -> None:
    """Long runs of single rows between batches of several sizes, as answers end and others begin.

    Profiled as if 16 rows cost what 8 do, by a disturbed pass.
    """
    truth = {1: 20.0, 8: 26.0, 16: 35.0, 24: 42.0}
    curve = CostCurve({1: 20.0, 8: 30.0, 16: 30.0, 32: 44.0})
    rng = random.Random(1)
    for phase in range(30):
        pace = rng.uniform(0.7, 1.4)
        for _ in range(100):
            rows = rng.choice((8, 16, 24)) if phase % 2 else 1
            curve.observe(rows, truth[rows] * pace * rng.uniform(0.9, 1.1))
    table = curve.seconds(64)
    for rows, seconds in truth.items():
        assert table[rows] / table[1] == pytest.approx(seconds / truth[1], rel=0.1)


def test_rows_beyond_what_is_observed_do_not_become_free() -> None:
    """A full batch turns out slower than profiled: larger passes, never seen, are slower, too."""
    before = CostCurve({1: 1.0, 32: 8.0}).seconds(64).copy()
    curve = CostCurve({1: 1.0, 32: 8.0})
    for _ in range(1000):
        curve.observe(1, before[1])
        curve.observe(32, 1.4 * before[32])
    table = curve.seconds(64)
    assert table[32] / table[1] == pytest.approx(1.4 * before[32] / before[1], rel=0.1)
    assert table[48] / table[32] == pytest.approx(before[48] / before[32], rel=0.05)


def test_one_pass_that_hung_is_soon_forgotten() -> None:
    curve = CostCurve({1: 1.0, 64: 8.0})
    curve.observe(1, 1000.0)
    assert curve.seconds(1)[1] < 1.1
    for _ in range(50):
        curve.observe(1, 1.0)
    assert curve.seconds(1)[1] == pytest.approx(1.0, rel=0.01)
