"""A worker that a launcher has started, and the connection to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec
import zmq
import zmq.asyncio

from plait.server.pool.launcher import LaunchedWorker, Launcher
from plait.server.pool.worker import BAD_MODEL, WorkerConfig, WorkerGone
from plait.server.wire.channel import PoolChannel, SendError
from plait.server.wire.messages import (
    Batch,
    Command,
    DraftStoreReport,
    Failed,
    Loading,
    ModelInfo,
    Report,
    Shutdown,
    Stats,
)

# After a worker has ended, its last reports may still be on their way through the socket.
LAST_REPORTS_S = 0.1
# Its connection may be lost a moment before it is known how it has ended, which says more.
ENDING_S = 0.3


class ConnectedWorker:
    """The pool's `Worker`: messages through a socket; a launcher's handle starts and ends it."""

    def __init__(
        self,
        launcher: Launcher,
        config: WorkerConfig,
        context: zmq.asyncio.Context,
        load_timeout_s: float,
    ) -> None:
        """Prepare a worker; start() starts it.

        Args:
            config: The worker's configuration; the address is filled in here.
        """
        self._launcher = launcher
        self._config = config
        self._context = context
        self._load_timeout_s = load_timeout_s
        self._is_loaded = False
        self._channel: PoolChannel | None = None
        self._handle: LaunchedWorker | None = None
        self._ended: asyncio.Task[str] | None = None
        self._lost: asyncio.Task[None] | None = None

    async def start(self, on_progress: Callable[[str], None]) -> ModelInfo:
        """Start the worker; return when its model is loaded."""
        stage = "being started"

        def tell(reached: str) -> None:
            nonlocal stage
            stage = reached
            on_progress(reached)

        try:
            async with asyncio.timeout(self._load_timeout_s):
                await self._launch(tell)
                while isinstance(report := await self._next(), Loading):
                    tell(report.stage)
        except TimeoutError:
            message = f"loading took longer than {self._load_timeout_s:g} s; last: {stage}"
            raise WorkerGone("load", message) from None
        except (OSError, zmq.ZMQError) as error:
            raise WorkerGone("load", f"the worker could not be started: {error}") from error
        if isinstance(report, ModelInfo):
            self._is_loaded = True
            return report
        if isinstance(report, Batch) and isinstance(failed := report.reports[0], Failed):
            raise WorkerGone(BAD_MODEL if failed.error == "BadModel" else "load", failed.message)
        raise WorkerGone("load", "the worker did not introduce itself")

    async def _launch(self, tell: Callable[[str], None]) -> None:
        self._channel = PoolChannel(self._context, await self._launcher.new_address())
        address, keys = self._channel.address, self._channel.address.keys
        config = msgspec.structs.replace(
            self._config, address=str(address), server_key=keys.public if keys else ""
        )
        self._lost = asyncio.create_task(self._channel.wait_lost())
        self._handle = await self._launcher.start(config, tell)
        self._ended = asyncio.create_task(self._handle.wait())

    def send(self, command: Command) -> None:
        """Send a command; one that can't be sent is dropped."""
        if self._channel is not None:
            with suppress(SendError):
                self._channel.send(command)

    async def receive(self) -> Stats | Batch | DraftStoreReport:
        """Return the next report of the loaded worker."""
        report = await self._next()
        assert not isinstance(report, ModelInfo | Loading), "a worker introduces itself once"
        return report

    async def _next(self) -> Report:
        assert self._channel and self._ended and self._lost, "start() comes first"
        received = asyncio.ensure_future(self._channel.receive())
        over = {self._ended, self._lost}
        try:
            await asyncio.wait({received, *over}, return_when=asyncio.FIRST_COMPLETED)
            if not received.done():
                await asyncio.wait({received}, timeout=LAST_REPORTS_S)
            if not received.done():
                await asyncio.wait({self._ended}, timeout=ENDING_S)
                raise self._gone(self._ended)
            return received.result()
        finally:
            received.cancel()

    @staticmethod
    def _gone(ended: asyncio.Task[str]) -> WorkerGone:
        if ended.done():
            return WorkerGone("exit", ended.result())
        return WorkerGone("connection", "the connection to the worker is lost")

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that the worker has used so far; None where that is not known."""
        return self._handle.cpu_seconds() if self._handle is not None else None

    def kill(self) -> None:
        """End the worker at once."""
        if self._handle is not None:
            self._handle.kill()

    async def close(self, grace_s: float) -> None:
        """Ask the worker to stop, wait for grace_s, kill it; wait until it has ended."""
        if self._handle is not None and self._ended is not None:
            if self._is_loaded and grace_s and self._handle.is_alive:
                self.send(Shutdown())
                await asyncio.wait({self._ended}, timeout=grace_s)
            self._handle.kill()
            try:
                await self._ended
            finally:
                await self._handle.close()
        if self._lost is not None:
            self._lost.cancel()
        if self._channel is not None:
            self._channel.close()
