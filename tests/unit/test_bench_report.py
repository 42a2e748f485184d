"""What `python -m benchmarks.decoders` makes of its cells: scores, the gate, tables, a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.decoders.cells import Cell, Store, key_of
from benchmarks.decoders.objects import Extraction, is_valid
from benchmarks.decoders.plot import save_plot
from benchmarks.decoders.presets import AUTOREGRESSIVE, ONE_TOKEN, Setting
from benchmarks.decoders.report import (
    claim_table,
    comparison_table,
    objects_table,
    points,
    reach_table,
)
from benchmarks.decoders.statistics import Interval, wilson
from benchmarks.decoders.summary import (
    Speedup,
    best_fast,
    best_lossless,
    claimed,
    learnt_tasks,
    reaches,
    score,
    summarise,
    unequal,
)
from benchmarks.markdown import percent
from tests.fixtures.bench import cell, setting


def test_a_store_goes_on_behind_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "cells.jsonl"
    store = Store(path)
    store.add(cell("a"))
    store.add(cell("b"))
    path.write_text(path.read_text()[:-9])
    store = Store(path)
    assert (store.get("a/copy"), store.get("b/copy")) == (cell("a"), None)
    store.add(cell("c"))
    assert Store(path).get("c/copy") == cell("c")


def test_a_key_depends_on_everything_that_was_asked() -> None:
    plain = key_of(setting("a"), "copy", {"seed": 0})
    assert plain == key_of(setting("a"), "copy", {"seed": 0})
    others = [
        key_of(setting("a", temperature=1.0), "copy", {"seed": 0}),
        key_of(setting("a"), "sort", {"seed": 0}),
        key_of(setting("a"), "copy", {"seed": 1}),
    ]
    assert len({plain, *others}) == 4


def test_scores_divide_sums() -> None:
    have = score([cell("a"), cell("a", forwards=[1, 2, 3, 4], right=[True, False] * 2)])
    assert have.accuracy == wilson(6, 8)
    assert have.tokens_per_forward == 40 / 30
    assert have.tokens_per_second == 40 / 4
    assert have.flops_per_token == 2e6 / 40
    assert (have.cases, have.forwards) == (8, 30 / 8)


def test_lossless_settings_are_held_to_their_word() -> None:
    settings = [setting(ONE_TOKEN), setting("twin", equals=ONE_TOKEN)]
    cells = {ONE_TOKEN: [cell(ONE_TOKEN)], "twin": [cell("twin", forwards=[5, 4, 3, 2])]}
    assert unequal(settings, cells) == []
    wrong = cell("twin", answers=[[7, 7, 7, 7]] * 3 + [[7, 7, 7]])
    assert "1 answers are not" in unequal(settings, {**cells, "twin": [wrong]})[0]
    slow = cell("twin", forwards=[5, 6, 5, 5])
    assert "1 took more" in unequal(settings, {**cells, "twin": [slow]})[0]


def compared() -> tuple[list[Setting], dict[str, list[Cell]]]:
    settings = [
        setting(AUTOREGRESSIVE, decoding={"unmasker": "off"}),
        setting(ONE_TOKEN, sweep="static k"),
        setting("static k=2", sweep="static k"),
        setting("twin", equals=ONE_TOKEN),
        setting("twin (T=1)", equals=ONE_TOKEN, temperature=1.0),
        setting("gone"),
    ]
    half: dict[str, Any] = {"right": [True, False] * 2, "forwards": [2] * 4, "seconds": 0.5}
    cells = {
        AUTOREGRESSIVE: [cell(AUTOREGRESSIVE, seconds=0.1), cell(AUTOREGRESSIVE, "sort")],
        ONE_TOKEN: [cell(ONE_TOKEN), cell(ONE_TOKEN, "sort", right=[False] * 4)],
        "static k=2": [cell("", **half), cell("", "sort", right=[False] * 4, seconds=0.5)],
        "twin": [cell("twin", seconds=1.0), cell("twin", "sort", right=[False] * 4)],
        "twin (T=1)": [cell("", seconds=0.01), cell("", "sort", seconds=0.01)],
    }
    return settings, cells


def test_a_summary_stands_beside_one_token_per_step() -> None:
    settings, cells = compared()
    assert learnt_tasks(cells[ONE_TOKEN]) == {"copy"}
    lines = {li.name: li for li in summarise(settings, cells, {"gone": "refused"})}
    faster = lines["static k=2"]
    assert faster.total is not None and faster.learnt is not None and faster.difference is not None
    assert (faster.total.accuracy.value, faster.learnt.accuracy.value) == (0.25, 0.5)
    assert faster.difference.value == -0.25
    assert faster.by_template == {0: wilson(1, 4), 1: wilson(0, 2), 2: wilson(1, 2)}
    assert lines["gone"].fault == "refused"
    listed = list(lines.values())
    assert best_lossless(listed) == ["twin"]
    assert best_fast(listed) == ["twin"]
    found = {each.sweep: each for each in reaches(listed)}
    assert found["static k"].pb90 == 0.0
    assert found["static k"].learnt_pb90 == pytest.approx(1.0 + 0.2 * 1.5)  # of 1 at 100, 2.5 at 50
    text = comparison_table(listed)
    assert text.count("\n") == 1 + 5
    assert "gone" not in text
    assert "| static k | 0.00 |" in reach_table(reaches(listed))


def test_a_claim_stands_beside_the_setting_that_saves_most_at_little_loss() -> None:
    asked = {"unmasker": ["static", {"name": "wino", "draft": 0.6}]}
    both = {"unmasker": ["wino", "credit"]}
    settings = [
        setting(ONE_TOKEN),
        *(setting(name, decoding=asked) for name in ("brave", "meek", "rash")),
        setting("composed", decoding=both),
    ]
    cells = {
        ONE_TOKEN: [cell(ONE_TOKEN)],
        "brave": [cell("brave", forwards=[2] * 4, flops=5e5)],
        "meek": [cell("meek", forwards=[4] * 4)],
        "rash": [cell("rash", forwards=[1] * 4, right=[False] * 4)],
        "composed": [cell("composed", forwards=[1] * 4)],
    }
    best = claimed(summarise(settings, cells, {}))
    assert {method: line.name for method, line in best.items()} == {"wino": "brave"}
    assert best["wino"].gain == Speedup(2.5, 2.0, 1.0, Interval(0.0, 0.0, 0.0))
    del cells["brave"], cells["meek"]
    lost = claimed(summarise(settings, cells, {"brave": "", "meek": ""}))
    assert lost["wino"].name == "rash"
    assert "-100.0" in claim_table(lost)


def test_shares_and_differences_are_written_in_percent() -> None:
    assert percent(Interval(0.5, 0.25, 0.755)) == "50.0 [25.0, 75.5]"
    assert points(Interval(-0.01, -0.02, 0.0)) == "-1.0 [-2.0, +0.0]"


def test_plots_are_written_twice_and_alike(tmp_path: Path) -> None:
    settings, cells = compared()
    lines = summarise(settings, cells, {"gone": "refused"})
    paths = save_plot(lines, tmp_path / "plot", "title")
    assert [path.name for path in paths] == ["plot.png", "plot.svg"]
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"\x89PNG") and b"<svg" in first[1]
    assert [path.read_bytes() for path in save_plot(lines, tmp_path / "plot", "title")] == first


@pytest.mark.parametrize(
    ("text", "want"),
    [('{"a": 1}', True), ('{"a": null}', False), ('{"a": 1', False), ("", False), ("[1]", False)],
)
def test_validity_is_the_schema_s(text: str, want: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert is_valid(text, schema) is want


def test_objects_are_reported_with_and_without_their_schema() -> None:
    share = Interval(0.5, 0.4, 0.6)
    rows = [Extraction("a", given, share, share, 3.0, 2.5) for given in (False, True)]
    assert objects_table(rows).splitlines()[2:] == [
        f"| a | {word} | 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] | 3.0 | 2.50 |"
        for word in ("no", "yes")
    ]
