"""What may go wrong around the real server, and that it costs nobody else anything.

After each fault the KV blocks are free again and the front end holds no more files than before.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.fixtures.real_server import MODEL, RealServer, real_server
from tests.fixtures.vllm_worker import vllm_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SPARE_FILES = 4  # sockets of connections that the peer has closed and the loop not yet


KINDS = ["native", pytest.param("vllm", marks=pytest.mark.vllm)]


@pytest.fixture(scope="module", params=KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    """A server of its own: these tests kill its worker."""
    options = ("--max-queue", "40", "--write-timeout-s", "2")
    if request.param == "native":
        with real_server(*options) as running:
            yield running
    else:
        with vllm_server(tmp_path_factory.mktemp("vllm"), *options) as running:
            yield running


@pytest.fixture
async def http(server: RealServer) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
        yield client


@pytest.fixture(autouse=True)
def leaves_nothing_behind(server: RealServer) -> Iterator[None]:
    server.wait_until(server.is_idle)
    before = server.open_files()
    yield
    server.wait_ready()
    server.wait_until(server.is_idle)
    server.wait_until(lambda: server.open_files() <= before + SPARE_FILES)


def chat(text: str, max_tokens: int, **fields: Any) -> dict[str, Any]:
    """Return the body of a request that runs to its max_tokens."""
    messages = [{"role": "user", "content": text}]
    fields = {"ignore_eos": "response_format" not in fields, **fields}
    return {"model": MODEL, "messages": messages, "max_tokens": max_tokens, **fields}


async def post(http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body)


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


async def test_killed_worker_fails_its_streams_and_comes_back(
    server: RealServer, http: httpx.AsyncClient
) -> None:
    body = chat("Tell a long story.", 400, stream=True)
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        seen = []
        async for event in events(response):
            seen.append(event)
            if len(seen) == 3:
                server.worker().kill()
    assert seen[-1]["error"]["code"] == "service_unavailable"
    refused = await post(http, chat("Hi", 2))
    assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert int(refused.headers["retry-after"]) >= 1
    server.wait_ready()
    assert (await post(http, chat("Hi", 2))).status_code == httpx.codes.OK


async def test_killed_worker_is_a_retryable_503(
    server: RealServer, http: httpx.AsyncClient
) -> None:
    request = asyncio.create_task(post(http, chat("Tell a long story.", 400)))
    await asyncio.to_thread(
        server.wait_until, lambda: server.metric("vllm:num_requests_running") == 1
    )
    server.worker().kill()
    response = await request
    assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert response.json()["error"]["type"] == "server_error"


async def test_full_queue_is_a_429_with_retry_after(http: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(post(http, chat(f"Number {i}", 24)) for i in range(60)))
    codes = [response.status_code for response in responses]
    assert codes.count(200) == 40
    assert codes.count(429) == 20
    refused = next(response for response in responses if response.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"


async def test_200_clients_that_leave(server: RealServer, http: httpx.AsyncClient) -> None:
    async def leave(i: int) -> None:
        body = chat(f"Story {i}", 500, stream=bool(i % 2))
        request = asyncio.create_task(post(http, body))
        await asyncio.sleep(0.01 * (i % 50))
        request.cancel()

    for first in range(0, 200, 25):
        await asyncio.gather(*(leave(i) for i in range(first, first + 25)))
    await asyncio.to_thread(server.wait_until, server.is_idle)
    assert (await post(http, chat("Hi", 2))).status_code == httpx.codes.OK


async def test_64_mb_body_is_refused_early(http: httpx.AsyncClient) -> None:
    async def flood() -> AsyncIterator[bytes]:
        yield b'{"model": "'
        for _ in range(64):
            yield b"x" * 2**20

    headers = {"content-type": "application/json"}
    response = await http.post("/v1/chat/completions", content=flood(), headers=headers)
    assert response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
    assert response.json()["error"]["code"] == "payload_too_large"


async def test_slow_reader_is_dropped_and_others_go_on(
    server: RealServer, http: httpx.AsyncClient
) -> None:
    """A client that asks for much and reads nothing; long events fill what lies between soon."""
    body = json.dumps(chat("Tell a story.", 900, stream=True, n=8, logprobs=True, top_logprobs=20))
    before = server.metric("vllm:generation_tokens_total")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((host, int(port)))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        reader.sendall(head.encode() + body.encode())
        answers = await asyncio.gather(*(post(http, chat(f"Hi {i}", 8)) for i in range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        await asyncio.to_thread(server.wait_until, server.is_idle)
    assert server.metric("vllm:generation_tokens_total") - before < 8 * 900


async def test_grammar_bomb_is_refused_while_streams_keep_their_pace(
    server: RealServer, http: httpx.AsyncClient
) -> None:
    """Four streams end while three bombs burn; each costs its deadline of CPU and a first try."""
    nested: dict[str, Any] = {"type": "string"}
    for i in range(10):  # doubles each time
        properties = {f"k{i}": nested, "other": nested}
        nested = {"oneOf": [{"type": "object", "properties": properties}, {"type": "object"}]}
    bombs: list[dict[str, Any]] = [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "b", "schema": nested},
            }
        },
        {"structured_outputs": {"regex": "|".join(f"(a{{{i}}}b*){{9,999}}c" for i in range(3000))}},
        {"structured_outputs": {"regex": "(" * 20_000 + "a" + ")*" * 20_000}},
    ]

    async def refuse(fields: dict[str, Any]) -> tuple[int, str]:
        response = await post(http, chat("Hi", 20, ignore_eos=False, **fields))
        return response.status_code, response.text

    before = server.metric("plait_grammar_compiling_seconds_total")
    streams = [asyncio.create_task(post(http, chat(f"Story {i}", 60))) for i in range(4)]
    for code, text in await asyncio.gather(*map(refuse, bombs)):
        assert code == httpx.codes.BAD_REQUEST, text
    assert [response.status_code for response in await asyncio.gather(*streams)] == [200] * 4
    spent = server.metric("plait_grammar_compiling_seconds_total") - before
    assert spent < (5.0 + 0.25) * len(bombs) * 1.1  # a timer's tick late, and the start of each
    good = {"response_format": {"type": "json_object"}}
    assert (await post(http, chat("JSON please", 20, **good))).status_code == httpx.codes.OK
