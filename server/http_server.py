"""uvicorn as a library: with our signal handling and logs, and limits on request heads."""

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
CLOSE_GRACE_S = 3  # for responses that are being written when the server stops


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with limits on request heads: their bytes, number of headers, and time.

    The parser itself would buffer a header of any size, for any time (CVE-2025-48956, slow loris).
    The application limits the bodies.
    """

    read_timeout_s: ClassVar[float]

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._head_bytes = 0  # of the head that is being read
        self._is_in_head = True
        self._num_heads = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of the first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timeout."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; refuse a head that has become too large."""
        if self._is_in_head and self._timer is None:
            self._await_head()
        was_in_head, num_heads = self._is_in_head, self._num_heads
        super().data_received(data)
        # A read that completes a head may contain body bytes; it is at most one buffer long anyway.
        if was_in_head and self._num_heads == num_heads:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's headers are too large.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header, unless there are too many."""
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError("too many headers")  # the parser turns it into a 400
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the timeout: the application limits the body."""
        self._is_in_head = False
        self._num_heads += 1
        self._head_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Prepare for the next head of the connection."""
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
        """Install no signal handlers: serve.py has its own."""
        yield

    async def run_on(self, listener: socket.socket) -> None:
        """Serve the listening socket until stop()."""
        await self.serve(sockets=[listener])

    def stop(self, *, at_once: bool) -> None:
        """Close the listener and idle connections; busy ones get CLOSE_GRACE_S unless at_once."""
        self.should_exit = True
        self.force_exit = at_once
