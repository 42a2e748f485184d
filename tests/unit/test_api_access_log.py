"""The access log says what has become of each request: outcome, error, model, tokens, times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from plait.server.api.app import create_app
from plait.server.errors import Internal, Unavailable
from plait.server.settings import ApiSettings, TelemetrySettings
from plait.server.telemetry.telemetry import Telemetry
from plait.server.wire.messages import Delta, GenerateRequest, Started
from tests.fixtures.stub_pool import StubPool

CHAT = {"model": "stub", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
LOGGING = TelemetrySettings(access_log=True)


async def line_of(
    pool: StubPool, method: str = "POST", path: str = "/v1/chat/completions", **options: Any
) -> dict[str, Any]:
    """Return the access line of one request."""
    app = create_app(ApiSettings(api_keys=options.pop("keys", ())), pool, Telemetry(LOGGING))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    with capture_logs() as lines:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.request(method, path, **options)
    found = [dict(line) for line in lines if line["event"] == "request"]
    assert len(found) == 1
    return found[0]


async def broken(request: GenerateRequest) -> AsyncIterator[Started | Delta]:
    yield Started(request.request_id, 0, 0.0)
    yield Delta(request.request_id, 0, [104])
    raise Unavailable("The worker that ran this request has ended. Please retry.")


async def failing(request: GenerateRequest) -> AsyncIterator[Started | Delta]:
    raise Internal("The engine failed while it ran this request.")
    yield


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_has_its_model_tokens_times_and_end(stream: bool) -> None:
    line = await line_of(StubPool(), json=CHAT | {"stream": stream, "n": 2})
    assert (line["status"], line["outcome"], line["model"]) == (200, "ok", "stub")
    assert line["completion_tokens"] == 6 and line["prompt_tokens"] > 10
    assert line["finish_reason"] == "length,length"
    assert 0 <= line["ttft"] <= line["seconds"] + 1
    assert "error" not in line and "hi" not in map(str, line.values())


async def test_a_refusal_has_its_code_field_and_message() -> None:
    line = await line_of(StubPool(), json=CHAT | {"max_tokens": 10**6})
    assert (line["status"], line["outcome"]) == (400, "refused")
    assert (line["code"], line["param"]) == ("context_length_exceeded", "max_tokens")
    assert line["error"].startswith("This model's context has 2048 tokens")


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"json": CHAT, "keys": ("sk",)}, 401, "invalid_api_key"),
        ({"path": "/v1/answers", "json": CHAT}, 404, "not_found"),
        ({"json": CHAT | {"temprature": 1}}, 400, "unknown_parameter"),
        ({"content": b"x"}, 415, "unsupported_media_type"),
    ],
)
async def test_every_way_to_refuse_is_told(options: dict[str, Any], status: int, code: str) -> None:
    line = await line_of(StubPool(), **options)
    assert (line["status"], line["outcome"], line["code"]) == (status, "refused", code)
    assert line["error"]


async def test_a_stream_that_breaks_is_no_success() -> None:
    pool = StubPool()
    pool.scripts.append(broken)
    line = await line_of(pool, json=CHAT | {"stream": True})
    assert (line["status"], line["outcome"], line["code"]) == (503, "failed", "service_unavailable")
    assert line["completion_tokens"] == 1 and "finish_reason" not in line


async def test_a_fault_is_told_with_what_the_client_got() -> None:
    pool = StubPool()
    pool.scripts.append(failing)
    line = await line_of(pool, json=CHAT)
    assert (line["status"], line["outcome"]) == (500, "failed")


async def test_a_client_that_leaves_a_stream_is_told() -> None:
    pool = StubPool()
    left = asyncio.Event()

    async def endless(request: GenerateRequest) -> AsyncIterator[Started | Delta]:
        yield Started(request.request_id, 0, 0.0)
        yield Delta(request.request_id, 0, [104])
        left.set()
        await asyncio.Event().wait()

    pool.scripts.append(endless)
    app = create_app(ApiSettings(), pool, Telemetry(LOGGING))
    body = httpx.Request("POST", "http://test", json=CHAT | {"stream": True}).read()
    messages = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    with capture_logs() as lines:
        await app(scope, receive, send)
    line = next(line for line in lines if line["event"] == "request")
    assert (line["status"], line["outcome"], line["completion_tokens"]) == (499, "client_left", 1)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_answer_without_a_body_has_ended_too(method: str) -> None:
    line = await line_of(StubPool(), method, "/v1/models")
    assert (line["status"], line["outcome"]) == (200, "ok")
