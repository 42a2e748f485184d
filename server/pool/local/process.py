"""Workers in operating-system processes of their own, on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import msgspec

from plait.server.pool.local import early
from plait.server.pool.worker import EXIT_RANK_LOST, EXIT_UNREACHABLE, WorkerConfig
from plait.server.settings import EngineSettings
from plait.server.wire.address import Address
from plait.server.workers.vllm.interpreter import find_python

Command = Callable[[EngineSettings], Sequence[str]]


def native_command(engine: EngineSettings) -> Sequence[str]:
    """Return the command that starts a native worker."""
    return early.NATIVE_WORKER_COMMAND


def vllm_command(engine: EngineSettings) -> Sequence[str]:
    """Return the command that starts a vLLM worker; raise BadModel if vLLM is not there."""
    return (find_python(engine.vllm_python), "-P", "-m", "plait.server.workers.vllm")


EXITS = {
    EXIT_UNREACHABLE: "the worker can't reach this server, or no longer",
    EXIT_RANK_LOST: "the process of one of the worker's devices has ended: the log says why",
}
COMMANDS: Mapping[str, Command] = {"native": native_command, "vllm": vllm_command}


class ProcessLauncher:
    """Starts a command; its settings are a line of JSON on its standard input.

    The process leads a process group of its own, so that the terminal's Ctrl-C does not reach it
    and a kill ends its children, too. It ends by itself when this process does: its input closes.
    """

    def __init__(self, command: Command, folder: Path) -> None:
        """Take what returns a worker's command, and a folder that only this user can enter."""
        self._command = command
        self._folder = folder
        self._serial = count()

    async def new_address(self) -> Address:
        """Return a path in the folder that was never used before."""
        return Address("ipc", str(self._folder / f"{next(self._serial)}.sock"))

    async def start(self, config: WorkerConfig, tell: Callable[[str], None]) -> WorkerProcess:
        """Start the process, or take the one that was started early; return at once.

        Raises:
            OSError: that is impossible.
        """
        command, threads = self._command(config.engine), config.engine.threads
        process = early.take(command, threads) or early.spawn(command, threads)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which whoever waits for it will see
            process.stdin.write(msgspec.json.encode(config) + b"\n")
            process.stdin.flush()
        return WorkerProcess(process)

    async def close(self) -> None:
        """Nothing is shared."""


class WorkerProcess:
    """A started process (a `LaunchedWorker`)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    async def wait(self) -> str:
        """Return when the process has ended: how, in words."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def tell(code: int) -> None:
            if not ended.cancelled():
                ended.set_result(code)

        def watch() -> None:
            code = self._process.wait()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, code)

        threading.Thread(target=watch, daemon=True, name="worker-watch").start()
        return describe_exit(await ended)

    def cpu_seconds(self) -> float | None:
        """Return the CPU time of all the process's threads; None where the system does not say."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return None
        user, system = stat.rpartition(")")[2].split()[11:13]  # proc(5), after the name
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """Kill the process and its children."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Wait until the process has ended; close its input."""
        assert self._process.stdin is not None
        try:
            await self.wait()
        finally:
            with suppress(BrokenPipeError):  # settings that it did not live to read
                self._process.stdin.close()


def describe_exit(returncode: int) -> str:
    """Say in words how a process ended."""
    if returncode >= 0:
        return EXITS.get(returncode, f"the worker ended with code {returncode}")
    killed = f"the worker was killed by signal {-returncode} ({signal.strsignal(-returncode)})"
    if returncode == -signal.SIGKILL:
        killed += ", as the system does when memory runs out"
    return killed
