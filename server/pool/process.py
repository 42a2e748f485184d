"""A worker in an operating-system process of its own, on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

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

# -P: the folder the server was started in is no place to import from.
NATIVE_WORKER_COMMAND = (sys.executable, "-P", "-m", "plait.server.workers.native")
# After the process has ended, what it sent may still be on its way through the socket.
LAST_WORDS_S = 0.1


class ProcessWorker:
    """A child process: settings on its standard input, messages through a socket.

    It leads a process group of its own, so that the terminal's Ctrl-C does not reach it and a kill
    takes its children along. It ends by itself when this process does (its input closes).
    """

    def __init__(
        self,
        command: Sequence[str],
        boot: WorkerConfig,
        context: zmq.asyncio.Context,
        load_s: float,
    ) -> None:
        self._command = command
        self._boot = boot
        self._load_s = load_s
        self._context = context
        self._end: PoolChannel | None = None
        self._is_loaded = False
        self._process: asyncio.subprocess.Process | None = None
        self._exit: asyncio.Task[int] | None = None

    async def start(self, tell: Callable[[str], None]) -> ModelInfo:
        """Start the process; return when its model is loaded."""
        try:
            self._end = PoolChannel(self._context, self._boot.socket)
            await self._spawn()
        except (OSError, zmq.ZMQError) as error:
            raise WorkerGone("load", f"the worker could not be started: {error}") from error
        try:
            async with asyncio.timeout(self._load_s):
                while isinstance(report := await self._next(), Loading):
                    tell(report.stage)
        except TimeoutError:
            raise WorkerGone("load", f"loading took longer than {self._load_s:g} s") from None
        if isinstance(report, ModelInfo):
            self._is_loaded = True
            return report
        if isinstance(report, Batch) and isinstance(failed := report.reports[0], Failed):
            raise WorkerGone(BAD_MODEL if failed.error == "BadModel" else "load", failed.message)
        raise WorkerGone("load", "the worker did not introduce itself")

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            env=child_environment(os.environ, self._boot.engine.threads),
            start_new_session=True,
        )
        self._exit = asyncio.create_task(self._process.wait())
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self._boot) + b"\n")

    def send(self, command: Command) -> None:
        """Send a command; one that can't be sent is dropped."""
        if self._end is not None:
            with suppress(SendError):
                self._end.send(command)

    async def receive(self) -> Stats | Batch | DraftStoreReport:
        """Return the next report of the loaded worker."""
        report = await self._next()
        assert not isinstance(report, ModelInfo | Loading), "a worker introduces itself once"
        return report

    async def _next(self) -> Report:
        assert self._end is not None and self._exit is not None, "start() comes first"
        received = asyncio.ensure_future(self._end.receive())
        try:
            await asyncio.wait({received, self._exit}, return_when=asyncio.FIRST_COMPLETED)
            if not received.done():
                await asyncio.wait({received}, timeout=LAST_WORDS_S)
            if not received.done():
                raise WorkerGone("exit", describe_exit(self._exit.result()))
            return received.result()
        finally:
            received.cancel()

    @property
    def pid(self) -> int | None:
        """The process's id, None before start()."""
        return self._process.pid if self._process else None

    def cpu_seconds(self) -> float | None:
        """Return the CPU time of all the process's threads; None where the system does not tell."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return None
        user, system = stat.rpartition(")")[2].split()[11:13]  # proc(5), behind the name
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """Kill the process and its children."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self, grace_s: float) -> None:
        """Ask the process to stop, wait for grace_s, kill it; wait until it is gone."""
        if self._process is not None and self._exit is not None:
            if self._is_loaded and grace_s and not self._exit.done():
                self.send(Shutdown())
                await asyncio.wait({self._exit}, timeout=grace_s)
            self.kill()
            await self._exit
            assert self._process.stdin is not None
            self._process.stdin.close()
        if self._end is not None:
            self._end.close()
            Path(self._boot.socket).unlink(missing_ok=True)


def child_environment(parent: Mapping[str, str], threads: int) -> dict[str, str]:
    """Return a worker's environment: the parent's without plait's own, which may hold API keys.

    OpenMP's threads must sleep while they wait: spinning, they would take the cores from the front
    end. The operator's own choice stands.
    """
    environment = {k: v for k, v in parent.items() if not k.upper().startswith("PLAIT_")}
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def describe_exit(returncode: int) -> str:
    """Say in words how a process ended."""
    if returncode >= 0:
        return f"the worker ended with code {returncode}"
    killed = f"the worker was killed by signal {-returncode} ({signal.strsignal(-returncode)})"
    if returncode == -signal.SIGKILL:
        killed += ", as the system does when memory runs out"
    return killed
