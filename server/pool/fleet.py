"""The workers of one model: as many as are wanted, replaced one by one without losing a request."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from itertools import count

import structlog

from plait.server.errors import Unavailable
from plait.server.pool.replica import Replica
from plait.server.pool.supervisor import supervise
from plait.server.pool.worker import Worker, WorkerGone
from plait.server.settings import PoolSettings

SCALE_CHECK_S = 1.0
# A worker that is to end waits so long for its last requests; then they fail, and may be repeated.
RETIRE_LIMIT_S = 600.0

log = structlog.stdlib.get_logger(__name__)


class Fleet:
    """Starts, supervises and ends the workers of one model. Used on one event loop."""

    def __init__(
        self,
        make_replica: Callable[[int], Replica],
        make_worker: Callable[[int], Worker],
        settings: PoolSettings,
    ) -> None:
        """Start the least number of workers.

        Args:
            make_replica, make_worker: are given the replica's index, which no other one has.
        """
        self.replicas: list[Replica] = []
        self._make_replica = make_replica
        self._make_worker = make_worker
        self._settings = settings
        self._supervising: dict[Replica, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()  # one replica at a time is added or taken away
        self._scaling: asyncio.Task[None] | None = None
        for _ in range(settings.replicas):
            self._add()
        if settings.max_replicas > settings.replicas:
            self._scaling = asyncio.create_task(self._scale())

    @property
    def is_supervised(self) -> bool:
        """Whether somebody looks after every worker; it may be restarting."""
        return not any(task.done() for task in self._supervising.values())

    async def wait_loaded(self) -> None:
        """Return once all workers have loaded; raise WorkerGone if one of them can't."""
        await asyncio.gather(*(self._loaded(replica) for replica in self.replicas))

    async def replace_workers(self) -> None:
        """End each worker after its last request, and start another in its place.

        Of several, one at a time ends before its successor starts, so that no more room is needed;
        while one does not load, no other ends. A worker that is the only one ends when its
        successor has loaded.

        Raises:
            WorkerGone: the successor of an only worker could not load; that worker goes on.
        """
        async with self._changing:
            for replica in list(self.replicas):
                if sum(each.takes_requests for each in self.replicas) > 1:
                    await self._retire(replica)
                    self._supervise(replica)
                    await replica.wait_up()
                else:
                    await self._add_loaded()
                    await self._remove(replica)

    async def close(self) -> None:
        """End all workers, gracefully first."""
        tasks = [*self._supervising.values(), *filter(None, [self._scaling])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _add(self) -> Replica:
        taken = {replica.index for replica in self.replicas}
        replica = self._make_replica(next(index for index in count() if index not in taken))
        self.replicas.append(replica)
        self._supervise(replica)
        return replica

    async def _add_loaded(self) -> None:
        """Add a worker; return when it has loaded, or raise WorkerGone and leave none behind."""
        added = self._add()
        log.info("worker added", model=added.model, replica=added.index)
        try:
            await self._loaded(added)
        except WorkerGone:
            await self._remove(added)
            raise

    def _supervise(self, replica: Replica) -> None:
        supervising = supervise(replica, lambda: self._make_worker(replica.index), self._settings)
        self._supervising[replica] = asyncio.create_task(supervising)

    async def _retire(self, replica: Replica) -> None:
        """Give a worker no more requests; end it after the last one."""
        replica.is_retiring = True
        try:
            async with asyncio.timeout(RETIRE_LIMIT_S):
                await replica.wait_idle()
        except TimeoutError:
            for in_flight in list(replica.requests.values()):
                replica.fail_request(in_flight, Unavailable("The worker is being replaced."))
        await _end(self._supervising.pop(replica))
        replica.is_retiring = False

    async def _remove(self, replica: Replica) -> None:
        await self._retire(replica)
        self.replicas.remove(replica)

    async def _loaded(self, replica: Replica) -> None:
        """Wait until a replica has loaded once; raise the error that its supervisor ended with."""
        supervising, loaded = self._supervising[replica], asyncio.create_task(replica.loaded.wait())
        try:
            await asyncio.wait({supervising, loaded}, return_when=asyncio.FIRST_COMPLETED)
            if supervising.done():
                supervising.result()
        finally:
            loaded.cancel()

    async def _scale(self) -> None:
        """Add workers while requests queue, take them away when they do not; until cancelled."""
        least = most_wanted = self._settings.replicas
        checks = 0
        while True:
            await asyncio.sleep(SCALE_CHECK_S)
            wanted = wanted_replicas(self.replicas, self._settings)
            if wanted > len(self.replicas):
                await self._grow()
            most_wanted, checks = max(most_wanted, wanted), checks + 1
            if checks * SCALE_CHECK_S >= self._settings.scale_down_s:
                if most_wanted < len(self.replicas):
                    await self._shrink()
                most_wanted, checks = least, 0

    async def _grow(self) -> None:
        try:
            async with self._changing:
                await self._add_loaded()
        except WorkerGone as gone:
            log.error("no worker added", reason=str(gone))
            await asyncio.sleep(self._settings.restart_backoff_max_s)

    async def _shrink(self) -> None:
        async with self._changing:
            spare = min(self.replicas, key=lambda each: (len(each.requests), -each.index))
            log.info("worker taken away", model=spare.model, replica=spare.index)
            await self._remove(spare)


def wanted_replicas(replicas: Sequence[Replica], settings: PoolSettings) -> int:
    """Return how many workers the requests in flight want, within the settings' bounds."""
    in_flight = sum(len(replica.requests) for replica in replicas)
    wanted = math.ceil(in_flight / settings.scale_up_requests)
    return min(max(wanted, settings.replicas), max(settings.max_replicas, settings.replicas))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
