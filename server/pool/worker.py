"""The interface of a worker, as the pool sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from plait.server.settings import EngineSettings, TelemetrySettings
from plait.server.wire.curve import Credentials
from plait.server.wire.messages import Batch, Command, DraftStoreReport, ModelInfo, Stats

BAD_MODEL = "bad_model"  # the reason when the operator has to change something
# Exit codes of workers.
EXIT_UNREACHABLE = 69  # it can't reach the pool, or no longer
EXIT_RANK_LOST = 71  # the process of one of its devices has ended


class WorkerGone(Exception):
    """The worker has ended or was killed; `reason` is one of a few words, for metrics."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class WorkerConfig(msgspec.Struct, frozen=True):
    """The configuration of a worker; a process reads it as a line of JSON from its input."""

    engine: EngineSettings
    telemetry: TelemetrySettings
    address: str = ""  # of the pool's socket for this worker: see wire/address.py
    server_key: str = ""  # public, of that socket; empty: it is on this machine
    credentials: Credentials | None = None  # with such a key; made where the worker is


class Worker(Protocol):
    """One engine, somewhere. Used once: start, receive until it is gone, close."""

    async def start(self, on_progress: Callable[[str], None]) -> ModelInfo:
        """Start it and return what it serves once everything is loaded.

        Args:
            on_progress: Is called with how far loading is, in words.
        Raises:
            WorkerGone: it could not load its model; the message is fit for the operator.
        """

    def send(self, command: Command) -> None:
        """Send a command; it is dropped if that is impossible, since the worker is ending then."""

    async def receive(self) -> Stats | Batch | DraftStoreReport:
        """Return the next report.

        Raises:
            WorkerGone: it has ended, and all its reports have been returned.
        """

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that it has used so far; None where that is not known."""

    def kill(self) -> None:
        """End it at once; receive() raises soon after."""

    async def close(self, grace_s: float) -> None:
        """Ask it to stop, kill it after grace_s, and free all resources held for it."""
