"""The benchmark of faithful samples: its statistics, its black box, its report."""

from __future__ import annotations

from math import log

import pytest
import torch

from benchmarks.decoders.statistics import Interval
from benchmarks.machine import this_machine
from benchmarks.structured.faithful import FaithfulReport, markdown
from benchmarks.structured.faithful.laws import divergence, of_exact_samples, with_error
from benchmarks.structured.faithful.measuring import LoadResult, SearchResult, TaskResult
from benchmarks.structured.faithful.setup import BlackBox
from plait.decoders.contract.constraint import is_exact
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

LAW = {"a": 0.5, "b": 0.25, "c": 0.25}


def test_the_divergence_is_its_definition() -> None:
    assert divergence(["a", "a", "b", "c"], LAW) == pytest.approx(0.0)
    assert divergence(["a", "a"], LAW) == pytest.approx(log(2))
    assert divergence(["a", "b"], LAW) == pytest.approx(0.5 * log(1) + 0.5 * log(2))


def test_its_interval_is_that_of_the_samples() -> None:
    found = with_error(["a"] * 50 + ["b"] * 50, LAW)
    assert found.low < found.value < found.high
    assert with_error(["b"] * 5, LAW) == Interval(log(4), log(4), log(4))


def test_exact_samples_diverge_by_their_number() -> None:
    """On average (number of texts - 1) / (2 * samples), up to terms of higher order."""
    have = of_exact_samples(500, LAW)
    assert have.value == pytest.approx(2 / 1000, rel=0.15)
    assert 0 <= have.low < have.value < have.high


def test_the_black_box_tells_nothing_but_what_it_is_asked() -> None:
    box, inner = BlackBox(WordConstraint(LANGUAGE, END)), WordConstraint(LANGUAGE, END)
    assert not is_exact(box)
    mask = torch.zeros((1, 1), dtype=torch.int32)
    box.fill_bitmask(mask, 0)
    assert int(mask[0, 0]) == -1
    twin = box.fork()
    for token in range(END + 1):
        assert twin.accept_token(token) == inner.accept_token(token)
        assert twin.is_accepting() == inner.is_accepting()
    assert box.min_tokens() == 1


def test_the_report_has_every_search() -> None:
    found = SearchResult(Interval(0.5, 0.25, 0.75), 12.0, 0.5)
    task = TaskResult("one", 3, 0.25, Interval(0.1, 0.0, 0.2), {"smc": found}, 2.5, True)
    load = LoadResult(100.0, 60.0, 400.0)
    report = FaithfulReport("now", "command", this_machine(), 7, 49152, [task], load, 9.0)
    text = markdown(report)
    assert "| smc | 0.5000 [0.2500, 0.7500] | 12.0 | 0.500 |" in text
    assert "| one | 2.50 | 49152 | True |" in text
    assert "60, 0.60 of that" in text
