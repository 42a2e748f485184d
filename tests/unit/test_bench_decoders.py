"""`plait bench decoders`: its statistics, counters and gate; what it resumes and reports."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from plait.decoders.diffusion.chain import check
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.protocol import Attend
from plait.kernels.paged_attention import Segments
from plait.server.bench import decoders
from plait.server.bench.cells import Cell, Sample, Store, decoding_of, key_of, measure
from plait.server.bench.decoders import command, run_bench
from plait.server.bench.objects import is_valid
from plait.server.bench.options import DecodersOptions
from plait.server.bench.plot import save_plot
from plait.server.bench.presets import (
    AUTOREGRESSIVE,
    ONE_TOKEN,
    SETTINGS,
    BadSettings,
    Setting,
    choose_settings,
)
from plait.server.bench.report import claim_table, comparison_table, percent, points, reach_table
from plait.server.bench.running import Refused, Served, Work, answer_all, seen_keys
from plait.server.bench.statistics import (
    Z_95,
    Interval,
    Point,
    paired_difference,
    reach,
    wilson,
)
from plait.server.bench.summary import (
    Gain,
    best_fast,
    best_lossless,
    claimed,
    learnt_tasks,
    reaches,
    score,
    summarise,
    unequal,
)
from plait.server.models.spec import ModelSpec, Rope
from plait.server.pool.messages import Delta, Failed, GenerateRequest, Started
from tests.fixtures.engines import request

SPEC = ModelSpec(
    family="qwen3",
    vocab=100,
    hidden=8,
    layers=3,
    heads=2,
    kv_heads=1,
    head_dim=4,
    ffn=16,
    norm_eps=1e-6,
    max_positions=64,
    rope=Rope(theta=1e4, dim=4),
    windows=(0, 0, 0),
    rotary=(True, True, True),
)


# Statistics, against values computed by hand.


@pytest.mark.parametrize(
    ("right", "cases", "low", "high"),
    [(10, 20, 0.2993, 0.7007), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilson_by_hand(right: int, cases: int, low: float, high: float) -> None:
    have = wilson(right, cases)
    assert have.value == right / cases
    assert (have.low, have.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("right", "cases"), [(3, 7), (399, 400), (12, 432)])
def test_wilson_ends_where_the_score_test_does(right: int, cases: int) -> None:
    have = wilson(right, cases)
    for share in (have.low, have.high):
        errors = abs(right / cases - share) / math.sqrt(share * (1 - share) / cases)
        assert errors == pytest.approx(Z_95)


def test_no_case_has_no_share() -> None:
    with pytest.raises(ValueError, match="case"):
        wilson(0, 0)


def test_a_difference_of_one_case_in_a_hundred() -> None:
    """The sum of a resample is Binomial(100, 1 %), whose quantiles are 0 and 3."""
    right = [True] * 100
    have = paired_difference(right, [False, *right[1:]], ["t"] * 100)
    assert have == Interval(0.01, 0.0, 0.03)


def test_a_resample_keeps_every_task_s_share() -> None:
    have = paired_difference([True] * 4, [False, False, True, True], ["a", "a", "b", "b"])
    assert have == Interval(0.5, 0.5, 0.5)


SWEEP = [Point(1.0, 0.96), Point(3.0, 0.92), Point(5.0, 0.80), Point(8.0, 0.40)]


@pytest.mark.parametrize(
    ("sweep", "accuracy", "want"),
    [
        (SWEEP, 0.90, 3.0 + 2.0 / 6),  # 2 points below 92, of 12 between 92 and 80
        (SWEEP, 0.95, 1.5),
        (SWEEP, 0.40, 8.0),
        (SWEEP, 0.97, 0.0),
        (SWEEP[:1], 0.95, 1.0),
        (SWEEP[:1], 0.97, 0.0),
        ([Point(1.0, 0.8), Point(2.0, 0.9), Point(3.0, 0.7)], 0.85, 2.25),  # it rises, then falls
        ([Point(4.0, 0.5), Point(2.0, 0.9)], 0.7, 3.0),  # the other way round
        ([Point(2.0, 0.9), Point(1.0, 0.9)], 0.9, 2.0),
        ([], 0.5, 0.0),
    ],
)
def test_reach_by_hand(sweep: list[Point], accuracy: float, want: float) -> None:
    assert reach(sweep, accuracy) == pytest.approx(want)


# Counting.


def segments(pieces: Sequence[tuple[Attend, int, int, list[int]]]) -> Segments:
    """Return segments of (attend, context, rows, parents)."""
    starts = np.cumsum([0, *(rows for _, _, rows, _ in pieces)])
    parents = [p for _, _, rows, given in pieces for p in given or [-1] * rows]
    positions: list[int] = []
    for attend, context, rows, given in pieces:
        depths = list(range(rows))
        if attend is Attend.TREE:
            depths = [0] * rows
            for i, parent in enumerate(given):
                depths[i] = depths[parent] + 1 if parent >= 0 else 0
        positions += [context + depth for depth in depths]
    return Segments(
        row_start=torch.tensor(starts, dtype=torch.int32),
        context_len=torch.tensor([context for _, context, _, _ in pieces], dtype=torch.int32),
        block_tables=torch.zeros(len(pieces), 1, dtype=torch.int32),
        attend=torch.tensor([int(attend) for attend, _, _, _ in pieces], dtype=torch.int32),
        parents=torch.tensor(parents, dtype=torch.int32),
        positions=torch.tensor(positions, dtype=torch.int32),
        slots=torch.zeros(len(parents), dtype=torch.int64),
    )


@pytest.mark.parametrize(
    ("attend", "context", "rows", "parents", "want"),
    [
        (Attend.CAUSAL, 5, 3, [], 15 + 6),
        (Attend.BLOCK, 5, 3, [], 15 + 9),
        (Attend.TREE, 2, 4, [-1, 0, 0, 1], 8 + 1 + 2 + 2 + 3),
        (Attend.BRANCHES, 2, 5, [0, 1, 0, 1, 1], 10 + 4 + 9),
        (Attend.SHADOW, 2, 6, [], 12 + 9 + 3 * (2 + 1)),
        (Attend.CONTEXT, 7, 2, [], 14),
    ],
)
def test_keys_are_counted_as_each_kind_sees_them(
    attend: Attend, context: int, rows: int, parents: list[int], want: int
) -> None:
    piece = (attend, context, rows, parents)
    assert seen_keys(segments([piece])) == want
    other = (Attend.CAUSAL, 1, 2, list[int]())
    assert seen_keys(segments([other, piece, other])) == want + 2 * 5


def test_flops_by_hand() -> None:
    work = Work(rows=10, head_rows=4, pairs=30)
    matrices = 8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16  # q and o, k and v, the feed-forward
    attention = 2 * 8 * 30  # scores and sums of values, over all heads
    assert work.flops(SPEC) == 2 * (3 * (10 * matrices + attention) + 4 * 8 * 100)


# Running.


class ScriptedEngine:
    """Answers each request with its own prompt, one token a step, unless told otherwise."""

    def __init__(self, per_step: int = 1, failing: str = "") -> None:
        self.running: dict[str, list[int]] = {}
        self.work = Work()
        self.aborted: list[str] = []
        self.most = 0
        self._per_step, self._failing = per_step, failing
        self._forwards: dict[str, int] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def add(self, request: GenerateRequest) -> None:
        self.running[request.request_id] = list(request.prompt_token_ids)
        self._forwards[request.request_id] = 0
        self.most = max(self.most, len(self.running))

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.aborted.append(request_id)
        self.running.pop(request_id, None)

    def step(self) -> list[Started | Delta | Failed]:
        self.work.rows += len(self.running)
        return [self._advance(name) for name in list(self.running)]

    def _advance(self, name: str) -> Delta | Failed:
        if name == self._failing:
            return Failed(name, "Internal", "no such method")
        self._forwards[name] += 1
        left = self.running[name]
        made, self.running[name] = left[: self._per_step], left[self._per_step :]
        if self.running[name]:
            return Delta(name, 0, made)
        del self.running[name]
        trace = {"forwards": self._forwards[name]}
        return Delta(name, 0, made, finish_reason="stop", stop_token=0, trace=trace)


class Spelling:
    """A tokenizer of characters."""

    chat_template = "{{ messages[0]['content'] }}"
    eos_token_ids = frozenset({0})
    token_bytes = tuple(chr(i).encode() for i in range(128))

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))


def served(engine: ScriptedEngine) -> Served:
    info = SimpleNamespace(model="m", fingerprint="f", weights="fp32")
    return Served(
        engine, cast(Any, info), cast(Any, Spelling()), cast(Any, None), SPEC, engine.work
    )


def test_answers_keep_their_order_and_streams_are_limited() -> None:
    engine = ScriptedEngine(per_step=2)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]
    made = [request(f"r{i}", prompt, 9) for i, prompt in enumerate(prompts)]
    run = answer_all(served(engine), made, 2)
    assert [list(answer.token_ids) for answer in run.answers] == prompts
    assert [answer.tokens for answer in run.answers] == [4, 2, 6, 3]  # the end counts
    assert [answer.forwards for answer in run.answers] == [2, 1, 3, 1]
    assert (run.tokens, run.forwards, engine.most) == (15, 7, 2)


def test_a_failure_leaves_nothing_behind() -> None:
    engine = ScriptedEngine(failing="r1")
    made = [request(f"r{i}", [1, 2, 3], 9) for i in range(3)]
    with pytest.raises(Refused, match="no such method"):
        answer_all(served(engine), made, 2)
    assert not engine.running
    assert engine.aborted == ["r0", "r1"]


# Settings.


def test_every_setting_has_a_name_of_its_own_and_equals_an_earlier_one() -> None:
    seen: list[str] = []
    for setting in SETTINGS:
        assert setting.name not in seen
        assert "," not in setting.name + setting.sweep, "the command line splits at commas"
        seen.append(setting.name)
    assert {setting.equals for setting in SETTINGS} - {""} <= set(seen)
    assert {setting.against for setting in SETTINGS} <= set(seen)
    assert {AUTOREGRESSIVE, ONE_TOKEN} <= set(seen)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_can_be_asked_of_the_tiny_model(setting: Setting) -> None:
    spec = DiffusionSpec(
        mask_id=1,
        eos_ids=(0,),
        attention="block",
        block_size=32,
        block_sizes=(1, 4, 8, 16, 32),
        also_full=True,
    )
    named = {**setting.decoding}
    if setting.delimiters:
        named = {**decoding_of(setting, cast(Any, Spelling()))}
        assert {"name": "ada-block", "delimiter_ids": [ord(",")]} in named["unmasker"]
    check(named, spec)


def test_what_is_chosen_brings_what_it_is_compared_with() -> None:
    have = [setting.name for setting in choose_settings(["free-dave (block 8)", "factor"])]
    factors = [setting.name for setting in SETTINGS if setting.sweep == "factor"]
    extra = {"static k=1 (block 8)", "free-dave (block 8)"}
    assert set(have) == {AUTOREGRESSIVE, ONE_TOKEN, *extra, *factors}
    assert choose_settings([]) == list(SETTINGS)


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    own = {"name": "mine", "decoding": {"unmasker": "x"}, "equals": ONE_TOKEN}
    file.write_text(json.dumps([own]))
    assert [s.name for s in choose_settings([str(file)])] == [AUTOREGRESSIVE, ONE_TOKEN, "mine"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"name": "a"}]', "decoding"),
        ('[{"name": "a", "decoding": {}, "colour": 1}]', "colour"),
        (f'[{{"name": "{ONE_TOKEN}", "decoding": {{}}}}]', "one name"),
        ("{", "own.json"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "own.json"
    file.write_text(content)
    with pytest.raises(BadSettings, match=message):
        choose_settings([str(file)])


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(BadSettings, match="no setting 'treshold'"):
        choose_settings(["treshold"])


def test_cases_take_turns_in_their_wordings() -> None:
    cases = Sample(seed=3, cases=5, templates=(0, 2)).of("copy")
    assert [case.template for case in cases] == [0, 2, 0, 2, 0]
    assert cases == Sample(seed=3, cases=5, templates=(0, 2)).of("copy")
    assert cases[0] != Sample(seed=4, cases=5, templates=(0, 2)).of("copy")[0]


# Cells and what is made of them.


def cell(setting: str, task: str = "copy", **fields: Any) -> Cell:
    made = Cell(
        key=f"{setting}/{task}",
        setting=setting,
        task=task,
        templates=[0, 1, 2, 0],
        right=[True] * 4,
        tokens=[5] * 4,
        forwards=[5] * 4,
        answers=[[7, 7, 7, 7]] * 4,
        seconds=2.0,
        steps=5,
        rows=100,
        flops=1e6,
    )
    return replace(made, **fields)


def setting(name: str, **fields: Any) -> Setting:
    return Setting(name=name, decoding=fields.pop("decoding", {}), **fields)


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
    names = ("brave", "meek", "rash")
    settings = [setting(ONE_TOKEN), *(setting(name, decoding=asked) for name in names)]
    cells = {
        ONE_TOKEN: [cell(ONE_TOKEN)],
        "brave": [cell("brave", forwards=[2] * 4, flops=5e5)],
        "meek": [cell("meek", forwards=[4] * 4)],
        "rash": [cell("rash", forwards=[1] * 4, right=[False] * 4)],
    }
    best = claimed(summarise(settings, cells, {}))
    assert {method: line.name for method, line in best.items()} == {"wino": "brave"}
    assert best["wino"].gain == Gain(2.5, 2.0, 1.0, Interval(0.0, 0.0, 0.0))
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


# The command.


def given(**options: Any) -> DecodersOptions:
    return DecodersOptions.model_validate(options)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Models whose engine repeats the prompt; `per_step` is what free-dave's settings get."""
    made = {"loaded": 0, "answered": 0}

    def serve(_: object) -> Served:
        made["loaded"] += 1
        return served(ScriptedEngine())

    def count(*arguments: Any, **named: Any) -> Any:
        made["answered"] += 1
        return measure(*arguments, **named)

    monkeypatch.setattr(decoders, "serve", serve)
    monkeypatch.setattr(decoders, "WARM_UP_S", 0.0)
    monkeypatch.setattr(decoders, "measure", count)
    monkeypatch.setattr(
        "plait.server.bench.cells.chat_prompt", lambda _, messages: [*map(ord, _content(messages))]
    )
    yield made


def _content(messages: Sequence[dict[str, str]]) -> str:
    return messages[0]["content"]


def test_a_run_is_reported_and_resumed(
    scripted: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = given(
        tasks=["copy", "echo"], methods=["free-dave d=4"], samples=2, parts=[], output=tmp_path
    )
    assert run_bench(options) == 0
    assert scripted == {"loaded": 1, "answered": 3 * 2}
    out = capsys.readouterr().out
    assert "| free-dave d=4 |" in out and f"| {ONE_TOKEN} |" in out
    found = json.loads((tmp_path / "decoders.json").read_text())
    assert [line["setting"]["name"] for line in found["lines"]] == [
        AUTOREGRESSIVE,
        ONE_TOKEN,
        "free-dave d=4",
    ]
    assert found["command"].endswith(
        "--methods 'free-dave d=4' --tasks copy,echo --samples 2 --parts ''"
    )
    assert run_bench(options) == 0
    assert scripted["answered"] == 3 * 2


def test_a_red_gate_reports_nothing(
    scripted: dict[str, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoders, "unequal", lambda *_: ["free-dave: other answers"])
    options = given(tasks=["copy"], methods=["free-dave d=4"], parts=[], output=tmp_path)
    assert run_bench(options) == 1
    have = capsys.readouterr()
    assert have.out == "" and "free-dave: other answers" in have.err
    assert not (tmp_path / "decoders.json").exists()


@pytest.mark.parametrize(
    "options", [{"tasks": ["cpoy"]}, {"methods": ["treshold"]}, {"model": "nowhere"}]
)
def test_wrong_options_end_at_once(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(given(**options, output=tmp_path)) == 2
    assert "plait: no " in capsys.readouterr().err


def test_the_command_is_told_without_paths() -> None:
    options = given(
        model="a/b/tiny", methods=["c/d.json"], seed=7, output=Path("e/f"), templates=[0, 2]
    )
    assert command(options) == (
        "plait bench decoders tiny --methods d.json --templates 0,2 --seed 7"
    )
