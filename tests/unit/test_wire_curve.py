"""Connections over TCP: who is let in, and how each end learns that the other is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import zmq
import zmq.asyncio
from msgspec.json import encode

from plait.server.wire import channel as module
from plait.server.wire.address import Address
from plait.server.wire.channel import ConnectionLost, PoolChannel, WorkerChannel
from plait.server.wire.counters import EngineCounters
from plait.server.wire.curve import Credentials, KeyRing, new_key_pair
from plait.server.wire.messages import Shutdown, Stats

STATS = Stats(1, 2, 3, 4, EngineCounters())
WORKER = """
import sys
from msgspec.json import decode
from plait.server.wire.address import parse_address
from plait.server.wire.channel import WorkerChannel
from plait.server.wire.counters import EngineCounters
from plait.server.wire.curve import Credentials
from plait.server.wire.messages import Stats
credentials = decode(sys.argv[2], type=Credentials)
with WorkerChannel(parse_address(sys.argv[1]), credentials) as channel:
    channel.send(Stats(1, 2, 3, 4, EngineCounters()))
    while True:
        channel.receive(60.0)
"""


@pytest.fixture
async def ring() -> AsyncIterator[tuple[zmq.asyncio.Context, KeyRing]]:
    context = zmq.asyncio.Context()
    ring = KeyRing(context)
    yield context, ring
    ring.close()
    context.destroy(linger=0)


def listen(context: zmq.asyncio.Context, ports: str = "*") -> tuple[PoolChannel, str]:
    end = PoolChannel(context, Address("tcp", f"127.0.0.1:{ports}", new_key_pair()))
    assert end.address.keys is not None
    return end, end.address.keys.public


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listen_for_one(ring: tuple[zmq.asyncio.Context, KeyRing]) -> tuple[PoolChannel, Credentials]:
    """Return a listening end, and the credentials of the one worker that it takes."""
    context, keys = ring
    (end, server_key), own = listen(context), new_key_pair()
    keys.admit(server_key, own.public)
    return end, Credentials(server_key, own)


async def connect(end: PoolChannel, shown: Credentials) -> WorkerChannel:
    return await asyncio.to_thread(WorkerChannel, end.address, shown)


async def test_the_admitted_worker_is_let_in(ring: tuple[zmq.asyncio.Context, KeyRing]) -> None:
    end, shown = listen_for_one(ring)
    with await connect(end, shown) as worker:
        worker.send(STATS)
        assert await end.receive() == STATS
        end.send(Shutdown())
        assert await asyncio.to_thread(worker.receive, 5) == [Shutdown()]
    end.close()


@pytest.mark.parametrize("wrong", ["another worker", "a worker of another socket", "forgotten"])
async def test_nobody_else_is(ring: tuple[zmq.asyncio.Context, KeyRing], wrong: str) -> None:
    context, keys = ring
    (end, server_key), (other, other_key) = listen(context), listen(context)
    own, others = new_key_pair(), new_key_pair()
    keys.admit(server_key, own.public)
    keys.admit(other_key, others.public)
    if wrong == "forgotten":
        keys.forget(server_key)
    shown = {"another worker": new_key_pair(), "a worker of another socket": others}
    with pytest.raises(ConnectionLost, match="does not take this worker's keys"):
        await connect(end, Credentials(server_key, shown.get(wrong, own)))
    end.close()
    other.close()


async def test_a_worker_trusts_no_other_server(
    ring: tuple[zmq.asyncio.Context, KeyRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 1.0)
    end, shown = listen_for_one(ring)
    with pytest.raises(ConnectionLost):
        await connect(end, Credentials(new_key_pair().public, shown.own))
    end.close()


async def test_where_nobody_listens_a_worker_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.2)
    nobody = Address("tcp", f"127.0.0.1:{free_port()}")
    shown = Credentials(new_key_pair().public, new_key_pair())
    with pytest.raises(ConnectionLost, match=f"no connection to the server at {nobody} in 0.2 s"):
        await asyncio.to_thread(WorkerChannel, nobody, shown)


async def test_ports_are_those_of_the_range(ring: tuple[zmq.asyncio.Context, KeyRing]) -> None:
    context, _ = ring
    port = free_port()
    end, _ = listen(context, f"{port}-{port}")
    assert end.address.target == f"127.0.0.1:{port}"
    with pytest.raises(OSError, match=f"each of the ports {port}-{port} of 127.0.0.1 is taken"):
        listen(context, f"{port}-{port}")
    end.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
async def test_the_pool_learns_that_a_worker_is_gone(
    ring: tuple[zmq.asyncio.Context, KeyRing], number: signal.Signals
) -> None:
    """A stopped process falls silent as a machine does that is cut off: nothing closes its end."""
    end, shown = listen_for_one(ring)
    arguments = [sys.executable, "-P", "-c", WORKER, str(end.address), encode(shown).decode()]
    with subprocess.Popen(arguments) as process:
        try:
            assert await end.receive() == STATS
            os.kill(process.pid, number)
            async with asyncio.timeout(20):
                await end.wait_lost()
        finally:
            process.kill()
    end.close()


async def test_a_worker_may_be_silent_at_first(
    ring: tuple[zmq.asyncio.Context, KeyRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings before the first message are no messages."""
    monkeypatch.setattr(module, "PING_MS", 10)
    end, shown = listen_for_one(ring)
    receiving = asyncio.ensure_future(end.receive())
    with await connect(end, shown) as worker:
        await asyncio.wait({receiving}, timeout=0.3)
        assert not receiving.done()
        worker.send(STATS)
        assert await receiving == STATS
    end.close()


@pytest.mark.parametrize("way", ["receive", "send"])
async def test_a_worker_learns_that_the_pool_is_gone(
    ring: tuple[zmq.asyncio.Context, KeyRing], way: str
) -> None:
    end, shown = listen_for_one(ring)
    with await connect(end, shown) as worker:
        worker.send(STATS)
        await end.receive()
        end.close()

        def go_on() -> None:
            while True:
                worker.send(STATS) if way == "send" else worker.receive(5)

        with pytest.raises(ConnectionLost, match="is lost"):
            await asyncio.to_thread(go_on)


def test_a_secret_stays_out_of_texts() -> None:
    keys = new_key_pair()
    assert keys.secret not in repr(Credentials("server", keys))
    assert keys.secret not in repr(replace(Address("tcp", "h:1"), keys=keys))
    assert keys.secret not in str(Address("tcp", "h:1", keys))
