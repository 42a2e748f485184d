"""Workers of another kind: launched by somebody else, reached over another transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from plait.server.models.catalog import BadModel
from plait.server.pool.worker import WorkerConfig, WorkerGone
from plait.server.settings import EngineSettings
from plait.server.wire.address import parse_address
from plait.server.wire.messages import Delta
from tests.fixtures.pools import PARTS, collect, request, running_pool, tokens_of
from tests.fixtures.thread_worker import ThreadLauncher, ThreadWorker

ENGINES = (EngineSettings("m", worker="thread"),)


async def test_a_pool_serves_workers_of_another_kind_over_tcp() -> None:
    launcher = ThreadLauncher()
    parts = replace(PARTS, launchers=lambda *_: {"thread": launcher})
    async with running_pool(engines=ENGINES, parts=parts) as running:
        events = await collect(running.pool, request(7, prompt=[7, 8, 9]))
        assert tokens_of(events) == [7, 8, 9]
        assert isinstance(events[-1], Delta) and events[-1].finish_reason == "stop"
        (worker,) = launcher.started
        assert worker.config.address.startswith("tcp://127.0.0.1:")
        assert worker.config.engine.worker == "thread"
    assert not worker.is_alive, "the pool has left a worker behind"


async def test_a_lost_worker_of_another_kind_is_launched_again() -> None:
    launcher = ThreadLauncher()
    parts = replace(PARTS, launchers=lambda *_: {"thread": launcher})
    async with running_pool(engines=ENGINES, parts=parts) as running:
        launcher.started[0].kill()
        async with asyncio.timeout(20):
            while len(launcher.started) < 2 or not running.pool.ready().ok:
                await asyncio.sleep(0.01)
        assert tokens_of(await collect(running.pool, request(5))) == [5]
        first, second = (each.config.address for each in launcher.started)
        assert first != second, "a socket has served two workers"


async def test_a_request_arrives_with_instants_of_the_workers_clock() -> None:
    """On one machine both clocks are the same, so nothing may have moved by more than a moment."""
    launcher = ThreadLauncher()
    parts = replace(PARTS, launchers=lambda *_: {"thread": launcher})
    asked = request(3, arrived=time.monotonic() - 2.0, deadline=time.monotonic() + 50.0)
    async with running_pool(engines=ENGINES, parts=parts) as running:
        await collect(running.pool, asked)
    (seen,) = launcher.started[0].engine.seen
    assert seen.deadline == pytest.approx(asked.deadline, abs=1.0)
    assert seen.arrived == pytest.approx(asked.arrived, abs=1.0)


async def test_a_kind_without_a_launcher_is_refused_by_name() -> None:
    engines = (EngineSettings("m", worker="vllm"),)
    with pytest.raises(BadModel, match=r"m: worker 'vllm' would need a launcher.*: native"):
        async with running_pool(engines=engines):
            pass


async def test_a_launcher_that_fails_says_why() -> None:
    class NoRoom(ThreadLauncher):
        async def start(self, config: WorkerConfig, tell: Callable[[str], None]) -> ThreadWorker:
            raise OSError("no room on any node")

    parts = replace(PARTS, launchers=lambda *_: {"thread": NoRoom()})
    with pytest.raises(WorkerGone, match="could not be started: no room on any node"):
        async with running_pool(engines=ENGINES, parts=parts):
            pass


@pytest.mark.parametrize("text", ["ipc:///run/plait/0.sock", "tcp://10.0.0.1:5555"])
def test_addresses_are_what_they_were_written_as(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize("text", ["", "/run/0.sock", "tcp://", "udp://10.0.0.1:1", "ipc:/x"])
def test_other_texts_are_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        parse_address(text)
