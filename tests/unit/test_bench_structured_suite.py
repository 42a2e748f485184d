"""Engines before suites of schemas: what counts as accepted, matched, refused and wrong."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.command_line import run_command
from benchmarks.machine import this_machine
from benchmarks.maskbench import Case, cases, remotes
from benchmarks.structured import commands
from benchmarks.structured.commands import Corpus
from benchmarks.structured.engines import ANY, ENGINES, Engine, Refused, make_plait
from benchmarks.structured.isolation import IsolatedEngine, Verdict, judge
from benchmarks.structured.journal import Journal
from benchmarks.structured.options import StructuredOptions, SuiteOptions
from benchmarks.structured.suite import (
    DIALECTS,
    Counts,
    EngineResult,
    JudgedCase,
    judge_case,
    summarise,
)
from benchmarks.structured.suite_report import Section, SuiteReport, section_table
from tests.fixtures.stub_engines import compile_stub, make_stub


def instance(valid: bool, data: Any, description: str = "") -> dict[str, Any]:
    return {"valid": valid, "data": data, "description": description}


def obey(schema: str, texts: Sequence[bytes | None]) -> Verdict:
    return judge(compile_stub, schema, texts)


ORDERED = {"properties": {"a": {}, "b": {}}, "legal": ['{"a":1,"b":2}', '{"x":"y"}', '["é"]']}
CASES = [
    Case(
        "all kinds",
        ORDERED,
        [
            instance(True, {"a": 1, "b": 2}, "as given"),
            instance(True, {"b": 2, "a": 1}, "another order"),
            instance(True, {"c": 3}, "an unknown key"),
            instance(True, ["é"], "no escapes"),
            instance(False, {"x": "y"}, "let through"),
            instance(False, {}, "kept out"),
        ],
        "object",
    ),
    Case("refused", {"refuse": "not: too hard"}, [instance(True, 1), instance(False, 2)], "object"),
    Case("other", {"legal": ["3"]}, [instance(True, 3)], "number"),
]


def judged() -> list[JudgedCase]:
    return [judge_case(case, obey) for case in CASES]


def test_instances_count_for_accepted_schemas_in_either_order_of_keys() -> None:
    have = summarise("1.0", judged())
    of_objects = Counts(
        schemas=2, enforced=1, matched=3, matched_as_given=2, refused=1, wrong=1, invalid=2
    )
    of_numbers = Counts(schemas=1, enforced=1, right=1, matched=1, matched_as_given=1)
    assert have.groups == {"number": of_numbers, "object": of_objects}
    assert have.total == Counts(
        schemas=3, enforced=2, right=1, matched=4, matched_as_given=3, refused=1, wrong=1, invalid=2
    )
    assert have.reasons == {"not: too hard": ["refused"]}
    assert have.refused_instances == ["all kinds / an unknown key"]
    assert have.wrong_instances == ["all kinds / let through"]


def test_slow_schemas_are_listed_with_their_times() -> None:
    seconds = {"a": 0.5, "b": 2.0, "c": 0.25}
    have = summarise(
        "", [JudgedCase("", n, "refused", "no", compile_s=s) for n, s in seconds.items()]
    )
    assert (have.compile.sum, have.compile.median, have.compile.most) == (2.75, 0.5, 2.0)
    assert have.slow == {"b": 2.0}


def test_a_run_that_was_stopped_goes_on_with_what_its_journal_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    first, *others = judged()
    Journal(path, "1").add("corpus", "plait", 0, first)
    Journal(path, "2").add("corpus", "plait", 1, others[0])  # by other code
    Journal(path, "1").add("corpus", "xgrammar", 1, others[0])
    asked: list[str] = []

    def note(case: Case, **_: Any) -> JudgedCase:
        asked.append(case.name)
        return others[len(asked) - 1]

    monkeypatch.setattr(commands, "judge_case", note)
    monkeypatch.setattr(commands, "ENGINES", {"plait": Engine("plait", make_stub)})
    have = [
        commands._judge(Corpus("corpus", CASES), {"plait": "v"}, Journal(path, "1"), 60)
        for _ in range(2)
    ]

    assert asked == ["refused", "other"]
    assert have == [{"plait": summarise("v", [first, *others])}] * 2


def test_the_table_has_a_row_for_each_group_and_the_totals() -> None:
    result = summarise("1.0", judged())
    assert section_table(Section("t", {"one": result, "two": result})).splitlines() == [
        "|  | schemas | one 1.0 enforced | matched | refused | wrong "
        "| two 1.0 enforced | matched | refused | wrong |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| number | 1 | 1 | 1 | 0 | 0 | 1 | 1 | 0 | 0 |",
        "| object | 2 | 1 | 3 | 1 | 1 | 1 | 3 | 1 | 1 |",
        "| total | 3 | 2 | 4 | 1 | 1 | 2 | 4 | 1 | 1 |",
    ]


def test_a_schema_is_in_the_suites_dialect_unless_it_names_one() -> None:
    seen = []

    def record(schema: str, texts: Sequence[bytes | None]) -> Verdict:
        seen.append(json.loads(schema))
        return Verdict("refused", "no")

    for schema in ({"type": "null"}, {"$schema": "mine"}, True):
        judge_case(Case("c", schema, []), record, DIALECTS["draft7"])
    assert seen == [{"$schema": DIALECTS["draft7"], "type": "null"}, {"$schema": "mine"}, True]


def test_a_schema_without_valid_values_is_enforced_and_what_the_suite_calls_valid_refused() -> None:
    schema = {"type": "string", "not": {"type": "string"}}
    tests = [instance(True, "a"), instance(False, 1)]
    have = [judge_case(Case("c", schema, tests[i:]), partial(judge, make_plait())) for i in (0, 1)]

    assert [case.outcome for case in have] == ["empty", "empty"]
    assert [case.is_right for case in have] == [False, True]
    assert summarise("", have).total == Counts(schemas=2, enforced=2, right=1, refused=1, invalid=2)


@pytest.mark.parametrize("folder", [".", "suite-1.0"])
def test_documents_that_schemas_refer_to_are_supplied(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("remotes/draft7/a.json", "tests/draft7/a.json"):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = 2
            archive.addfile(member, io.BytesIO(b"{}"))
    library = remotes(path)
    case = Case("c", {"$ref": "http://localhost:1234/draft7/a.json"}, [instance(True, 1)])
    engine = partial(judge, make_plait(ANY))

    assert library["http://localhost:1234/draft7/a.json"] == {}
    assert library["http://json-schema.org/draft-07/schema"]["title"]
    assert judge_case(case, engine, library=library).is_right
    assert judge_case(case, engine).outcome == "refused"


def test_half_a_surrogate_pair_is_matched_by_nothing() -> None:
    have = judge_case(Case("c", {"legal": [""]}, [instance(True, "\ud800")]), obey)
    assert [found.is_matched for found in have.instances] == [False]


def test_an_engine_that_crashes_fails_on_that_schema_only() -> None:
    with IsolatedEngine(make_stub, deadline_s=60) as engine:
        have = [
            engine.judge(json.dumps(schema), [b"1", None, b"2"])
            for schema in ({"legal": ["1"]}, {"crash": 3}, {"legal": ["2"]}, {"refuse": "no"})
        ]
    assert have == [
        Verdict("accepted", matched=[True, False, False]),
        Verdict("failed", "its process ended with 3"),
        Verdict("accepted", matched=[False, False, True]),
        Verdict("refused", "no"),
    ]


def test_an_engine_that_takes_too_long_fails() -> None:
    with IsolatedEngine(make_stub, deadline_s=0) as engine:
        assert engine.judge('{"hang": true}', []) == Verdict("failed", "no verdict within 0 s")


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", ENGINES)
def test_engines_match_whole_texts(name: str) -> None:
    engine = ENGINES[name]
    if not engine.version:
        pytest.skip(f"{engine.distribution} is not installed")
    texts = [b'{"a":1}', b'{"a":12345}', b'{"a":"1"}', b"{}", b'{"a":1', b'{"a":1}}']
    have = judge(engine.make(), json.dumps(SCHEMA), texts)
    assert have == Verdict("accepted", matched=[True, True, False, False, False, False])


def test_what_plait_refuses_is_named() -> None:
    with pytest.raises(Refused, match="ref"):
        ENGINES["plait"].make()('{"$ref": "http://elsewhere/schema"}')


def suite(path: Path) -> Path:
    """Write an archive of one required file of draft 7, and one that is optional."""
    groups = [{"description": c.name, "schema": c.schema, "tests": c.tests} for c in CASES]
    text = json.dumps(groups).encode()
    with tarfile.open(path, "w:gz") as archive:
        for name in ("tests/draft7/enum.json", "tests/draft7/optional/enum.json"):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return path


def test_the_required_part_of_a_draft_is_read_by_keyword(tmp_path: Path) -> None:
    path = suite(tmp_path / "suite.tar.gz")
    have = [*cases(path, "draft7")]
    assert [(case.group, case.name) for case in have] == [
        ("enum", "enum 0: all kinds"),
        ("enum", "enum 1: refused"),
        ("enum", "enum 2: other"),
    ]
    assert [*cases(path)] == []


def test_the_suite_says_what_is_left_out_and_fails_where_plait_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = {"plait": Engine("plait", make_stub), "none": Engine("not-installed", make_stub)}
    monkeypatch.setattr(commands, "ENGINES", engines)
    output = tmp_path / "new" / "found.json"
    given = {"corpora": [suite(tmp_path / "suite.tar.gz")], "output": output}
    options = SuiteOptions.model_validate(given).model_copy(update={"engines": [*engines]})

    code = commands.run_suite(options)

    assert code == 1
    found = json.loads(output.read_text())
    (section,) = found["sections"]
    assert section["title"] == "JSON-Schema-Test-Suite, draft7, required"
    assert section["engines"]["plait"]["total"]["wrong"] == 1
    assert found["left_out"] == [
        "none: it is not installed",
        "JSON-Schema-Test-Suite, draft2020-12, required: no such tests",
    ]
    assert output.with_suffix(".md").read_text() == capsys.readouterr().out.removesuffix("\n")
    assert "WRONG: enum 0: all kinds / let through" in output.with_suffix(".md").read_text()


def test_what_plait_accepts_wrongly_counts_in_each_of_its_styles() -> None:
    wrong = {"plait": 1, "plait-open": 2, "xgrammar": 5}
    engines = {name: EngineResult("", Counts(wrong=count), {}) for name, count in wrong.items()}
    sections = [Section("one", engines), Section("another", {"xgrammar": engines["xgrammar"]})]
    assert SuiteReport("", "", this_machine(), sections).wrong == 3


def test_unknown_engines_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_command(StructuredOptions, ["suite", "--engines", "plait,nobody"])
    assert (
        "nobody: not among plait, plait-open, plait-any, plait-standard, llguidance, xgrammar"
        in capsys.readouterr().err
    )
