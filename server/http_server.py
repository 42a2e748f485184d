"""uvicorn, run from within: our signals, our logs, and limits on the head of a request."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from plait.server.settings import ApiSettings
from plait.server.telemetry.tracing import App

MAX_HEAD_BYTES = 64 * 2**10  # request line and headers
MAX_HEADERS = 128
CLOSE_GRACE_S = 3  # for answers that are being written when the server stops


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose request heads are bounded in bytes, in number and in time.

    The parser itself would gather a header of any size, for any time (CVE-2025-48956 and the slow
    loris). Bodies are the application's to bound.
    """

    read_timeout_s: ClassVar[float]

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._head_bytes = 0  # of the head that is being read
        self._is_in_head = True
        self._num_heads = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come; refuse a head that has grown too large."""
        if self._is_in_head and self._timer is None:
            self._await_head()
        was_in_head, num_heads = self._is_in_head, self._num_heads
        super().data_received(data)
        # A read that ends a head may hold body bytes, too; it is no larger than one buffer anyway.
        if was_in_head and self._num_heads == num_heads:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's headers are too large.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, unless there are too many."""
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError("too many headers")  # the parser turns it into a 400
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the clock: the application bounds the body."""
        self._is_in_head = False
        self._num_heads += 1
        self._head_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect another head."""
        self._is_in_head = True
        super().on_message_complete()

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self.read_timeout_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class HttpServer(uvicorn.Server):
    """One HTTP server on one listening socket."""

    def __init__(self, app: App, settings: ApiSettings) -> None:
        class Protocol(LimitedProtocol):
            read_timeout_s = settings.read_timeout_s

        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(settings.keep_alive_s),
            timeout_graceful_shutdown=CLOSE_GRACE_S,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: serve.py listens to them."""
        yield

    async def answer(self, listener: socket.socket) -> None:
        """Serve the listening socket until stop()."""
        await self.serve(sockets=[listener])

    def stop(self, *, at_once: bool) -> None:
        """Close the listener and idle connections; give busy ones CLOSE_GRACE_S, or nothing."""
        self.should_exit = True
        self.force_exit = at_once
