"""How workers of some kind are started somewhere: the pool's view of processes and machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from plait.server.pool.worker import WorkerConfig
from plait.server.wire.address import Address


class LaunchedWorker(Protocol):
    """A started worker, seen from outside: whether it runs, and how to end it.

    Commands and reports go through its address (wire/channel.py), whatever it runs in.
    """

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""

    async def wait(self) -> str:
        """Return when it has ended: how, in words fit for the operator."""

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that it has used so far; None where that is not known."""

    def kill(self) -> None:
        """End it at once; wait() returns soon after. Harmless if it has ended."""

    async def close(self) -> None:
        """Wait until it has ended, and free everything that was held for it."""


class Launcher(Protocol):
    """Starts workers of one kind; the pool keeps one for each kind that it serves."""

    async def new_address(self) -> Address:
        """Return an address that the pool can bind and that the next worker can reach.

        A fresh one each time: a socket serves one worker and never a second.

        Raises:
            OSError: there is none; the message is fit for the operator.
        """

    async def start(self, config: WorkerConfig, tell: Callable[[str], None]) -> LaunchedWorker:
        """Start a worker, which connects to config.address; do not wait until it has loaded.

        Args:
            tell: is called with what the worker waits for before it can load, in words.
        Raises:
            OSError: it could not be started; the message is fit for the operator.
        """

    async def close(self) -> None:
        """Free what all workers had in common, after the last has ended."""
