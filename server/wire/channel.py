"""The wire between the pool and a worker: MessagePack by msgspec over a ZeroMQ ipc socket.

One PAIR socket on each side, the pool's end bound in a directory that only its user can enter.
Every message is decoded into one of the types of messages.py; nothing is ever pickled.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import msgspec
import zmq
import zmq.asyncio

from plait.server.wire.messages import Command, Report

# Commands that may wait for a worker that does not read. The pool admits fewer requests than this,
# so a full pipe means a hung worker, and its heartbeat will tell.
MAX_UNREAD_COMMANDS = 8192
# A worker's last words have this long to leave its process.
LINGER_MS = 1000

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


class SendError(Exception):
    """The other end is gone, or has stopped reading."""


class PoolChannel:
    """The pool's end of one worker's socket, on the running event loop."""

    def __init__(self, context: zmq.asyncio.Context, path: str) -> None:
        self._socket = context.socket(zmq.PAIR)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, MAX_UNREAD_COMMANDS)
        self._socket.bind(f"ipc://{path}")

    def send(self, command: Command) -> None:
        """Hand a command to the socket, at once.

        Raises:
            Unsent: no worker is connected, or it has stopped reading.
        """
        # Through the asyncio socket although it doesn't wait: ZeroMQ announces a report only once,
        # and a send that meets the announcement must pass it on to the one who waits in receive().
        sent = asyncio.ensure_future(self._socket.send(_encoder.encode(command), zmq.NOBLOCK))
        if isinstance(error := sent.exception(), zmq.Again):
            raise SendError from error
        sent.result()

    async def receive(self) -> Report:
        """Return the next report."""
        return _reports.decode(await self._socket.recv())

    def close(self) -> None:
        """Close the socket; unsent commands are dropped."""
        self._socket.close()


class WorkerChannel:
    """The worker's end: synchronous, used by its one loop."""

    def __init__(self, path: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set(zmq.LINGER, LINGER_MS)
        self._socket.connect(f"ipc://{path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._context.term()

    def send(self, report: Report) -> None:
        """Send a report; waits while the pool is far behind."""
        self._socket.send(_encoder.encode(report))

    def receive(self, wait_s: float) -> list[Command]:
        """Return all commands that are there, after waiting up to wait_s for a first one."""
        commands: list[Command] = []
        if not self._socket.poll(int(wait_s * 1000)):
            return commands
        while True:
            try:
                commands.append(_commands.decode(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return commands
