"""Replaying logged tokens: what is counted, what is predicted, what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.command_line import run_command
from benchmarks.drafters import DraftersOptions, read_trace, replay, run_drafters, table
from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.registry import MethodError
from plait.server.settings import EngineSettings
from plait.server.telemetry.token_trace import TokenTrace, TracedText
from tests.fixtures.engines import request, run, table_engine


def options(**fields: object) -> DraftersOptions:
    return DraftersOptions.model_validate({"trace": "t.jsonl", "max_draft": 4, **fields})


def test_a_text_that_repeats_its_prompt_is_drafted() -> None:
    """20 tokens: one drawn alone until the look-up has something to match, then four at a time."""
    text = list(range(20))
    found = replay([TracedText([*text, 99], text)], ["n-gram"], options(always=True))
    assert found.tokens == 20
    assert found.accepted.total() == 20 - found.forwards
    assert found.forwards == 2 + 4  # two tokens to match, then 18 by 5, the last of them drawn
    assert found.right_at[0] == found.tried_at[0]


def test_a_text_of_new_tokens_is_not() -> None:
    found = replay([TracedText([1], list(range(2, 30)))], ["n-gram"], options())
    assert (found.forwards, found.drafted.total()) == (28, 0)


def test_gain_is_predicted_from_the_costs() -> None:
    """With free rows the gain is that in passes; with rows that cost like passes there is none."""
    text = list(range(40))
    trace = [TracedText(text, text)]
    free = replay(trace, ["n-gram"], options(costs="1:1000,64:1000", always=True))
    assert free.gain == pytest.approx(free.tokens / free.forwards, rel=0.02)
    dear = replay(trace, ["n-gram"], options(costs="1:1000,64:64000"))
    assert dear.drafted.total() == 0
    assert dear.gain == pytest.approx(1.0, rel=0.02)


def test_what_needs_a_model_is_refused() -> None:
    with pytest.raises(MethodError, match=r"forced can't be replayed.*n-gram"):
        replay([], ["forced"], options())
    with pytest.raises(MethodError, match="no drafter 'nonesuch'"):
        replay([], ["nonesuch"], options())


def test_engine_writes_what_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    host = AutoregressiveDecoder(6)
    engine = table_engine({host.name: host}, settings=EngineSettings(token_trace=str(path)))
    answers = run(engine, [request(f"r{i}", [1, 2, i], 5, cache_salt=f"s{i}") for i in range(3)])
    have = {text.namespace: text for text in read_trace(path)}
    for i in range(3):
        want = answers[f"r{i}", 0].tokens
        assert (have[f"s{i}"].prompt_token_ids, have[f"s{i}"].token_ids) == ([1, 2, i], want)
    assert path.stat().st_mode & 0o077 == 0, "others may read it"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    with TokenTrace(path) as trace:
        trace.write([1, 2, 3, 4], [1, 2, 3, 4], "")
    output = tmp_path / "found.json"
    assert run_drafters(options(trace=path, output=output, drafters="n-gram")) == 0
    assert "| n-gram |" in capsys.readouterr().out
    assert msgspec.json.decode(output.read_bytes())[0]["tokens"] == 4


@pytest.mark.parametrize(
    ("line", "code"), [("{}", 2), ("nonsense", 2), ("", 1)], ids=["fields", "json", "empty"]
)
def test_bad_traces(
    tmp_path: Path, line: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(line)
    assert run_drafters(options(trace=path, drafters="n-gram")) == code
    assert str(path) in capsys.readouterr().err


def test_table_shows_every_stack() -> None:
    text = list(range(10))
    rows = [replay([TracedText(text, text)], ["n-gram"], options(always=True))]
    assert table(rows).splitlines()[2].startswith("| n-gram |")


def test_wrong_options_are_refused_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_command(DraftersOptions, ["t.jsonl", "--max-draft", "65"])
    assert capsys.readouterr().err.startswith("plait: max_draft: ")


def test_options_do_not_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALWAYS", "true")
    assert run_command(DraftersOptions, ["t.jsonl"]).always is False
