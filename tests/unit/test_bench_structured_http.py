"""Structured output over HTTP: what is sent, and what counts as covered, valid and complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.client import ServerFault
from benchmarks.maskbench import Case
from benchmarks.rows import Bench
from benchmarks.structured.answers import Answers, Plan
from benchmarks.structured.coverage import Attempt, Quantiles, Timing, coverage, quantiles, speed
from benchmarks.structured.http_report import ServerResult, results_table
from benchmarks.structured.measuring import (
    COMPILE_METRIC,
    Schema,
    draw_schemas,
    make_schema,
    measure,
    told_compile_ms,
)

PLAN = Plan(outputs=5, streams=2, max_tokens=9, temperature=1.0, seed=3, timeout_s=60)


def schema(name: str, **content: Any) -> Schema:
    return make_schema(Case(name, {"title": name, **content}, [{"valid": True, "data": 1}]))


NUMBER = schema("number", type="integer")
DATE = schema("date", type="string", format="date")


@pytest.mark.parametrize(
    ("judge", "text", "want"),
    [
        (NUMBER, "1", ""),
        (NUMBER, " 1\n", ""),
        (NUMBER, '"1"', "type"),
        (NUMBER, "1 2", "not JSON"),
        (NUMBER, "", "not JSON"),
        (NUMBER, "[1", "not JSON"),
        (schema("any"), "NaN", "not JSON"),
        (schema("cents", multipleOf=0.01), "1.15", ""),
        (schema("cents", multipleOf=0.01), "1.155", "multipleOf"),
        (schema("cents", multipleOf=0.01), "1.1500000000000000000001", "multipleOf"),
        (NUMBER, "-1.5e+1000000000000000000", ""),
        (schema("few", maximum=3), "1E1000000000000000000", "maximum"),
        (schema("few", maximum=3), "1e-1000000000000000000", ""),
        (schema("few", maximum=3), "0e1000000000000000000", ""),
        (schema("pair", items={"minimum": 2}), "[2, 1]", "minimum"),
        (DATE, '"2024-02-29"', ""),
        (DATE, '"2023-02-29"', "format"),
    ],
)
def test_an_answer_is_valid_json_of_its_schema(judge: Schema, text: str, want: str) -> None:
    assert judge.fault(text) == want


def test_schemas_that_cannot_be_judged_are_passed_over() -> None:
    good, bad = [{"valid": True, "data": 1}], [{"valid": False, "data": 1}]
    rows = [
        Case("true", True, good),
        Case("never", {"type": "null"}, bad),
        Case("remote", {"$ref": "http://elsewhere/schema"}, good),
        Case("broken", {"type": "nonsense"}, good),
        *(Case(f"{i}", {"type": "integer"}, good) for i in range(9)),
    ]
    found, passed_over = draw_schemas(rows, 99, seed=1)
    assert sorted(schema.name for schema in found) == [f"{i}" for i in range(9)]
    assert sorted(passed_over) == [
        "no valid instance is known",
        "the schema is no object",
        *["the validator does not take it"] * 2,
    ]
    assert len(draw_schemas(rows, 3, seed=1)[0]) == 3
    names = [[s.name for s in draw_schemas(rows, 99, seed=i)[0]] for i in (1, 1, 2)]
    assert names[0] == names[1] != names[2]


def attempt(name: str, *, is_first: bool = False, **fields: Any) -> Attempt:
    return Attempt(0, name, is_first, **{"outcome": "answered", **fields})


ATTEMPTS = [
    attempt("a", is_first=True, finish_reason="stop", is_valid=True),
    attempt("a", finish_reason="length"),
    attempt("a", finish_reason="stop"),
    attempt("a", outcome="failed", reason="TimeoutError()"),
    attempt("b", is_first=True, finish_reason="length", is_valid=True),
    attempt("c", is_first=True, outcome="refused", reason="400: not"),
    attempt("d", is_first=True, outcome="failed", reason="500: oops"),
]


def test_coverage_counts_refused_schemas_and_compliance_what_ends_with_stop() -> None:
    have = coverage(ATTEMPTS)
    assert (have.schemas, have.accepted) == (4, 2)
    assert have.empirical == pytest.approx((1 / 4 + 1) / 4)
    assert (have.answers, have.valid, have.stopped, have.valid_stopped) == (5, 2, 2, 1)
    assert have.ends == {"stop": 2, "length": 2, "failed": 1}
    assert have.reasons == {"TimeoutError()": 1, "400: not": 1, "500: oops": 1}


def test_a_server_that_accepts_nothing_has_no_coverage() -> None:
    have = coverage(ATTEMPTS[-2:])
    assert (have.schemas, have.accepted, have.empirical, have.answers) == (2, 0, 0.0, 0)
    text = results_table({"s": ServerResult("1", "m", have, speed(ATTEMPTS[-2:]))})
    assert "| compliance, % | - |" in text.splitlines()


def test_times_of_first_requests_stand_apart() -> None:
    first = replace(ATTEMPTS[0], timing=Timing(ttft=30.0, per_token=2.0, compile=10.0))
    later = [replace(ATTEMPTS[1], timing=Timing(ttft=float(i))) for i in range(101)]
    have = speed([first, *later, ATTEMPTS[-1]])
    assert have.compile == Quantiles(1, 10.0, 10.0)
    assert have.first_ttft == Quantiles(1, 30.0, 30.0)
    assert have.later_ttft == Quantiles(101, 50.0, 99.0)
    assert have.later_per_token is None
    assert quantiles([]) is None


Answer = Callable[[httpx.Request], httpx.Response]
METRIC = f"# TYPE {COMPILE_METRIC} histogram\n"


def streamed(text: str, reason: str) -> httpx.Response:
    usage = {"prompt_tokens": 9, "completion_tokens": 5}
    chunks = [
        {"choices": [{"delta": {"content": text}, "finish_reason": None}]},
        {"choices": [{"delta": {}, "finish_reason": reason}]},
        {"choices": [], "usage": usage},
    ]
    content = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return httpx.Response(200, stream=httpx.ByteStream(content.encode()))


class StubServer:
    """Answers by the title of the schema, and counts a quarter of a second for each compile."""

    def __init__(self, *, tells: bool = True) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.tells = tells

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            compiled = sum("response_format" in body for body in self.bodies)
            line = f'{COMPILE_METRIC}_sum{{outcome="compiled"}} {compiled / 4}\n' * (compiled > 0)
            return httpx.Response(200 if self.tells else 404, text=(METRIC + line) * self.tells)
        body = json.loads(request.content)
        self.bodies.append(body)
        form = body.get("response_format")
        title = form["json_schema"]["schema"]["title"] if form else "plain"
        if title == "late":
            chunk = {"error": {"message": "no such format", "code": 400}}
            content = f"data: {json.dumps(chunk)}\n\n".encode()
            return httpx.Response(200, stream=httpx.ByteStream(content))
        if title in ("not", "broken"):
            return httpx.Response(400 if title == "not" else 500, text=title)
        return streamed({"date": '"2024'}.get(title, "1"), "length" if title == "date" else "stop")

    @property
    def asked(self) -> list[str]:
        """The titles of the schemas that were asked for, in order."""
        forms = (body["response_format"] for body in self.bodies if "response_format" in body)
        return [form["json_schema"]["schema"]["title"] for form in forms]


SCHEMAS = [schema("not"), NUMBER, schema("broken"), DATE]


async def run(
    server: StubServer,
    plan: Plan = PLAN,
    schemas: Sequence[Schema] = SCHEMAS,
    journal: Path | None = None,
) -> list[Attempt]:
    transport = httpx.MockTransport(server)
    async with httpx.AsyncClient(base_url="http://peer", transport=transport) as client:
        return await measure(Bench(client, "m"), schemas, plan, Answers(journal, "peer 1", plan))


async def test_each_schema_is_tried_once_and_accepted_ones_as_often_as_wanted() -> None:
    server = StubServer()
    have = await run(server)
    assert [(a.index, a.is_first) for a in have] == [(i, i < 4) for i in range(7)]
    assert [a.outcome for a in have[:4]] == ["refused", "answered", "failed", "answered"]
    assert sum(a.outcome == "answered" for a in have) == PLAN.outputs
    assert server.asked[:4] == ["not", "number", "broken", "date"]
    assert set(server.asked[4:]) == {"number", "date"}
    counts = coverage(have)
    assert (counts.valid, counts.stopped) == (counts.ends["stop"], counts.ends["stop"])
    assert counts.empirical == 1 / 4, "all of one schema's answers, none of the others'"


async def test_a_refusal_within_the_stream_is_one() -> None:
    have = await run(StubServer(), schemas=[schema("late")])
    assert [a.outcome for a in have] == ["refused"]
    assert "no such format" in have[0].reason


async def test_every_server_gets_the_same_requests() -> None:
    bodies = []
    for tells in (True, False):
        server = StubServer(tells=tells)
        await run(server)
        asked = [body for body in server.bodies if "response_format" in body]
        bodies.append(sorted(asked, key=lambda body: int(body["seed"])))
    assert bodies[0] == bodies[1]
    assert len({body["messages"][0]["content"] for body in bodies[0]}) == 7
    assert [body["seed"] for body in bodies[0]] == [*range(3, 10)]
    assert {(body["temperature"], body["max_tokens"]) for body in bodies[0]} == {(1.0, 9)}


async def test_first_requests_sent_together_are_the_same_but_for_their_times() -> None:
    alone, together = StubServer(), StubServer()
    have = await run(together, replace(PLAN, is_alone=False))
    want = await run(alone)
    assert [replace(a, timing=None) for a in have] == [replace(a, timing=None) for a in want]
    assert all(a.timing is None or a.timing.compile is None for a in have)
    assert sorted(map(repr, together.bodies)) == sorted(map(repr, alone.bodies))


async def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    journal = tmp_path / "new" / "answers.jsonl"
    want = await run(StubServer(), journal=journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(want)
    kept = [line for i, line in enumerate(lines) if i not in (1, 5)]
    journal.write_bytes(b"".join(kept))
    server = StubServer()
    have = await run(server, journal=journal)
    assert [a.index for a in have] == [*range(7)]
    assert len(server.asked) == len(lines) - len(kept)
    assert [replace(a, timing=None) for a in have] == [replace(a, timing=None) for a in want]
    assert len(journal.read_bytes().splitlines()) == len(lines)


async def test_answers_to_another_plan_or_schema_are_not_taken(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    await run(StubServer(), journal=journal)
    others = [
        (replace(PLAN, max_tokens=8), SCHEMAS),
        (PLAN, [replace(each, name="other") for each in SCHEMAS]),
    ]
    for plan, schemas in others:
        server = StubServer()
        await run(server, plan, schemas, journal)
        assert len(server.asked) == 7


async def test_the_time_to_compile_is_what_the_server_says() -> None:
    have = await run(StubServer())
    times = [a.timing.compile if a.timing else None for a in have]
    assert times == [None, 250.0, None, 250.0, None, None, None]


async def test_a_server_that_says_nothing_is_sent_a_request_without_a_schema_each_time() -> None:
    server = StubServer(tells=False)
    have = await run(server)
    plain = [body for body in server.bodies if "response_format" not in body]
    assert len(plain) == 1 + len(SCHEMAS)
    prompts = {body["messages"][0]["content"] for body in server.bodies}
    assert len(prompts) == len(server.bodies), "no prefix cache can help"
    assert [a.timing is not None and a.timing.compile is not None for a in have[:4]] == [
        *(False, True, False, True)
    ]


@pytest.mark.parametrize(
    ("status", "text", "want"),
    [
        (200, METRIC, 0.0),
        (200, f'{METRIC}{COMPILE_METRIC}_sum{{outcome="a"}} 1\n', 1000.0),
        (200, "# TYPE other counter\nother_total 3\n", None),
        (200, "<html>", None),
        (404, "", None),
    ],
)
async def test_metrics_that_say_nothing_of_compiling(
    status: int, text: str, want: float | None
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=text))
    async with httpx.AsyncClient(base_url="http://peer", transport=transport) as client:
        assert await told_compile_ms(client) == want


async def test_a_server_without_any_answer_is_not_measured() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(503, text="busy"))
    async with httpx.AsyncClient(base_url="http://peer", transport=transport) as client:
        with pytest.raises(ServerFault, match="busy"):
            await measure(Bench(client, "m"), SCHEMAS, PLAN, Answers(None, "peer", PLAN))
