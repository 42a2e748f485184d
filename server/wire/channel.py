"""The two ends of the connection between the pool and one worker: a ZeroMQ PAIR socket each.

The pool binds an address and the worker connects to it. codec.py turns messages into bytes; nothing
is ever pickled. Over TCP both ends prove who they are (curve.py), and each learns within
PEER_TIMEOUT_MS that the other is gone, even if its machine just falls silent.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from plait.server.wire.address import Address, parse_address
from plait.server.wire.codec import command_decoder, encode, report_decoder
from plait.server.wire.curve import Credentials, authenticate, authenticate_clients
from plait.server.wire.messages import Command, Report

# Commands that may wait for a worker that does not read. The pool admits fewer requests than this,
# so a full pipe means that the worker hangs, which the missing heartbeat will show.
MAX_UNREAD_COMMANDS = 8192
# When a worker ends, the socket has this long to send its last reports.
LINGER_MS = 1000
# Over TCP: how often ZeroMQ's own threads ask whether the peer is there, and how long it may be
# silent. A process that computes answers all the same.
PING_MS, PEER_TIMEOUT_MS = 1000, 3000
CONNECT_TIMEOUT_S = 20.0
_REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _REFUSED


class SendError(Exception):
    """The other end is gone, or has stopped reading."""


class ConnectionLost(Exception):
    """The worker can't reach the pool, or no longer."""


class PoolChannel:
    """The pool's end of one worker's connection, on the running event loop."""

    def __init__(self, context: zmq.asyncio.Context, address: Address) -> None:
        """Listen.

        Raises:
            zmq.ZMQError, OSError: the address can't be bound.
        """
        self._socket = context.socket(zmq.PAIR)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, MAX_UNREAD_COMMANDS)
        self._monitor: zmq.asyncio.Socket | None = None
        if address.transport == "tcp":
            assert address.keys is not None, "what leaves the machine has keys"
            authenticate_clients(self._socket, address.keys)
            _ping(self._socket)
        try:
            _bind(self._socket, address)
        except (OSError, zmq.ZMQError):
            self._socket.close()
            raise
        if address.transport == "tcp":
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        # with the port, if any was asked for
        self.address = replace(parse_address(bound.rstrip("\0")), keys=address.keys)
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
        while True:
            # ZeroMQ announces that a peer is authenticated as if that were a message, where a
            # ping comes before the first one: see findings/zeromq-authenticated-ping.sh.
            with suppress(zmq.Again):
                return self._reports.decode(await self._socket.recv())

    async def wait_lost(self) -> None:
        """Return when the connection to the worker is lost; over ipc, never."""
        if self._monitor is None:
            await asyncio.get_running_loop().create_future()
        else:
            await self._monitor.recv_multipart()

    def close(self) -> None:
        """Close the socket and remove its address; unsent commands are dropped."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        self._socket.close()
        self.address.remove()


class WorkerChannel:
    """The worker's end: synchronous, used by its one loop."""

    def __init__(self, address: Address, credentials: Credentials | None = None) -> None:
        """Connect; over TCP, wait until that is done.

        Raises:
            ConnectionLost: over TCP: the pool does not answer, or takes somebody else.
        """
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set(zmq.LINGER, LINGER_MS)
        self._commands = command_decoder()
        self._monitor: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        if credentials is not None:
            authenticate(self._socket, credentials)
            _ping(self._socket)
            self._monitor = self._socket.get_monitor_socket(_WATCHED)
            self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(str(address))
        if self._monitor is not None:
            try:
                self._wait_connected(self._monitor, address)
            except ConnectionLost:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send what is left, for LINGER_MS at most, and close the socket."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        self._socket.close()
        self._context.term()

    def send(self, report: Report) -> None:
        """Send a report; waits while the pool is far behind.

        Raises:
            ConnectionLost: the pool is gone.
        """
        data = encode(report)
        while True:
            try:
                return self._socket.send(data, zmq.NOBLOCK if self._monitor else 0)
            except zmq.Again:
                self._check_connected()
                self._socket.poll(PING_MS, zmq.POLLOUT)

    def receive(self, wait_s: float) -> list[Command]:
        """Return all commands that have arrived, after waiting up to wait_s for a first one.

        Raises:
            ConnectionLost: the pool is gone.
        """
        commands: list[Command] = []
        ready = dict(self._poller.poll(int(wait_s * 1000)))
        if self._monitor in ready:
            self._check_connected()
        while self._socket in ready:
            try:
                commands.append(self._commands.decode(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
        return commands

    def _wait_connected(self, monitor: zmq.Socket[bytes], address: Address) -> None:
        """Return after the handshake; a refusal is not tried again."""
        until = time.monotonic() + CONNECT_TIMEOUT_S
        while (left_s := until - time.monotonic()) > 0:
            if not monitor.poll(int(left_s * 1000)):
                break
            event = _event(monitor)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
            if event & _REFUSED:
                raise ConnectionLost(f"the server at {address} does not take this worker's keys")
        raise ConnectionLost(f"no connection to the server at {address} in {CONNECT_TIMEOUT_S:g} s")

    def _check_connected(self) -> None:
        while self._monitor is not None and self._monitor.poll(0):
            if _event(self._monitor) & (zmq.EVENT_DISCONNECTED | _REFUSED):
                raise ConnectionLost("the connection to the server is lost")


def _ping(socket: zmq.Socket[Any]) -> None:
    socket.set(zmq.HEARTBEAT_IVL, PING_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, PEER_TIMEOUT_MS)


def _bind(socket: zmq.Socket[Any], address: Address) -> None:
    host, _, ports = address.target.rpartition(":")
    low, separator, high = ports.partition("-")
    if address.transport != "tcp" or not separator:
        socket.bind(str(address))
        return
    try:
        socket.bind_to_random_port(f"tcp://{host}", int(low), int(high) + 1)
    except zmq.ZMQBindError:
        raise OSError(f"each of the ports {ports} of {host} is taken") from None


def _event(monitor: zmq.Socket[bytes]) -> int:
    return parse_monitor_message(monitor.recv_multipart())["event"]
