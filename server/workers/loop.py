"""The main loop of a worker process, for any engine: receive commands, step, send reports.

The process reads a WorkerConfig as one line of JSON from its standard input, loads the model, and
runs until it gets Shutdown or its input closes. It handles token ids, neither text nor HTTP.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog
from structlog.contextvars import bind_contextvars

from plait.server.errors import ServerError
from plait.server.models.catalog import BadModel
from plait.server.pool.worker import EXIT_UNREACHABLE, WorkerConfig
from plait.server.settings import EngineSettings
from plait.server.telemetry.logs import configure_logging
from plait.server.wire.address import parse_address
from plait.server.wire.channel import ConnectionLost, WorkerChannel
from plait.server.wire.messages import (
    Abort,
    Batch,
    Command,
    Delta,
    DraftStoreReport,
    DraftStoreTask,
    Failed,
    GenerateRequest,
    Loading,
    ModelInfo,
    Shutdown,
    Started,
    Stats,
)
from plait.server.workers.parent import die_with_parent

HEARTBEAT_S = 1.0
EXIT_BAD_MODEL = 2
EXIT_STEP_FAILED = 70

log = structlog.stdlib.get_logger(__name__)


class EngineLike(Protocol):
    """The part of an engine that the loop uses."""

    @property
    def has_work(self) -> bool:
        """Whether step() would do something."""

    def add(self, request: GenerateRequest) -> None:
        """Queue a request; raise ServerError if it can never be served."""

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Abort a request or one of its sequences."""

    def draft_store(self, task: DraftStoreTask) -> DraftStoreReport:
        """Do a task of the draft stores; return its report."""

    def step(self) -> list[Started | Delta | Failed]:
        """Advance every sequence by one forward pass."""

    def close(self) -> None:
        """Save the state that outlives the engine."""

    def stats(self) -> Stats:
        """Return gauges and counters."""


ProgressCallback = Callable[[str], None]  # is called with how far loading is, in words
EngineFactory = Callable[[EngineSettings, ProgressCallback], tuple[EngineLike, ModelInfo]]


def run(engine: EngineLike, info: ModelInfo, end: WorkerChannel) -> int:
    """Serve commands until Shutdown; return the process's exit code.

    If a step fails, every request fails with Internal and the worker ends, since its state can no
    longer be trusted; the pool starts another one.
    """
    end.send(info)
    loop = _Loop(engine, end)
    try:
        while loop.run_once():
            pass
        engine.close()
    except ConnectionLost:
        engine.close()
        raise
    except Exception:
        log.exception("the engine failed", model=info.model)
        message = "The engine failed while it ran this request."
        end.send(Batch([Failed(request_id="", error="Internal", message=message)]))
        return EXIT_STEP_FAILED
    return 0


class _Loop:
    """Handles commands, steps the engine, sends reports; a heartbeat each second and when idle."""

    def __init__(self, engine: EngineLike, end: WorkerChannel) -> None:
        self._engine = engine
        self._end = end
        self._next_heartbeat = time.monotonic()

    def run_once(self) -> bool:
        """Handle the waiting commands and do one step; return False after Shutdown."""
        until_heartbeat = max(self._next_heartbeat - time.monotonic(), 0.0)
        refused: list[Failed] = []
        for command in self._end.receive(0.0 if self._engine.has_work else until_heartbeat):
            if isinstance(command, Shutdown):
                return False
            refused += self._handle(command)
        had_work = self._engine.has_work
        reports = [*refused, *(self._engine.step() if had_work else ())]
        if reports:
            self._end.send(Batch(reports))
        if (had_work and not self._engine.has_work) or time.monotonic() >= self._next_heartbeat:
            self._end.send(self._engine.stats())
            self._next_heartbeat = time.monotonic() + HEARTBEAT_S
        return True

    def _handle(self, command: Command) -> list[Failed]:
        if isinstance(command, Abort):
            self._engine.abort(command.request_id, command.index)
        elif isinstance(command, DraftStoreTask):
            self._end.send(self._engine.draft_store(command))
        elif isinstance(command, GenerateRequest):
            try:
                self._engine.add(command)
            except ServerError as error:
                return [failure(command.request_id, error)]
        return []


def failure(request_id: str, error: ServerError) -> Failed:
    """Return the report of an error; the pool raises the same error from it."""
    return Failed(
        request_id=request_id,
        error=type(error).__name__,
        message=error.message,
        param=error.param,
        code=error.code,
    )


def main(make_engine: EngineFactory) -> int:
    """Read the configuration from standard input, load, serve; return the exit code."""
    faulthandler.enable()
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerConfig)
    _end_with_parent()
    configure_logging(config.telemetry)
    bind_contextvars(worker=config.engine.served_name)
    try:
        with WorkerChannel(parse_address(config.address), config.credentials) as end:
            return _load_and_run(config.engine, make_engine, end)
    except ConnectionLost as error:
        log.error("the worker ends", reason=str(error))
        return EXIT_UNREACHABLE


def _load_and_run(settings: EngineSettings, make_engine: EngineFactory, end: WorkerChannel) -> int:
    try:
        engine, info = make_engine(settings, lambda stage: end.send(Loading(stage)))
    except BadModel as error:
        end.send(Batch([Failed(request_id="", error="BadModel", message=str(error))]))
        return EXIT_BAD_MODEL
    return run(engine, info, end)


def _end_with_parent() -> None:
    """End this process when the one that started it ends, for whatever reason, even if we hang."""
    die_with_parent()
    threading.Thread(target=_exit_on_eof, name="parent-watch", daemon=True).start()


def _exit_on_eof() -> None:
    # Not through sys.stdin: this thread would hold its lock while the interpreter shuts down.
    while os.read(0, 64):
        pass
    os._exit(0)
