"""The comparison of two builds: what it sends, what counts as a difference, when it fails."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.compare_builds import requests as kinds
from benchmarks.compare_builds.__main__ import checkout
from benchmarks.compare_builds.answers import Answer, differences, is_reworded, read
from benchmarks.compare_builds.builds import Build
from benchmarks.compare_builds.requests import CAUSAL, CHAT, DIFFUSION, Request, random_requests
from benchmarks.compare_builds.speed import MEASURES, Row, fields_of
from benchmarks.compare_builds.texts import Recorded, Setting, compare, record
from benchmarks.servers import NotInstalled
from benchmarks.turns import Spread
from plait.decoders.contract.registry import methods


def test_a_commit_in_place_of_a_checkout_is_refused_and_told_so(tmp_path: Path) -> None:
    assert checkout(str(tmp_path)) == tmp_path
    with pytest.raises(ArgumentTypeError, match="no folder 1a2b3c; give a checkout, not a commit"):
        checkout("1a2b3c")


@pytest.mark.parametrize("model", [CAUSAL, DIFFUSION])
def test_a_seed_makes_the_same_requests(model: str) -> None:
    have = [random_requests(model, 50, seed=seed) for seed in (1, 1, 2)]
    assert have[0] == have[1]
    assert have[0] != have[2]
    assert [request.is_alone for request in have[0]] == [True] * 25 + [False] * 25


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (CAUSAL, [*kinds.EXACT_DRAFTERS, *kinds.LOSSY_DRAFTERS, "regex", "grammar", "choice"]),
        (CAUSAL, ["response_format", "prediction", "echo", "n", "logprobs", "stop", "logit_bias"]),
        (CAUSAL, ["min_tokens", "repetition_penalty", "stream", "prompt_logprobs", "trace"]),
        (DIFFUSION, [*kinds.UNMASKERS, *kinds.UNMASKING_PARTS, *kinds.CANVAS_CACHES]),
        (DIFFUSION, ["infill", "suffix", "response_format", "stream"]),
    ],
)
def test_requests_are_of_all_kinds(model: str, named: list[str]) -> None:
    text = json.dumps([request.body for request in random_requests(model, 300)])
    assert [name for name in named if f'"{name}"' not in text] == []


def test_the_methods_named_are_those_there_are() -> None:
    known = {name for _, name in methods()} | {"off", "auto"}
    named = {*kinds.EXACT_DRAFTERS, *kinds.LOSSY_DRAFTERS, *kinds.UNMASKERS}
    assert named | {*kinds.UNMASKING_PARTS, *kinds.CANVAS_CACHES} <= known


def test_lossy_drafters_run_alone() -> None:
    found = [r for r in random_requests(CAUSAL, 300) if not r.is_alone]
    text = json.dumps([request.body for request in found])
    assert [name for name in kinds.LOSSY_DRAFTERS if f'"{name}"' in text] == []


def _chunk(index: int, delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": index, "delta": delta, **choice}], "usage": None}


def _streamed(*chunks: dict[str, Any]) -> Answer:
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    headers = {"content-type": "text/event-stream"}
    return read(httpx.Response(200, headers=headers, text=f": wait\n\n{lines}data: [DONE]\n\n"))


def test_it_does_not_matter_how_a_stream_is_cut() -> None:
    usage = {"id": "y", "choices": [], "usage": {"completion_tokens": 3}}
    whole = [_chunk(0, {"content": "abc"}, token_ids=[1, 2, 3], finish_reason="stop")]
    parts = [
        _chunk(0, {"role": "assistant", "content": ""}, finish_reason=None),
        _chunk(1, {"content": "z"}),
        _chunk(0, {"content": "ab"}, token_ids=[1, 2], finish_reason=None),
        _chunk(0, {"content": "c"}, token_ids=[3], finish_reason="stop"),
        usage,
    ]
    want = _streamed(_chunk(1, {"content": "z"}), *whole, usage)
    have = _streamed(*parts)
    assert have.body["choices"]["0"]["delta"]["content"] == "abc"
    assert differences(want, have, is_exact=True) == [
        ".body.choices.0.delta.role: 'absent' -> 'assistant'"
    ]


def _whole(**fields: Any) -> Answer:
    return read(httpx.Response(200, json={"id": "x", "created": 1, "model": "m"} | fields))


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [
        ({"id": "a", "created": 5}, {"id": "b", "created": 6}, []),
        ({"logprob": -1.0}, {"logprob": -1.0000004}, []),
        ({"logprob": -1.0}, {"logprob": -1.001}, [".body.logprob: -1.0 -> -1.001"]),
        ({"text": "a"}, {"text": "b"}, [".body.text: 'a' -> 'b'"]),
        ({"tokens": [1, 2]}, {"tokens": [1]}, [".body.tokens: [1, 2] -> [1]"]),
        ({}, {"more": None}, [".body.more: 'absent' -> None"]),
    ],
)
def test_what_a_client_sees_is_compared(
    before: dict[str, Any], after: dict[str, Any], want: list[str]
) -> None:
    assert differences(_whole(**before), _whole(**after), is_exact=True) == want


@pytest.mark.parametrize(("is_exact", "count"), [(True, 2), (False, 0)])
def test_what_follows_the_clock_counts_only_where_nothing_else_runs(
    is_exact: bool, count: int
) -> None:
    before, after = ({"steps": [1, i], "details": {"cached_tokens": i}} for i in (1, 2))
    assert len(differences(_whole(**before), _whole(**after), is_exact=is_exact)) == count


def _refused(status: int, message: str, kind: str = "invalid_request_error") -> Answer:
    body = {"error": {"message": message, "type": kind}}
    return read(httpx.Response(status, json=body))


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (_refused(400, "other words"), True),
        (_refused(422, "words"), False),
        (_refused(400, "words", "server_error"), False),
        (_whole(), False),
    ],
)
def test_an_error_may_be_reworded_only(have: Answer, want: bool) -> None:
    assert is_reworded(_refused(400, "words"), have) is want


def test_names_that_users_write_may_come_and_not_go() -> None:
    one, other = Recorded([], {"metrics": ["a", "b"]}), Recorded([], {"metrics": ["b", "c"]})
    assert compare((one, other), []).lines == ["metrics that are no more: a"]


def test_an_answer_that_is_missing_is_a_difference() -> None:
    request = Request("0", CHAT, {}, is_alone=True, is_exact=True)
    have = compare((Recorded([_whole()]), Recorded([])), [request])
    assert have.lines == ["0 of 1 requests were answered"]


def test_a_build_that_does_not_start_is_a_difference(tmp_path: Path) -> None:
    executable = tmp_path / ".venv" / "bin" / "plait"
    build = Build("after", tmp_path)
    with pytest.raises(NotInstalled, match="make dev"):
        build.command([])
    executable.parent.mkdir(parents=True)
    executable.write_text("#!/bin/sh\nexit 3\n")
    executable.chmod(0o755)
    have = record(build, Setting([], CAUSAL), [], tmp_path)
    assert "ended with 3" in have.fault
    assert compare((Recorded([]), have), []).lines == [have.fault]


@pytest.mark.parametrize(
    ("unit", "before", "after", "is_bad"),
    [
        ("tok/s", 100, 97, True),
        ("tok/s", 100, 99, False),
        ("ms", 100, 97, False),
        ("ms", 100, 103, True),
        ("MiB", 100, 104, True),
        ("MiB", 100, 90, False),
    ],
)
def test_slower_and_larger_is_bad(unit: str, before: float, after: float, is_bad: bool) -> None:
    assert Row("row", unit, [before], [after]).is_bad is is_bad


def test_what_counts_is_the_ratio_of_a_repetition() -> None:
    row = Row("row", "tok/s", [100, 200, 400], [99, 198, 404])
    assert row.ratio == Spread(0.99, 0.99, 1.01)
    slower = Row("row", "tok/s", [100, 200, 400, 10, 10], [97, 194, 388, 20, 20])
    assert slower.is_bad, "the machine was twice as fast in two of the repetitions"
    assert Row("row", "MiB", [100], [104]).ratio.median == pytest.approx(1.04)
    assert Row("row", "ms", [100], [50]).ratio.median == pytest.approx(2)


def test_a_server_that_is_busy_when_it_should_idle_is_named() -> None:
    assert "idle server used 50%" in str(Row("row", "ms", [1], [1], idle=0.5))
    assert "idle" not in str(Row("row", "ms", [1], [1], idle=0.01))


@pytest.mark.parametrize("title", MEASURES)
def test_drafts_are_off_unless_the_row_is_about_them(title: str) -> None:
    is_about = "drafts" in title or "copy" in title
    first, second = fields_of(title, 0), fields_of(title, 1)
    assert (first.get("decoding") == {"drafter": "off"}) is not is_about
    assert (first.get("cache_salt") != second.get("cache_salt")) is is_about, "nothing is learned"
