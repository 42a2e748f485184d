"""Where a worker of a Ray cluster begins: on the machine that Ray finds, or on the next one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import msgspec
import pytest
import zmq.asyncio

from plait.server.pool.ray.host import Introduction
from plait.server.pool.ray.launcher import PLACES, RayLauncher, RayWorker
from plait.server.pool.worker import WorkerConfig
from plait.server.settings import EngineSettings, RaySettings, TelemetrySettings
from plait.server.wire.curve import new_key_pair


class LostError(Exception):
    """A machine is gone."""


class Remote:
    """A method of a host, as Ray shows it: raises an error, or returns a value."""

    def __init__(self, outcome: object) -> None:
        self._outcome = outcome

    async def remote(self, *_: object) -> object:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class Host:
    """A host on a machine that is lost, or of a worker that runs to its end."""

    def __init__(self, *, is_lost: bool) -> None:
        told = Introduction(version("plait"), new_key_pair().public, "node")
        self.introduce = Remote(LostError("it died") if is_lost else msgspec.json.encode(told))
        self.run = Remote("exit code 0")
        self.cpu_seconds = Remote(0.5)


class Cluster:
    """A cluster whose first machines are lost."""

    failure = LostError
    own_address = "127.0.0.1"

    def __init__(self, num_lost: int) -> None:
        self.num_lost = num_lost
        self.placed: list[Host] = []
        self.killed: list[Host] = []

    async def connect(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def place(self, engine: EngineSettings) -> Host:
        self.placed.append(Host(is_lost=len(self.placed) < self.num_lost))
        return self.placed[-1]

    def kill(self, host: Host) -> None:
        self.killed.append(host)


@asynccontextmanager
async def started(cluster: Any, told: list[str]) -> AsyncIterator[RayWorker]:
    with zmq.asyncio.Context() as context:
        launcher = RayLauncher(cluster, context, RaySettings())
        address = await launcher.new_address()
        assert address.keys is not None
        engine, key = EngineSettings("m"), address.keys.public
        config = WorkerConfig(engine, TelemetrySettings(), server_key=key)
        try:
            yield await launcher.start(config, told.append)
        finally:
            await launcher.close()


@pytest.mark.parametrize("num_lost", [0, 1, PLACES - 1])
async def test_a_worker_whose_machine_is_lost_before_it_starts_is_placed_anew(
    num_lost: int,
) -> None:
    cluster, told = Cluster(num_lost), list[str]()
    async with started(cluster, told) as worker:
        assert await worker.wait() == "exit code 0"
        worker.kill()
    assert len(cluster.placed) == num_lost + 1
    assert told == ["waiting for a machine with 1 CPU"] * (num_lost + 1) + ["starting on node"]
    assert cluster.killed == cluster.placed[-1:], "the one that it ran on"


async def test_a_cluster_that_loses_every_machine_ends_the_worker() -> None:
    cluster = Cluster(num_lost=PLACES)
    async with started(cluster, []) as worker:
        assert await worker.wait() == "Ray has ended the worker: LostError: it died"
    assert len(cluster.placed) == PLACES


async def test_a_worker_that_was_killed_is_not_placed_anew() -> None:
    cluster = Cluster(num_lost=1)
    async with started(cluster, []) as worker:
        worker.kill()
        assert await worker.wait() == "Ray has ended the worker: LostError: it died"
    assert len(cluster.placed) == 1
