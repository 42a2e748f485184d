"""The two ends of the connection between the pool and one worker: a ZeroMQ PAIR socket each.

The pool binds an address and the worker connects to it. codec.py turns messages into bytes; nothing
is ever pickled.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import zmq
import zmq.asyncio

from plait.server.wire.address import Address, parse_address
from plait.server.wire.codec import command_decoder, encode, report_decoder
from plait.server.wire.messages import Command, Report

# Commands that may wait for a worker that does not read. The pool admits fewer requests than this,
# so a full pipe means that the worker hangs, which the missing heartbeat will show.
MAX_UNREAD_COMMANDS = 8192
# When a worker ends, the socket has this long to send its last reports.
LINGER_MS = 1000


class SendError(Exception):
    """The other end is gone, or has stopped reading."""


class PoolChannel:
    """The pool's end of one worker's connection, on the running event loop."""

    def __init__(self, context: zmq.asyncio.Context, address: Address) -> None:
        """Listen.

        Raises:
            zmq.ZMQError: the address can't be bound.
        """
        self._socket = context.socket(zmq.PAIR)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, MAX_UNREAD_COMMANDS)
        self._socket.bind(str(address))
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.address = parse_address(bound.rstrip("\0"))  # with the port, if any was asked for
        self._reports = report_decoder()

    def send(self, command: Command) -> None:
        """Hand a command to the socket, without waiting.

        Raises:
            SendError: no worker is connected, or it has stopped reading.
        """
        # Through the asyncio socket although it doesn't wait: ZeroMQ announces a report only once,
        # and a send that sees the announcement has to pass it on to whoever waits in receive().
        sent = asyncio.ensure_future(self._socket.send(encode(command), zmq.NOBLOCK))
        if isinstance(error := sent.exception(), zmq.Again):
            raise SendError from error
        sent.result()

    async def receive(self) -> Report:
        """Return the next report."""
        return self._reports.decode(await self._socket.recv())

    def close(self) -> None:
        """Close the socket and remove its address; unsent commands are dropped."""
        self._socket.close()
        self.address.remove()


class WorkerChannel:
    """The worker's end: synchronous, used by its one loop."""

    def __init__(self, address: Address) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set(zmq.LINGER, LINGER_MS)
        self._socket.connect(str(address))
        self._commands = command_decoder()

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
        self._socket.send(encode(report))

    def receive(self, wait_s: float) -> list[Command]:
        """Return all commands that have arrived, after waiting up to wait_s for a first one."""
        commands: list[Command] = []
        if not self._socket.poll(int(wait_s * 1000)):
            return commands
        while True:
            try:
                commands.append(self._commands.decode(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return commands
