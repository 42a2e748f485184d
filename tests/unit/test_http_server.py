"""Request heads are bounded in size, in number of headers and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from plait.server.http_server import MAX_HEAD_BYTES, MAX_HEADERS, HttpServer
from plait.server.serve import bind
from plait.server.settings import ApiSettings
from plait.server.telemetry.tracing import Receive, Scope, Send

GET = b"GET / HTTP/1.1\r\nhost: x\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    headers = [(b"content-length", str(len(str(size))).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": str(size).encode()})


@asynccontextmanager
async def running(
    read_timeout_s: float = 30.0,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Run the server and open one connection to it."""
    settings = ApiSettings(port=0, read_timeout_s=read_timeout_s)
    listener = bind(settings)
    server = HttpServer(app, settings)
    answering = asyncio.create_task(server.run_on(listener))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        server.stop(at_once=False)
        await answering


async def answer(reader: asyncio.StreamReader, size: int = 1) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    return head.split(b"\r\n")[0], await reader.readexactly(size)


async def test_requests_with_bodies_share_a_connection() -> None:
    async with running() as (reader, writer):
        body = b"x" * (2 * MAX_HEAD_BYTES)
        for _ in range(2):
            writer.write(GET + f"content-length: {len(body)}\r\n\r\n".encode() + body)
            assert await answer(reader, 6) == (b"HTTP/1.1 200 OK", b"131072")


async def test_the_server_does_not_say_what_it_runs_on() -> None:
    async with running() as (reader, writer):
        writer.write(GET + b"\r\n")
        assert b"server:" not in await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
async def test_a_huge_header_is_refused(end: bytes) -> None:
    async with running() as (reader, writer):
        writer.write(GET + b"x: " + b"y" * 8 * MAX_HEAD_BYTES + end)
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")


async def test_many_headers_are_refused() -> None:
    async with running() as (reader, writer):
        writer.write(GET + b"a: b\r\n" * MAX_HEADERS + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
        assert b"connection: close" in await reader.read()


@pytest.mark.parametrize("beginning", [b"", GET])
async def test_a_slow_head_is_not_waited_for(beginning: bytes) -> None:
    async with running(read_timeout_s=0.1) as (reader, writer):
        writer.write(beginning)
        async with asyncio.timeout(10):
            assert await reader.read() == b""


async def test_a_slow_second_head_is_not_waited_for_either() -> None:
    async with running(read_timeout_s=0.1) as (reader, writer):
        writer.write(GET + b"\r\n")
        assert await answer(reader) == (b"HTTP/1.1 200 OK", b"0")
        writer.write(GET)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
