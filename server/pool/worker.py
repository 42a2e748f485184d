"""What the pool needs of a worker, whatever runs inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from plait.server.settings import EngineSettings, TelemetrySettings
from plait.server.wire.messages import Batch, Command, DraftStoreReport, ModelInfo, Stats

BAD_MODEL = "bad_model"  # the reason when the operator has to change something


class WorkerGone(Exception):
    """The worker has ended or was given up; `reason` is one of a few words, for metrics."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class WorkerConfig(msgspec.Struct, frozen=True):
    """What a worker process is told at its start: one line of JSON on its standard input."""

    socket: str
    engine: EngineSettings
    telemetry: TelemetrySettings


class Worker(Protocol):
    """One engine, somewhere. It lives once: start, receive until it is gone, close."""

    async def start(self, tell: Callable[[str], None]) -> ModelInfo:
        """Start it and return what it serves once everything is loaded.

        Args:
            tell: Takes how far loading is, in words.
        Raises:
            WorkerGone: it could not load its model; the message is fit for the operator.
        """

    def send(self, command: Command) -> None:
        """Send a command; one that can't be sent is dropped, since the worker is ending."""

    async def receive(self) -> Stats | Batch | DraftStoreReport:
        """Return the next report.

        Raises:
            WorkerGone: it has ended, and everything it said before has been returned.
        """

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that it has used so far; None where that is not known."""

    def kill(self) -> None:
        """End it at once; receive() raises soon after."""

    async def close(self, grace_s: float) -> None:
        """Ask it to stop, wait for grace_s, kill it; everything it held is freed."""
