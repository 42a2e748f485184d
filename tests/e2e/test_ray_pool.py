"""Workers on a Ray cluster of several nodes, all on this machine: what is placed, and what is lost.

Scripted workers stand for models; one test serves a real one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
import zmq.asyncio

from benchmarks.ray_nodes import SLOT, RayNodes, ray_nodes, workers_of
from plait.server.errors import Unavailable
from plait.server.pool.launcher import Launcher
from plait.server.pool.ray.cluster import RayCluster
from plait.server.pool.ray.host import Introduction, WorkerHost
from plait.server.pool.ray.launcher import RayLauncher
from plait.server.pool.ray.weights import WeightsFolder, list_models
from plait.server.pool.worker import WorkerGone
from plait.server.settings import EngineSettings, PoolSettings, RaySettings, Settings
from tests.fixtures import scripted_worker as script
from tests.fixtures.pools import (
    PARTS,
    SCRIPT,
    Running,
    collect,
    request,
    running_pool,
    tokens_of,
    until,
)
from tests.fixtures.real_server import MODEL, real_server
from tests.fixtures.scripted_host import ScriptedHost
from tests.fixtures.vllm_worker import vllm_server

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: plait[ray]"),
    # Of Ray's own code and its processes.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
]
# A client learns within it that its worker is lost, whatever else the machine does; without the
# connection's own watch, that would take a heartbeat's 30 s. benchmarks/ray_pool.py measures it.
FOUND_S = 20.0
PLACED_S = 60.0  # that Ray may take to find another place


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(2, slots=2) as running:
        yield running


class OldHost(ScriptedHost):
    """Has another version of plait than the server."""

    async def introduce(self) -> bytes:
        told = msgspec.json.decode(await super().introduce(), type=Introduction)
        return msgspec.json.encode(msgspec.structs.replace(told, version="0.0.1"))


@asynccontextmanager
async def ray_pool(
    nodes: RayNodes,
    replicas: int = 2,
    host: type[WorkerHost] = ScriptedHost,
    slots: float = 1.0,
    ready_s: float = 60.0,
    engine: EngineSettings | None = None,
) -> AsyncIterator[Running]:
    """Start a pool of scripted workers that take slots."""

    def launchers(
        settings: Settings, folder: Path, context: zmq.asyncio.Context
    ) -> dict[str, Launcher]:
        cluster = RayCluster(settings.pool.ray, settings.telemetry, host)
        return {"native": RayLauncher(cluster, context, settings.pool.ray)}

    settings = PoolSettings(
        pool="ray",
        ray=RaySettings(ray_address=nodes.address, ray_weights="object-store"),
        replicas=replicas,
        restart_backoff_s=0.01,
        ready_timeout_s=ready_s,
    )
    engine = replace(engine or EngineSettings("m"), ray_cpus=0, ray_resources={SLOT: slots})
    parts = replace(PARTS, launchers=launchers)
    async with running_pool(pool=settings, engines=(engine,), parts=parts) as running:
        yield running


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that has ended may not have been taken note of yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_up(running: Running, number: int) -> bool:
    return sum(replica.is_up for replica in running.pool._replicas()) == number


async def endless(running: Running, number: int) -> list[asyncio.Task[float]]:
    """Start streams; each task returns the time at which its stream failed with a 503."""

    async def one(begun: asyncio.Event) -> float:
        with pytest.raises(Unavailable, match="Please retry"):
            async for _ in running.pool.generate("m", request(script.ENDLESS, 10**6)):
                begun.set()
        return time.monotonic()

    events = [asyncio.Event() for _ in range(number)]
    tasks = [asyncio.create_task(one(event)) for event in events]
    async with asyncio.timeout(30):
        await asyncio.gather(*(event.wait() for event in events))
    return tasks


def at(nodes: RayNodes) -> list[list[int]]:
    return [workers_of(node, SCRIPT) for node in nodes.nodes]


async def test_workers_are_spread_and_end_with_the_pool(nodes: RayNodes) -> None:
    async with ray_pool(nodes, replicas=4) as running:
        found = at(nodes)
        assert [len(pids) for pids in found] == [2, 2]
        answers = (collect(running.pool, request(script.PID)) for _ in range(16))
        have = {tokens_of(events)[0] for events in await asyncio.gather(*answers)}
        assert have == {pid for pids in found for pid in pids}
    await until(lambda: not any(is_running(pid) for pids in found for pid in pids), PLACED_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
async def test_a_lost_worker_fails_its_streams_at_once_and_is_replaced(
    nodes: RayNodes, number: signal.Signals
) -> None:
    async with ray_pool(nodes) as running:
        (victim, *_), *_ = at(nodes)
        tasks = await endless(running, 4)
        began = time.monotonic()
        os.kill(victim, number)
        done, others = await asyncio.wait(tasks, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)  # those of the same worker
        assert done, "no stream has failed"
        assert all(task.result() - began < FOUND_S for task in done)
        await until(lambda: all_up(running, 2), PLACED_S)
        await until(lambda: not is_running(victim), PLACED_S)
        assert tokens_of(await collect(running.pool, request(script.COUNT, 3))) == [0, 1, 2]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_a_lost_node_fails_its_streams_and_its_workers_go_elsewhere(nodes: RayNodes) -> None:
    spare = nodes.add(slots=3)
    async with ray_pool(nodes, replicas=3) as running:
        lost = workers_of(spare, SCRIPT)
        assert lost, "no worker is on the node"
        tasks = await endless(running, 9)
        began = time.monotonic()
        nodes.kill(spare)
        failed, others = await asyncio.wait(
            tasks, timeout=FOUND_S, return_when=asyncio.FIRST_COMPLETED
        )
        assert failed, "no stream has failed"
        assert all(task.result() - began < FOUND_S for task in failed)
        await until(lambda: all_up(running, 3), PLACED_S)
        assert sum(len(pids) for pids in at(nodes)) == 3
        assert not any(is_running(pid) for pid in lost), "a worker went on without its node"
        # Until the cluster knows of it, it would place the workers of the next test there.
        await until(lambda: not nodes.is_alive(spare), PLACED_S)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_workers_go_where_the_labels_are(nodes: RayNodes) -> None:
    labelled = nodes.add(slots=2, labels={"zone": "b"})
    async with ray_pool(nodes, engine=EngineSettings("m", ray_labels={"zone": "b"})):
        assert len(workers_of(labelled, SCRIPT)) == 2
        assert at(nodes) == [[], []]
    nodes.cluster.remove_node(labelled)


async def test_without_room_the_operator_learns_what_is_waited_for(nodes: RayNodes) -> None:
    with pytest.raises(WorkerGone, match=r"longer than 2 s; last: waiting for .* 99 slot"):
        async with ray_pool(nodes, slots=99, ready_s=2.0):
            pass


async def test_a_node_with_another_version_is_refused(nodes: RayNodes) -> None:
    with pytest.raises(WorkerGone, match=r"has plait 0\.0\.1, and this server is"):
        async with ray_pool(nodes, host=OldHost):
            pass


async def test_a_model_that_is_only_here_is_copied(nodes: RayNodes, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"weights")
    (manifest,) = list_models(EngineSettings(str(file)))
    copy = WeightsFolder(manifest).path
    try:
        async with ray_pool(nodes, engine=EngineSettings(str(file), "m")) as running:
            assert tokens_of(await collect(running.pool, request(script.COUNT, 2))) == [0, 1]
            assert (copy / "m.gguf").read_bytes() == b"weights"
    finally:
        shutil.rmtree(copy, ignore_errors=True)


async def test_no_request_is_lost_while_workers_are_replaced(nodes: RayNodes) -> None:
    async with ray_pool(nodes, replicas=2) as running:
        before = at(nodes)
        replacing = asyncio.create_task(running.pool.replace_workers())
        while not replacing.done():
            answers = (collect(running.pool, request(script.COUNT, k)) for k in range(1, 5))
            have = [tokens_of(events) for events in await asyncio.gather(*answers)]
            assert have == [list(range(k)) for k in range(1, 5)]
        await replacing
        old, new = ({pid for pids in found for pid in pids} for found in (before, at(nodes)))
        assert len(new) == 2
        assert not old & new


GONE = RayNodes(type("Gone", (), {"address": "127.0.0.1:9"}), [])


async def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(WorkerGone, match=r"can't connect to Ray at 127\.0\.0\.1:9"):
        async with ray_pool(GONE):
            pass


async def test_without_ray_it_says_what_to_install(
    nodes: RayNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerGone, match=r"Ray is not installed: `pip install plait\[ray\]`"):
        async with ray_pool(nodes):
            pass


def placed(nodes: RayNodes) -> tuple[str, ...]:
    """Return the options of a server whose worker takes a slot of these nodes."""
    place = ("--ray-cpus", "0", "--ray-resources", f"{SLOT}=1")
    return ("--pool", "ray", "--ray-address", nodes.address, *place, "--threads", "1")


def complete(url: str) -> int:
    """Return how many tokens a short completion has."""
    asked = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 8, "seed": 7}
    answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=60)
    assert answer.status_code == httpx.codes.OK
    return int(answer.json()["usage"]["completion_tokens"])


def test_a_real_model_is_served_and_stops(nodes: RayNodes) -> None:
    with real_server(*placed(nodes)) as server:
        assert complete(server.url) == 8


@pytest.mark.vllm
def test_a_vllm_worker_runs_on_a_node(nodes: RayNodes, tmp_path: Path) -> None:
    with vllm_server(tmp_path, *placed(nodes)) as server:
        assert complete(server.url) == 8
        found = [workers_of(node, "plait.server.workers.vllm") for node in nodes.nodes]
        assert sorted(len(pids) for pids in found) == [0, 1]
