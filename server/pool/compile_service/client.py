"""The compile service's client of its fork server: each job runs in a process of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

import msgspec

from plait.server.pool.compile_service.messages import (
    HEADER_BYTES,
    CompileJob,
    CompileResult,
    ForkServerConfig,
    ForkServerReady,
    FromServer,
    JobEnded,
    KillJob,
    StartJob,
    frame,
)
from plait.server.pool.local.early import child_environment

COMMAND = (sys.executable, "-P", "-m", "plait.server.pool.compile_service.fork_server")
START_LIMIT_S = 600.0  # of wall clock; loading takes half a second of CPU time
CLOSE_LIMIT_S = 5.0

_answers: msgspec.msgpack.Decoder[CompileResult] = msgspec.msgpack.Decoder(CompileResult)
_reports: msgspec.msgpack.Decoder[FromServer] = msgspec.msgpack.Decoder(FromServer)


class ForkServerGone(Exception):
    """The fork server has died, and all its children with it."""


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job's process ended."""

    answer: CompileResult | None  # None: it ended without a result
    returncode: int  # see messages.JobEnded
    cpu_s: float


class ForkServerClient:
    """One fork server process. Used on one event loop."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        control: socket.socket,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._process = process
        self._control = control
        self._reader, self._writer = streams
        self._serial = count()
        self._running: dict[int, asyncio.Future[JobEnded]] = {}
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, config: ForkServerConfig, command: Sequence[str] = COMMAND
    ) -> ForkServerClient:
        """Start a fork server; return when it can fork.

        Raises:
            ForkServerGone: it died instead. TimeoutError, OSError: it could not be started.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await _spawn(command, theirs)
        except BaseException:
            ours.close()
            raise
        server = cls(process, ours, await asyncio.open_connection(sock=ours))
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await server._configure(config)
        except BaseException:
            await server.close()
            raise
        return server

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def run(self, job: CompileJob, cpu_s: float, niceness: int = 0) -> JobOutcome:
        """Run a job in a process of its own, with cpu_s of CPU time; cancelling kills it.

        Raises:
            ForkServerGone: the fork server died; the job was not the reason.
        """
        job_id = next(self._serial)
        ended: asyncio.Future[JobEnded] = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._send(StartJob(job_id, cpu_s, niceness), theirs)
            except BaseException:
                ours.close()
                raise
        self._running[job_id] = ended
        try:
            answer = await _ask(ours, job)
            end = await ended
        except BaseException:
            with suppress(ForkServerGone):
                self._send(KillJob(job_id))
            raise
        finally:
            del self._running[job_id]
            if ended.done() and not ended.cancelled():
                ended.exception()  # mark it as retrieved, also if the result never came
        return JobOutcome(answer, end.returncode, end.cpu_s)

    async def wait_gone(self) -> None:
        """Return when the process has died."""
        await self._process.wait()

    async def close(self) -> None:
        """End the fork server and its children; return when they have ended."""
        self._writer.close()  # then the process ends its children and itself
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._listening is not None:
            await self._listening

    async def _configure(self, config: ForkServerConfig) -> None:
        self._writer.write(frame(config))
        with suppress(OSError):  # the read below notices that it is gone
            await self._writer.drain()
        body = await _read(self._reader)
        if body is None or not isinstance(_reports.decode(body), ForkServerReady):
            raise ForkServerGone
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        """Pass on how processes ended, until the fork server closes the socket."""
        while (body := await _read(self._reader)) is not None:
            ended = _reports.decode(body)
            assert isinstance(ended, JobEnded), "Ready comes once"
            future = self._running.get(ended.job_id)
            if future is not None and not future.done():
                future.set_result(ended)
        for future in self._running.values():
            if not future.done():
                future.set_exception(ForkServerGone())
        self._writer.close()

    def _send(self, message: StartJob | KillJob, *sockets: socket.socket) -> None:
        """Send a short command with its file descriptors; the stream's own buffer is empty here."""
        try:
            socket.send_fds(self._control, [frame(message)], [each.fileno() for each in sockets])
        except OSError as error:  # includes a full pipe: the fork server no longer reads
            raise ForkServerGone from error


async def _spawn(command: Sequence[str], control: socket.socket) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=control.fileno(),
        stdout=asyncio.subprocess.DEVNULL,
        env=child_environment(os.environ, 1),
        start_new_session=True,  # so that the terminal's Ctrl-C does not reach it
    )


async def _ask(link: socket.socket, job: CompileJob) -> CompileResult | None:
    """Send a job on its socket; return the result, None if the process ended without one."""
    reader, writer = await asyncio.open_connection(sock=link)
    try:
        writer.write(frame(job))
        with suppress(OSError):  # a process that died without reading sends no result
            await writer.drain()
        body = await _read(reader)
        return None if body is None else _answers.decode(body)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> bytes | None:
    """Return the body of the next message, None at the end of the stream."""
    try:
        header = await reader.readexactly(HEADER_BYTES)
        return await reader.readexactly(int.from_bytes(header, "little"))
    except (asyncio.IncompleteReadError, OSError):
        return None
