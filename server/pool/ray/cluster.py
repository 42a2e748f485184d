"""The connection of this process to a Ray cluster. The only module that talks to Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from typing import Any

from plait.server.pool.ray.host import WorkerHost
from plait.server.settings import EngineSettings, RaySettings, TelemetrySettings

NAMESPACE = "plait"
# Calls of a host that may run at once: its one long call, and those beside it.
CALLS_AT_ONCE = 4
REACH_S = 10.0  # for a first answer
_STOPPING = (signal.SIGTERM, signal.SIGINT)


class RayCluster:
    """Connects when it is first needed. Used on one event loop."""

    def __init__(
        self,
        settings: RaySettings,
        telemetry: TelemetrySettings,
        host: type[WorkerHost] = WorkerHost,
    ) -> None:
        """Take settings, and what Ray shall run on the nodes."""
        self._settings = settings
        self._telemetry = telemetry
        self._host = host
        self._connecting: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Return once the cluster is connected; without an address and a cluster, start one here.

        Raises:
            OSError: that is impossible; the message is fit for the operator.
        """
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
        await asyncio.shield(self._connecting)

    async def _connect(self) -> None:
        await _check_reachable(self._settings.ray_address)
        # In a thread: it takes seconds, and only a main thread's call would take the signals.
        await asyncio.to_thread(self._start_ray)
        _take_signals_back()

    def _start_ray(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when it is imported
        try:
            import ray  # noqa: PLC0415, an extra, and half a second
        except ImportError as error:
            raise OSError("Ray is not installed: `pip install plait[ray]`") from error
        # It warns that it can't handle signals in a thread, which is what the thread is for.
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            ray.init(
                address=self._settings.ray_address or None,
                namespace=NAMESPACE,
                configure_logging=False,
                # What workers log would break up lines that a machine reads: it stays on the nodes.
                log_to_driver=self._telemetry.log_format == "console",
            )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise OSError(f"can't connect to Ray: {_first_line(error)}") from error

    @property
    def own_address(self) -> str:
        """The address of this machine that the cluster's others reach it by."""
        if self._settings.ray_host:
            return self._settings.ray_host
        import ray  # noqa: PLC0415

        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

    def place(self, engine: EngineSettings) -> Any:
        """Have Ray start a `WorkerHost` where there is room for an engine; return at once.

        Its methods, each with a `remote`, are called as Ray's are: what they return is awaited.
        """
        import ray  # noqa: PLC0415

        options = {
            "num_cpus": engine.ray_cpus,
            "num_gpus": engine.ray_gpus,
            "memory": engine.ray_memory_bytes or None,
            "resources": dict(engine.ray_resources),
            "label_selector": dict(engine.ray_labels) or None,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,  # the pool starts the next one, which may fit elsewhere
            "max_concurrency": CALLS_AT_ONCE,
        }
        return ray.remote(self._host).options(**options).remote()

    def kill(self, host: Any) -> None:
        """End a host, and with it its worker; harmless if it has ended."""
        import ray  # noqa: PLC0415

        if ray.is_initialized():
            ray.kill(host, no_restart=True)

    @property
    def failure(self) -> type[Exception]:
        """What an awaited call of a host raises when the host, or its machine, is gone."""
        from ray.exceptions import RayError  # noqa: PLC0415

        return RayError

    async def close(self) -> None:
        """Disconnect; a cluster that was started here ends."""
        connecting, self._connecting = self._connecting, None
        if connecting is None:
            return
        await asyncio.wait({connecting})
        if connecting.exception() is None:
            import ray  # noqa: PLC0415

            await asyncio.to_thread(ray.shutdown)


async def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT; Ray would try again and again."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return  # auto, or none
    try:
        async with asyncio.timeout(REACH_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError) as error:
        raise OSError(f"can't connect to Ray at {address}: {error or 'no answer'}") from error
    writer.close()


def describe_failure(error: Exception) -> str:
    """Say in one line what Ray's error means."""
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")


def _take_signals_back() -> None:
    """Undo that Ray's own handlers, below Python's, write a trace when the server is stopped."""
    if threading.current_thread() is threading.main_thread():
        for number in _STOPPING:
            signal.signal(number, signal.getsignal(number))
