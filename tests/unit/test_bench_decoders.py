"""`python -m benchmarks.decoders`: its settings, the runs, what a run resumes and refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.decoders import comparison
from benchmarks.decoders.cells import Sample, decoding_of, measure
from benchmarks.decoders.comparison import command, run_bench
from benchmarks.decoders.options import DecodersOptions
from benchmarks.decoders.presets import (
    AUTOREGRESSIVE,
    ONE_TOKEN,
    SETTINGS,
    BadSettings,
    Setting,
    choose_settings,
)
from benchmarks.decoders.report import serving_table
from benchmarks.decoders.running import LoadedModel, RequestFailed, run_requests
from benchmarks.decoders.serving import STREAMS, serving
from plait.decoders.diffusion.pipeline import check
from plait.decoders.diffusion.spec import DiffusionSpec
from tests.fixtures.bench import ScriptedEngine, Spelling, served, setting
from tests.fixtures.engines import request
from tests.fixtures.tiny_models import write_tiny_model


def test_answers_keep_their_order_and_streams_are_limited() -> None:
    engine = ScriptedEngine(per_step=2)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]
    made = [request(f"r{i}", prompt, 9) for i, prompt in enumerate(prompts)]
    run = run_requests(served(engine), made, 2)
    assert [list(answer.token_ids) for answer in run.answers] == prompts
    assert [answer.tokens for answer in run.answers] == [4, 2, 6, 3]  # the end counts
    assert [answer.forwards for answer in run.answers] == [2, 1, 3, 1]
    assert (run.tokens, run.forwards, engine.most) == (15, 7, 2)


def test_a_failure_leaves_nothing_behind() -> None:
    engine = ScriptedEngine(failing="r1")
    made = [request(f"r{i}", [1, 2, 3], 9) for i in range(3)]
    with pytest.raises(RequestFailed, match="no such method"):
        run_requests(served(engine), made, 2)
    assert not engine.running
    assert engine.aborted == ["r0", "r1"]


def test_every_setting_has_a_name_of_its_own_and_equals_an_earlier_one() -> None:
    seen: list[str] = []
    for each in SETTINGS:
        assert each.name not in seen
        assert "," not in each.name + each.sweep, "the command line splits at commas"
        seen.append(each.name)
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


def given(**options: Any) -> DecodersOptions:
    return DecodersOptions.model_validate(options)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Models whose engine repeats the prompt; `per_step` is what free-dave's settings get."""
    made = {"loaded": 0, "answered": 0}

    def serve(_: object) -> LoadedModel:
        made["loaded"] += 1
        return served(ScriptedEngine())

    def count(*arguments: Any, **named: Any) -> Any:
        made["answered"] += 1
        return measure(*arguments, **named)

    monkeypatch.setattr(comparison, "serve", serve)
    monkeypatch.setattr(comparison, "WARM_UP_S", 0.0)
    monkeypatch.setattr(comparison, "measure", count)
    monkeypatch.setattr(
        "benchmarks.decoders.cells.chat_prompt", lambda _, messages: [*map(ord, _content(messages))]
    )
    yield made


def _content(messages: Sequence[dict[str, str]]) -> str:
    return messages[0]["content"]


def test_a_run_is_reported_and_resumed_until_the_code_changes(
    scripted: dict[str, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
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
    monkeypatch.setattr(comparison, "code", lambda: "changed")
    assert run_bench(options) == 0
    assert scripted["answered"] == 2 * 3 * 2


def test_a_real_model_s_lossless_settings_pass_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights: nothing is right, but every answer has to be the same."""
    monkeypatch.setattr(comparison, "WARM_UP_S", 0.0)
    options = given(
        model=str(write_tiny_model(tmp_path / "tiny", model_type="sdar")),
        methods=["free-dave", "free-dave (T=1)", "full: free-dave", "wino 0.5"],
        tasks=["echo", "add"],
        samples=3,
        parts=[],
        weights="fp32",
        max_step_tokens=256,
        output=tmp_path,
    )
    assert run_bench(options) == 0
    lines = json.loads((tmp_path / "decoders.json").read_text())["lines"]
    assert not [line["fault"] for line in lines if line["fault"]]
    found = {line["setting"]["name"]: line["total"] for line in lines}
    assert found["free-dave d=4"]["forwards"] < found[ONE_TOKEN]["forwards"]
    assert found["wino 0.5"]["flops_per_token"] > 0


@pytest.mark.usefixtures("scripted")
def test_settings_take_turns_with_one_some_and_many_clients() -> None:
    asked = [setting("a"), setting("b", max_tokens=2)]
    rates = serving(served(ScriptedEngine()), asked, ["copy", "echo"])
    assert [(rate.setting, rate.streams) for rate in rates] == [
        (name, streams) for streams in STREAMS for name in ("a", "b")
    ]
    assert all(rate.slowest <= rate.tokens_per_second <= rate.fastest for rate in rates)
    lines = serving_table(rates).splitlines()
    assert len(lines) == 2 + 2
    assert [line.count("|") for line in lines] == [len(STREAMS) + 3] * 4


def test_a_red_gate_reports_nothing(
    scripted: dict[str, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "unequal", lambda *_: ["free-dave: other answers"])
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
        "python -m benchmarks.decoders tiny --methods d.json --templates 0,2 --seed 7"
    )


@pytest.mark.parametrize(
    ("absent", "parts", "want"),
    [
        ({"matplotlib"}, [], "matplotlib is not installed: pip install 'plait[bench]'"),
        ({"jsonschema_rs"}, ["json"], "jsonschema_rs is not installed"),
        ({"jsonschema_rs", "matplotlib"}, ["json"], "matplotlib and jsonschema_rs are not"),
    ],
)
def test_missing_packages_are_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    absent: set[str],
    parts: list[str],
    want: str,
) -> None:
    monkeypatch.setattr(comparison, "find_spec", lambda name: None if name in absent else name)
    monkeypatch.setattr(comparison, "serve", lambda settings: pytest.fail("a model was loaded"))
    assert run_bench(given(parts=parts, output=tmp_path / "new")) == 2
    assert want in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_package_is_missed_only_by_the_part_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "find_spec", lambda name: None)
    assert comparison.missing_packages([]) == ["matplotlib"]
    assert comparison.missing_packages(["serving", "json"]) == ["matplotlib", "jsonschema_rs"]
