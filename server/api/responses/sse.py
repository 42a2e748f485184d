"""Server-sent events, sent to a client that may be slow, gone, or behind a proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from plait.server.api.disconnect import ClientDisconnected, cancel_on_disconnect
from plait.server.api.errors_http import error_body
from plait.server.api.request_state import note_failure
from plait.server.errors import ServerError
from plait.server.settings import ApiSettings
from plait.server.telemetry.metrics import Metrics

COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def sse_event(data: bytes) -> bytes:
    """Return one event; `data` is JSON without line breaks."""
    return b"data: " + data + b"\n\n"


class EventStreamResponse(Response):
    """Sends events as they arrive, comments in the pauses, and stops when the client stops reading.

    The status line waits for the first event: an error raised before it is an ordinary HTTP error.
    If there is none within sse_comment_s, the stream begins with a comment, because proxies and
    clients close connections on which nothing arrives. A client that disconnects or does not read
    for write_timeout_s ends the stream. `events` is closed in any case: the generation is aborted.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        settings: ApiSettings,
        metrics: Metrics,
        *,
        headers: Mapping[str, str],
    ) -> None:
        fixed = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(None, headers={**fixed, **headers})
        del self.headers["content-length"]
        self._events = events
        self._settings = settings
        self._metrics = metrics
        self._has_started = False
        self._failure: ServerError | None = None  # that ended the stream
        self._last_sent = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events (ASGI)."""
        try:
            with self._metrics.sse_clients.track_inprogress():
                await cancel_on_disconnect(receive, self._run(send))
            if self._failure is not None:
                note_failure(scope, self._failure)
        except ClientDisconnected:
            if not self._has_started:
                raise
        finally:
            await self._events.aclose()

    async def _run(self, send: Send) -> None:
        first = asyncio.ensure_future(anext(self._events))
        try:
            await asyncio.wait({first}, timeout=self._settings.sse_comment_s or None)
            if first.done():
                first.result()
            await self._start(send)
            await self._stream(send, first)
        finally:
            await _cancel(first)

    async def _start(self, send: Send) -> None:
        self._has_started = True
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await self._in_time(send(start))

    async def _stream(self, send: Send, first: asyncio.Future[bytes]) -> None:
        comments = asyncio.ensure_future(self._comment(send))
        try:
            await self._write(send, await first)
            async for data in self._events:
                await self._write(send, data)
        except ServerError as error:
            self._failure = error
            await self._write(send, sse_event(error_body(error)))
        finally:
            await _cancel(comments)
        await self._in_time(send({"type": "http.response.body", "body": b""}))

    async def _comment(self, send: Send) -> None:
        """Write a comment whenever nothing has been written for a while."""
        interval = self._settings.sse_comment_s
        while interval:
            idle = time.monotonic() - self._last_sent
            if idle >= interval:
                await self._write(send, COMMENT)
            else:
                await asyncio.sleep(interval - idle)

    async def _write(self, send: Send, data: bytes) -> None:
        await self._in_time(send({"type": "http.response.body", "body": data, "more_body": True}))
        self._last_sent = time.monotonic()

    async def _in_time(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._settings.write_timeout_s):
                await sending
        except TimeoutError:
            raise ClientDisconnected from None


async def _cancel(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it has ended; its own error, if any, is dropped."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
