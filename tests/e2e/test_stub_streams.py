"""Streams to the byte, and what becomes of them when the pool fails or the client misbehaves."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from plait.server.errors import Unavailable
from plait.server.settings import ApiSettings
from plait.server.wire.messages import Delta, GenerateRequest, Started
from tests.fixtures.byte_tokenizer import EOS
from tests.fixtures.running_server import running, stub_app
from tests.fixtures.stub_pool import Event, Script, StubPool

BODY: dict[str, Any] = {
    "model": "stub",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "seed": 5,
}
PATIENCE_S = 20.0
FOREVER_S = 600.0


def playing(*steps: str | Event | float | Exception) -> Script:
    """Return a script: texts become deltas of sequence 0, numbers are pauses, errors are raised."""

    async def script(request: GenerateRequest) -> AsyncIterator[Event]:
        for step in steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, str):
                yield Delta(request.request_id, 0, list(step.encode()))
            else:
                yield step

    return script


def started(cached: int = 0) -> Started:
    return Started("", cached, time.monotonic())


def ended(reason: Any = "stop", *, index: int = 0, stop_token: int | None = EOS) -> Delta:
    return Delta("", index, [], finish_reason=reason, stop_token=stop_token)


def pool_of(*scripts: Script) -> StubPool:
    pool = StubPool()
    pool.scripts.extend(scripts)
    return pool


def masked(stream: bytes) -> list[str]:
    """Return the lines of a stream with what differs each time replaced."""
    text = re.sub(r'"id":"(chatcmpl|cmpl)-[0-9a-f]{32}"', r'"id":"\1"', stream.decode())
    return re.sub(r'"created":\d+', '"created":0', text).split("\n\n")


def post(pool: StubPool, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    with running(stub_app(pool)) as url:
        return httpx.post(url + path, json=BODY | fields, timeout=PATIENCE_S)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do; fail when patience ends."""
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.005)


HEAD = (
    'data: {"id":"chatcmpl","created":0,"model":"stub","system_fingerprint":"fp_stub","choices":['
)
TAIL = '],"object":"chat.completion.chunk","service_tier":"default"'
USAGE = (
    '{"prompt_tokens":21,"completion_tokens":4,"total_tokens":25,'
    '"prompt_tokens_details":{"cached_tokens":16,"audio_tokens":0},'
    '"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    '"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
)


def chunk(delta: str, reason: str = "null", rest: str = "") -> str:
    choice = f'{{"index":0,"delta":{delta},"finish_reason":{reason},"logprobs":null}}'
    return f"{HEAD}{choice}{TAIL}{rest}}}"


ROLE = '{"role":"assistant","content":"","refusal":null}'


def test_chat_stream_to_the_byte() -> None:
    response = post(pool_of(playing(started(16), "he", "y", ended())))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-plait-seed"] == "5"
    assert masked(response.content) == [
        chunk(ROLE, rest=',"seed":5'),
        chunk('{"content":"he"}'),
        chunk('{"content":"y"}'),
        chunk("{}", '"stop"'),
        "data: [DONE]",
        "",
    ]


def test_chat_stream_with_usage_to_the_byte() -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}}
    response = post(pool_of(playing(started(16), "hey", ended())), **options)
    null = ',"usage":null'
    assert masked(response.content) == [
        chunk(ROLE, rest=f'{null},"seed":5'),
        chunk('{"content":"hey"}', rest=null),
        chunk("{}", '"stop"', null),
        f'{HEAD}{TAIL},"usage":{USAGE}}}',
        "data: [DONE]",
        "",
    ]


def test_completion_stream_to_the_byte() -> None:
    pool = pool_of(playing(started(), "hey", ended("length", stop_token=None)))
    with running(stub_app(pool)) as url:
        body = {"model": "stub", "prompt": "hi", "stream": True, "seed": 5}
        response = httpx.post(f"{url}/v1/completions", json=body)
    head = HEAD.replace("chatcmpl", "cmpl")
    tail = '],"object":"text_completion"'
    assert masked(response.content) == [
        f'{head}{{"index":0,"text":"hey","finish_reason":null,"logprobs":null}}{tail},"seed":5}}',
        f'{head}{{"index":0,"text":"","finish_reason":"length","logprobs":null}}{tail}}}',
        "data: [DONE]",
        "",
    ]


def test_characters_and_stop_strings_are_never_cut() -> None:
    fox = "狐".encode()
    halves = [Delta("", 0, list(part)) for part in (fox[:1], fox[1:])]
    pool = pool_of(playing(started(), "a", *halves, "b", "ST", "OP", "never"))
    response = post(pool, stop="STOP")
    deltas = [json.loads(line[6:]) for line in masked(response.content)[:-2]]
    have = [chunk["choices"][0]["delta"].get("content") for chunk in deltas]
    assert have == ["", "a", "狐", "b", None]
    assert deltas[-1]["choices"][0]["finish_reason"] == "stop"
    assert pool.aborted == [(pool.requests[0].request_id, 0)]


def test_error_within_a_stream_is_its_last_event() -> None:
    response = post(pool_of(playing(started(), "he", Unavailable("The worker died."))))
    assert response.status_code == 200
    *_, last, end = masked(response.content)
    assert json.loads(last.removeprefix("data: ")) == {
        "error": {
            "message": "The worker died.",
            "type": "server_error",
            "param": None,
            "code": "service_unavailable",
        }
    }
    assert end == ""


@pytest.mark.parametrize(("reason", "status"), [("deadline", 504), ("abort", 503), ("error", 500)])
@pytest.mark.parametrize("streams", [False, True])
def test_inner_reasons_are_errors_and_never_leak(reason: str, status: int, streams: bool) -> None:
    response = post(pool_of(playing(ended(reason))), stream=streams)
    if streams:
        assert response.status_code == 200
        assert '"error":{' in response.text
        assert "[DONE]" not in response.text
    else:
        assert response.status_code == status
    assert f'"finish_reason":"{reason}"' not in response.text


def test_error_before_the_first_event_is_an_http_error() -> None:
    response = post(pool_of(playing(Unavailable("No worker is up."))))
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "No worker is up."
    assert int(response.headers["retry-after"]) >= 1


def test_an_answer_that_just_ends_is_an_error() -> None:
    response = post(pool_of(playing(started(), "he")), stream=False)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"


def test_comments_keep_a_silent_stream_alive() -> None:
    pool = pool_of(playing(0.3, started(), "he", 0.3, ended()))
    settings = ApiSettings(sse_comment_s=0.05)
    with running(stub_app(pool, settings)) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json=BODY)
    events = masked(response.content)
    comments = [place for place, event in enumerate(events) if event == ": keep-alive"]
    content = events.index(chunk('{"content":"he"}'))
    assert comments[0] == 0
    assert comments[-1] > content
    assert [event for event in events if not event.startswith(":")][-2:] == ["data: [DONE]", ""]


def test_error_after_comments_is_an_event() -> None:
    pool = pool_of(playing(0.2, Unavailable("No worker is up.")))
    with running(stub_app(pool, ApiSettings(sse_comment_s=0.05))) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json=BODY)
    assert response.status_code == 200
    assert json.loads(masked(response.content)[-2].removeprefix("data: "))["error"]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("begins", [False, True])
def test_a_client_that_leaves_frees_its_request(streams: bool, begins: bool) -> None:
    steps = (started(), "he", FOREVER_S) if begins else (FOREVER_S,)
    pool = pool_of(playing(*steps))
    with running(stub_app(pool)) as url, _sent(url, BODY | {"stream": streams}) as connection:
        until(lambda: pool.running == 1)
        if streams and begins:
            assert connection.recv(10)
        connection.close()
        until(lambda: pool.running == 0)
    assert pool.closed_early == [pool.requests[0].request_id]


def test_all_prompts_end_with_one_that_fails() -> None:
    pool = pool_of(playing(started(), FOREVER_S), playing(started(), Unavailable("died")))
    with running(stub_app(pool)) as url:
        body = {"model": "stub", "prompt": ["a", "b"]}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 503
        until(lambda: pool.running == 0)


def test_two_hundred_clients_that_leave_cost_nothing() -> None:
    pool = pool_of(*[playing(started(), "he", FOREVER_S)] * 200)
    with running(stub_app(pool)) as url:
        connections = [_sent(url, BODY) for _ in range(200)]
        until(lambda: pool.running == 200)
        for connection in connections:
            connection.close()
        until(lambda: pool.running == 0)
        assert httpx.get(f"{url}/health").status_code == 200
    assert len(pool.closed_early) == 200


def test_a_slow_reader_is_dropped() -> None:
    async def torrent(request: GenerateRequest) -> AsyncIterator[Event]:
        yield started()
        while True:
            yield Delta(request.request_id, 0, list(b"x" * 4096))

    pool = pool_of(torrent)
    app = stub_app(pool, ApiSettings(write_timeout_s=0.3))
    with running(app, send_buffer=8192) as url, _sent(url, BODY, receive_buffer=4096):
        until(lambda: pool.running == 1)
        until(lambda: pool.running == 0)
    assert pool.closed_early == [pool.requests[0].request_id]


def _sent(url: str, body: dict[str, Any], *, receive_buffer: int | None = None) -> socket.socket:
    """Return a connection on which a request has been sent and nothing was read."""
    address = urlsplit(url)
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(PATIENCE_S)
    connection.connect((address.hostname, address.port))
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)
    return connection
