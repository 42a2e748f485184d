"""Draft stores through the pool: every worker is asked, and what is kept outlives them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from plait.server.errors import BadRequest, NotFound, Unavailable
from plait.server.settings import EngineSettings, PoolSettings
from plait.server.wire.messages import DraftStoreTask
from tests.fixtures import scripted_worker as script
from tests.fixtures.pools import collect, request, running_pool, tokens_of

IMPORT = DraftStoreTask("t1", "import", "a", [[1, 2, 3], [4, 5, 6]])
LOOK = DraftStoreTask("t2", "inspect", "a")


async def test_every_worker_does_it() -> None:
    async with running_pool(pool=PoolSettings(replicas=2)) as running:
        reports = await running.pool.draft_store("m", IMPORT)
        assert [(each.affected, each.tokens) for each in reports] == [(6, 6)] * 2
        many = (DraftStoreTask(f"look{i}", "inspect", "a") for i in range(20))
        looked = await asyncio.gather(*(running.pool.draft_store("m", each) for each in many))
        assert {each.tokens for reports in looked for each in reports} == {6}


async def test_what_workers_refuse_is_raised() -> None:
    async with running_pool() as running:
        with pytest.raises(BadRequest, match="--draft-store"):
            await running.pool.draft_store("m", DraftStoreTask("t", "save"))
        with pytest.raises(NotFound):
            await running.pool.draft_store("other", LOOK)
        await running.pool.drain(0)
        with pytest.raises(Unavailable):
            await running.pool.draft_store("m", LOOK)


async def test_a_worker_that_dies_leaves_nobody_waiting() -> None:
    async with running_pool(pool=PoolSettings(restart_backoff_s=60)) as running:
        pid = tokens_of(await collect(running.pool, request(script.PID)))[0]
        os.kill(pid, signal.SIGSTOP)
        asking = asyncio.create_task(running.pool.draft_store("m", LOOK))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            await asking
        with pytest.raises(Unavailable):  # nor does one that has died
            await running.pool.draft_store("m", LOOK)


async def test_each_worker_keeps_its_store_over_restarts(tmp_path: Path) -> None:
    engine = EngineSettings(model="m", served_name="org/m", draft_store=str(tmp_path))
    two = PoolSettings(replicas=2)
    async with running_pool(pool=two, engines=(engine,)) as running:
        await running.pool.draft_store("org/m", IMPORT)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["org%2Fm.0.drafts", "org%2Fm.1.drafts"]
    async with running_pool(pool=two, engines=(engine,)) as running:
        reports = await running.pool.draft_store("org/m", LOOK)
        assert [each.tokens for each in reports] == [6, 6]
