"""Workers on the machines of a Ray cluster.

Ray finds the place, starts a host there (host.py) and tells when it is gone. Commands and reports
do not pass through Ray: they travel over a connection of the pool's own (wire/channel.py), which is
encrypted and open to that worker alone. docs/adr/0015 says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version

import msgspec
import structlog
import zmq.asyncio

from plait.server.pool.ray.cluster import RayCluster, describe_failure
from plait.server.pool.ray.host import Introduction
from plait.server.pool.ray.weights import Manifest, list_models, read_chunks
from plait.server.pool.worker import WorkerConfig
from plait.server.settings import EngineSettings, RaySettings
from plait.server.wire.address import Address
from plait.server.wire.curve import KeyRing, new_key_pair

CPU_TIME_S = 1.0  # between two looks at how much a worker has used
# Ray counts on a dead machine for some seconds, and may place a worker there.
PLACES = 3

log = structlog.stdlib.get_logger(__name__)


class RayLauncher:
    """A `Launcher`, for every kind of worker. Used on one event loop."""

    def __init__(
        self, cluster: RayCluster, context: zmq.asyncio.Context, settings: RaySettings
    ) -> None:
        self._cluster = cluster
        self._context = context
        self._settings = settings
        self._keys: KeyRing | None = None

    async def new_address(self) -> Address:
        """Return an address on this machine, with keys that were never used before."""
        await self._cluster.connect()
        self._keys = self._keys or KeyRing(self._context)
        ports = self._settings.ray_ports or "*"
        return Address("tcp", f"{self._cluster.own_address}:{ports}", new_key_pair())

    async def start(self, config: WorkerConfig, tell: Callable[[str], None]) -> RayWorker:
        """Ask for a place for a worker; return at once."""
        assert self._keys is not None, "new_address() comes first"
        manifests = []
        if self._settings.ray_weights == "object-store":
            manifests = await asyncio.to_thread(list_models, config.engine)
        return RayWorker(self._cluster, self._keys, _Job(config, manifests, tell))

    async def close(self) -> None:
        """Disconnect from the cluster."""
        if self._keys is not None:
            self._keys.close()
        await self._cluster.close()


@dataclass(frozen=True, slots=True)
class _Job:
    """What a host is to do."""

    config: WorkerConfig
    manifests: list[Manifest]
    tell: Callable[[str], None]


class RayWorker:
    """A worker on some machine (a `LaunchedWorker`)."""

    def __init__(self, cluster: RayCluster, keys: KeyRing, job: _Job) -> None:
        """Ask for a place, and have the worker started there."""
        self._cluster = cluster
        self._keys = keys
        self._job = job
        self._host = cluster.place(job.config.engine)
        self._cpu_seconds: float | None = None
        self._is_killed = False
        self._life = asyncio.create_task(self._live())

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or will."""
        return not self._life.done()

    async def wait(self) -> str:
        """Return when it has ended: how, in words."""
        return await asyncio.shield(self._life)

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that it had used a second ago; None before it runs."""
        return self._cpu_seconds

    def kill(self) -> None:
        """End it at once."""
        self._is_killed = True
        self._cluster.kill(self._host)

    async def close(self) -> None:
        """Wait until it has ended; nobody may connect in its place."""
        try:
            await self.wait()
        finally:
            self._keys.forget(self._job.config.server_key)

    async def _live(self) -> str:
        """Run the worker from beginning to end; return how it ended."""
        try:
            return await self._run()
        except self._cluster.failure as error:
            return f"Ray has ended the worker: {describe_failure(error)}"
        except OSError as error:
            return f"the worker could not be started: {error}"

    async def _run(self) -> str:
        config, tell = self._job.config, self._job.tell
        told = await self._find_host()
        if told.version != (own := version("plait")):
            return f"{told.node} has plait {told.version}, and this server is {own}"
        for manifest in self._job.manifests:
            await self._copy_weights(manifest, told.node)
        tell(f"starting on {told.node}")
        self._keys.admit(config.server_key, told.public_key)
        running = asyncio.ensure_future(self._host.run.remote(msgspec.json.encode(config)))
        watching = asyncio.create_task(self._watch_cpu_time())
        try:
            return str(await running)
        finally:
            watching.cancel()

    async def _find_host(self) -> Introduction:
        """Return what the host says of itself; have another one placed if it is lost before."""
        for _ in range(PLACES - 1):
            try:
                return await self._introduce()
            except self._cluster.failure as error:
                if self._is_killed:
                    raise
                log.warning("worker placed anew", reason=describe_failure(error))
            self._host = self._cluster.place(self._job.config.engine)
        return await self._introduce()

    async def _introduce(self) -> Introduction:
        self._job.tell(f"waiting for a machine with {describe_place(self._job.config.engine)}")
        return msgspec.json.decode(await self._host.introduce.remote(), type=Introduction)

    async def _copy_weights(self, manifest: Manifest, node: str) -> None:
        for name in await self._host.missing_weights.remote(msgspec.json.encode(manifest)):
            self._job.tell(f"copying {name} to {node}")
            chunks = read_chunks(manifest, name)
            while (following := await asyncio.to_thread(next, chunks, None)) is not None:
                chunk, is_last = following
                await self._host.add_weights.remote(manifest.model, name, chunk, is_last)

    async def _watch_cpu_time(self) -> None:
        with suppress(self._cluster.failure):  # whoever awaits its end hears of it
            while True:
                self._cpu_seconds = await self._host.cpu_seconds.remote()
                await asyncio.sleep(CPU_TIME_S)


def describe_place(engine: EngineSettings) -> str:
    """Say what a machine must have to run an engine."""
    wanted = [f"{engine.ray_cpus:g} CPU"]
    wanted += [f"{engine.ray_gpus:g} GPU"] if engine.ray_gpus else []
    wanted += [f"{engine.ray_memory_bytes} bytes"] if engine.ray_memory_bytes else []
    wanted += [f"{amount:g} {name}" for name, amount in engine.ray_resources.items()]
    wanted += [f"{name}={value}" for name, value in engine.ray_labels.items()]
    return ", ".join(wanted)
