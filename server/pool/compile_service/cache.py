"""The compile service's cache: compiled constraints, and for a while refusals."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from plait.server.pool.compile_service.messages import CompileJob
from plait.server.wire.messages import CompiledConstraint

MAX_REFUSALS = 1024
REFUSAL_S = 60.0  # a refusal expires: the job may have hit a limit by bad luck


class CompileCache:
    """An LRU cache of the results of jobs, bounded in bytes."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._done: OrderedDict[CompileJob, CompiledConstraint] = OrderedDict()
        self._refused: OrderedDict[CompileJob, tuple[str, float]] = OrderedDict()
        self.num_bytes = 0

    def find(self, job: CompileJob) -> CompiledConstraint | str | None:
        """Return a job's result: the constraint, or the message of its refusal; None: unknown."""
        if job in self._done:
            self._done.move_to_end(job)
            return self._done[job]
        message, until = self._refused.get(job, ("", 0.0))
        return message if self._clock() < until else None

    def keep(self, job: CompileJob, done: CompiledConstraint) -> None:
        """Store a constraint."""
        self._refused.pop(job, None)
        self._done[job] = done
        self.num_bytes += _size(job, done)
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= _size(*self._done.popitem(last=False))

    def keep_refusal(self, job: CompileJob, message: str) -> None:
        """Store a refusal."""
        self._refused[job] = (message, self._clock() + REFUSAL_S)
        self._refused.move_to_end(job)
        if len(self._refused) > MAX_REFUSALS:
            self._refused.popitem(last=False)


def _size(job: CompileJob, done: CompiledConstraint) -> int:
    return len(job.spec.text) + len(done.table)
