"""The workers of a model: how many there are, and that replacing them costs no request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import pytest

from plait.server.pool import fleet as module
from plait.server.pool.fleet import Fleet, wanted_replicas
from plait.server.pool.in_flight import InFlightRequest
from plait.server.pool.replica import Replica
from plait.server.pool.worker import WorkerGone
from plait.server.settings import PoolSettings
from plait.server.telemetry.telemetry import Telemetry
from plait.server.wire.messages import Batch, Command, DraftStoreReport, ModelInfo, Stats
from tests.fixtures import scripted_worker as script
from tests.fixtures.pools import collect, request, running_pool, tokens_of, until


@dataclass
class FakeWorker:
    """Loads when it may, then does nothing until it is ended."""

    name: int
    may_load: asyncio.Event
    is_bad: bool = False
    is_closed: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, on_progress: Callable[[str], None]) -> ModelInfo:
        await self.may_load.wait()
        if self.is_bad:
            raise WorkerGone("load", "no room")
        return ModelInfo(f"m{self.name}", 64, 100, 8, 16, "fp32", "f", [], 0.0)

    def send(self, command: Command) -> None:
        pass

    async def receive(self) -> Stats | Batch | DraftStoreReport:
        await self.ended.wait()
        raise WorkerGone("exit", "ended")

    def cpu_seconds(self) -> float | None:
        return None

    def kill(self) -> None:
        self.ended.set()

    async def close(self, grace_s: float) -> None:
        self.is_closed = True


class Site:
    """Makes the workers of a fleet, and remembers them."""

    def __init__(self) -> None:
        self.started: list[FakeWorker] = []
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.is_full = False
        self.on_start: Callable[[], None] = lambda: None
        self._metrics = Telemetry().metrics
        self._names = count()

    def worker(self, index: int) -> FakeWorker:
        made = FakeWorker(next(self._names), self.may_load, is_bad=self.is_full)
        self.started.append(made)
        self.on_start()
        return made

    def replica(self, index: int) -> Replica:
        return Replica("m", index, self._metrics.engine("m", str(index)))

    @property
    def running(self) -> list[int]:
        return [worker.name for worker in self.started if not worker.is_closed]


@asynccontextmanager
async def running_fleet(**settings: float) -> AsyncIterator[tuple[Fleet, Site]]:
    site = Site()
    pool = PoolSettings(restart_backoff_s=0.01, restart_backoff_max_s=0.01, **settings)  # type: ignore[arg-type]
    fleet = Fleet(site.replica, site.worker, pool)
    try:
        await fleet.wait_loaded()
        yield fleet, site
    finally:
        await fleet.close()
    assert site.running == [], "a worker is left behind"


def open_requests(replica: Replica, number: int) -> list[InFlightRequest]:
    return [replica.open(request(script.ENDLESS)) for _ in range(number)]


def end(replica: Replica, in_flight: InFlightRequest) -> None:
    in_flight.stop(None)
    replica.close(in_flight)


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCALE_CHECK_S", 0.002)


async def test_several_workers_are_replaced_one_at_a_time() -> None:
    async with running_fleet(replicas=3) as (fleet, site):
        others: list[int] = []
        site.on_start = lambda: others.append(sum(each.takes_requests for each in fleet.replicas))
        await fleet.replace_workers()
        assert others == [2, 2, 2], "as many were left whenever a successor started"
        assert site.running == [3, 4, 5]
        assert [each.index for each in fleet.replicas] == [0, 1, 2]


async def test_the_only_worker_ends_when_its_successor_has_loaded() -> None:
    async with running_fleet() as (fleet, site):
        site.may_load.clear()
        replacing = asyncio.create_task(fleet.replace_workers())
        await until(lambda: len(site.started) == 2)
        assert site.running == [0, 1]
        assert fleet.replicas[0].takes_requests
        site.may_load.set()
        await replacing
        assert site.running == [1]


async def test_a_successor_that_can_not_load_costs_nothing() -> None:
    async with running_fleet() as (fleet, site):
        site.is_full = True
        with pytest.raises(WorkerGone, match="no room"):
            await fleet.replace_workers()
        assert site.running == [0]
        assert [each.takes_requests for each in fleet.replicas] == [True]
        assert fleet.is_supervised


async def test_a_worker_ends_after_its_last_request() -> None:
    async with running_fleet(replicas=2) as (fleet, site):
        first = fleet.replicas[0]
        (running,) = open_requests(first, 1)
        replacing = asyncio.create_task(fleet.replace_workers())
        await until(lambda: not first.takes_requests)
        assert site.running == [0, 1]
        end(first, running)
        assert running.failure is None
        await replacing
        assert site.running == [2, 3]


async def test_what_does_not_end_in_time_fails_and_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RETIRE_LIMIT_S", 0.01)
    async with running_fleet(replicas=2) as (fleet, site):
        (running,) = open_requests(fleet.replicas[0], 1)
        await fleet.replace_workers()
        assert running.failure is not None
        assert running.failure.status == 503
        assert site.running == [2, 3]


@pytest.mark.usefixtures("_often")
async def test_workers_are_added_while_requests_queue_and_taken_away_after() -> None:
    settings = {"replicas": 1, "max_replicas": 3, "scale_up_requests": 2, "scale_down_s": 0.02}
    async with running_fleet(**settings) as (fleet, site):
        first = fleet.replicas[0]
        running = open_requests(first, 50)
        await until(lambda: len(site.running) == 3)
        await until(lambda: all(each.takes_requests for each in fleet.replicas))
        for each in running:
            end(first, each)
        await until(lambda: len(site.running) == 1)
        assert all(each.failure is None for each in running)


@pytest.mark.usefixtures("_often")
async def test_a_worker_that_finds_no_room_is_asked_for_again() -> None:
    async with running_fleet(replicas=1, max_replicas=2, scale_up_requests=1) as (fleet, site):
        site.is_full = True
        running = open_requests(fleet.replicas[0], 2)
        await until(lambda: len(site.started) > 2)
        assert fleet.is_supervised
        assert fleet.replicas[0].takes_requests
        site.is_full = False
        await until(lambda: sum(each.takes_requests for each in fleet.replicas) == 2)
        for each in running:
            end(fleet.replicas[0], each)


@pytest.mark.parametrize(
    ("loads", "want"), [([0], 2), ([8, 8], 2), ([9, 8], 3), ([8, 8, 17], 5), ([90, 90], 5)]
)
def test_how_many_are_wanted(loads: list[int], want: int) -> None:
    site = Site()
    replicas = [site.replica(index) for index in range(len(loads))]
    for replica, load in zip(replicas, loads, strict=True):
        replica.requests = {str(i): None for i in range(load)}  # type: ignore[misc]
    settings = PoolSettings(replicas=2, max_replicas=5, scale_up_requests=8)
    assert wanted_replicas(replicas, settings) == want


@pytest.mark.parametrize("replicas", [1, 3])
async def test_no_request_is_lost_while_real_workers_are_replaced(replicas: int) -> None:
    settings = PoolSettings(replicas=replicas, restart_backoff_s=0.01)
    async with running_pool(pool=settings) as running:
        before, after = set[int](), set[int]()

        async def ask(found: set[int]) -> None:
            found.add(tokens_of(await collect(running.pool, request(script.PID)))[0])

        async def load() -> None:
            while not replacing.done():
                answers = (collect(running.pool, request(script.COUNT, k)) for k in range(1, 9))
                have = [tokens_of(events) for events in await asyncio.gather(*answers)]
                assert have == [list(range(k)) for k in range(1, 9)]

        await asyncio.gather(*(ask(before) for _ in range(4 * replicas)))
        replacing = asyncio.create_task(running.pool.replace_workers())
        await asyncio.gather(load(), load(), replacing)
        await asyncio.gather(*(ask(after) for _ in range(4 * replicas)))
        assert len(before) == len(after) == replicas
        assert not before & after
