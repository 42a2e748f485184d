"""The judge of replayed cases: what it lets pass, and what it calls by name."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.cases import (
    EXPECTED,
    Case,
    Expectation,
    Options,
    Outcome,
    Reply,
    answers,
    continues,
    either,
    fits,
    is_value,
    judge_start,
    read_cases,
    refused,
    replay,
    run,
    table,
)

CASES = Path(__file__).parents[3] / "shared" / "cases"
SCHEMA = {
    "type": "object",
    "properties": {"when": {"type": "string", "format": "date"}},
    "required": ["when"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def case(name: str = "c", **body: Any) -> Case:
    return Case(name, "F0", "/v1/chat/completions", {"response_format": FORM, **body})


def answer(text: str, *, reason: str = "stop") -> Reply:
    choice = {"message": {"content": text}, "finish_reason": reason}
    return Reply(200, {"choices": [choice]})


def error(message: str, *, param: str | None = None, status: int = 400) -> Reply:
    return Reply(status, {"error": {"message": message, "param": param}})


GOOD = '{"when": "2024-02-29"}'


@pytest.mark.parametrize(
    ("expected", "reply"),
    [
        (answers, answer("anything", reason="length")),
        (fits, answer(GOOD)),
        (is_value({"when": "2024-02-29"}), answer(GOOD)),
        (continues('{"when":'), answer('"2024-02-29"}')),
        (refused(), error("no")),
        (refused(param="a.b", starts="a.b: ", says=("tw..e",)), error("a.b: twice", param="a.b")),
        (either(fits, refused()), error("no")),
        (either(fits, refused()), answer(GOOD)),
    ],
)
def test_what_is_right_passes(expected: Expectation, reply: Reply) -> None:
    assert expected(case(), reply) == ""


@pytest.mark.parametrize(
    ("expected", "reply", "why"),
    [
        (answers, error("busy", status=503), "status 503: busy"),
        (fits, error("busy", status=503), "status 503: busy"),
        (fits, answer(GOOD, reason="length"), "finish_reason is length"),
        (fits, answer(GOOD[:-1]), "not JSON"),
        (fits, answer('{"when": "2023-02-29"}'), "breaks the schema"),
        (fits, answer("{}"), "breaks the schema"),
        (is_value({"when": "2024-03-01"}), answer(GOOD), "the answer is"),
        (continues('{"when":'), answer(GOOD), "not JSON"),
        (refused(), answer(GOOD), "status 200 in place of 400"),
        (refused(), error("no", status=500), "status 500"),
        (refused(param="a"), error("no", param="b"), "param is 'b'"),
        (refused(starts="a: "), error("b: no"), "does not begin"),
        (refused(says=("once", "twice")), error("once"), "says nothing of ['twice']"),
        (either(fits, refused()), error("busy", status=503), "status 503: busy / status 503"),
    ],
)
def test_what_is_wrong_is_told(expected: Expectation, reply: Reply, why: str) -> None:
    assert why in expected(case(), reply)


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (2, "plait: the key a is given twice", ""),
        (None, "", "it starts"),
        (2, "Traceback (most recent call last):\n  a twice", "traceback"),
        (1, "a twice", "status 1 in place of 400"),
        (2, "plait: no", "says nothing of"),
    ],
)
def test_a_start_is_judged_by_its_end(code: int | None, said: str, why: str) -> None:
    have = judge_start(case(), refused(says=("twice",)), code, said)
    assert (why in have) if why else have == ""


def server_of(texts: dict[str, str]) -> httpx.AsyncClient:
    """Return a client of a server that knows the right answer to each of these prompts."""

    def reply(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"tokens": [1, 2, 3]})
        text = texts[json.dumps(body["prompt"])]
        usage = {"prompt_tokens": 3}
        choice = {"text": text, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": usage})

    transport = httpx.MockTransport(reply)
    return httpx.AsyncClient(base_url="http://test", transport=transport)


@pytest.mark.parametrize(("as_ids", "why"), [("yes", ""), ("no", "'no' as token ids")])
async def test_a_prompt_is_compared_with_its_token_ids(as_ids: str, why: str) -> None:
    asked = Case("f03_completion_special", "F3", "/v1/completions", {"model": "m", "prompt": "p"})
    async with server_of({'"p"': "yes", "[1, 2, 3]": as_ids}) as http:
        have = (await replay(http, asked)).why
    assert (why in have) if why else have == ""


async def test_a_case_that_nobody_knows_is_no_success() -> None:
    async with server_of({}) as http:
        assert (await replay(http, case("f99_new"))).why


async def test_a_server_that_is_not_there_fails_every_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = {"fault": "F13", "endpoint": "/v1/chat/completions", "body": {}}
    (tmp_path / "f13_reasoning_none.json").write_text(json.dumps(raw))
    assert await run(Options(tmp_path, url="http://127.0.0.1:1")) == 1
    assert "0 of 1 end as they should" in capsys.readouterr().out
    assert await run(Options(tmp_path, only="f14")) == 1  # nothing was asked at all


def test_the_table_has_a_line_for_each() -> None:
    text = table([Outcome(case("one"), "", 0.1), Outcome(case("another"), "so\nit is", 2.0)])
    lines = text.splitlines()
    assert lines[0].split() == ["one", "F0", "ok", "0.1", "s"]
    assert lines[1].endswith("FAIL    2.0 s  so it is")
    assert lines[2] == "1 of 2 end as they should"


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not on this machine")
def test_every_case_of_the_folder_is_known() -> None:
    cases = read_cases(CASES)
    assert {each.name for each in cases} == EXPECTED.keys()
    assert [each.name for each in read_cases(CASES, "f05_")] == ["f05_outer_strict"]


def test_the_hostile_do_not_have_to_be_answered() -> None:
    """Only the small request behind them counts."""
    small = {"response_format": FORM, "messages": []}
    body = {"hostile_in_parallel": [{"slow": 1}], "then_after_0.5_s": small}
    asked = Case("f19_two_slow_schemas", "F19", "/v1/chat/completions", body)

    def reply(request: httpx.Request) -> httpx.Response:
        if "slow" in json.loads(request.content):
            return httpx.Response(503, json={"error": {"message": "busy"}})
        return httpx.Response(200, json=answer(GOOD).body)

    async def ask() -> Outcome:
        transport = httpx.MockTransport(reply)
        async with httpx.AsyncClient(base_url="http://test", transport=transport) as http:
            return await replay(http, asked)

    assert asyncio.run(ask()).why == ""
