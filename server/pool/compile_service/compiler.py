"""The compile service: constraints are compiled in processes that can be killed.

A fork server holds the vocabularies; each compile is a fork of it with limits of CPU time and
memory, so a hostile grammar costs only its own process, and killing that takes milliseconds.
Results and refusals are cached. No torch here.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from plait.decoders.constrained.schema.references.bundle import bundled
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    canonical,
)
from plait.server.errors import BadRequest, NotFound, Overloaded, ServerError, Unavailable
from plait.server.pool.compile_service.cache import CompileCache
from plait.server.pool.compile_service.client import (
    COMMAND,
    ForkServerClient,
    ForkServerGone,
    JobOutcome,
)
from plait.server.pool.compile_service.fair_queue import FairQueue
from plait.server.pool.compile_service.messages import (
    NOT_STARTED,
    CompileJob,
    CompileRefused,
    ForkServerConfig,
    ModelVocabulary,
)
from plait.server.settings import CompileSettings, LimitSettings
from plait.server.wire.messages import CompiledConstraint

# CPU time: a compile that needs more is queued again as a long one, so that others need not wait.
FIRST_TRY_S = 0.25
# On few cores, generation has precedence, and first tries precede long compiles.
TRY_NICENESS, LONG_NICENESS = 5, 10
MAX_WAITING = 256  # queued compiles; beyond, requests are refused with 429
RETRY_AFTER_S = 5  # after a failure that the machine caused
# Exit codes that the job did not cause: the kernel was out of memory, somebody killed the process,
# or we have a bug.
KILLED = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGSEGV, -signal.SIGBUS, NOT_STARTED)

log = structlog.stdlib.get_logger(__name__)


class TokenTable(Protocol):
    """The part of a tokenizer that the service uses."""

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """The bytes of each token."""

    @property
    def eos_token_ids(self) -> Collection[int]:
        """The tokens that end a text."""


@dataclass(frozen=True, slots=True)
class CompileStats:
    """Counters of the service, which only grow, and gauges of the present state."""

    compiled: int = 0
    cache_hits: int = 0
    refused: int = 0
    timeouts: int = 0
    crashes: int = 0  # processes that died because of a constraint
    unfinished: int = 0  # not compiled in time because of the machine
    seconds: float = 0.0  # CPU time of all processes
    cached_bytes: int = 0
    waiting: int = 0
    running: int = 0


@dataclass(slots=True, eq=False)
class _PendingCompile:
    """A compile that is queued or running, with the requests that wait for it."""

    job: CompileJob
    tenant: str  # of the first request
    result: asyncio.Future[CompiledConstraint]
    tenants: set[str] = field(default_factory=set)
    num_waiters: int = 0
    is_long: bool = False
    is_retry: bool = False

    def fail(self, error: ServerError) -> None:
        if not self.result.done():
            self.result.set_exception(error)
            self.result.exception()  # mark it as retrieved: perhaps nobody waits any more


class CompileService:
    """Compiles constraints for a fixed set of models. Used on one event loop."""

    def __init__(
        self,
        settings: CompileSettings,
        limits: LimitSettings,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._settings = settings
        self._command = command
        self._limits = ConstraintLimits(
            max_bytes=limits.max_schema_bytes,
            max_depth=limits.max_schema_depth,
            max_whitespace=settings.max_whitespace,
        )
        self._num_slots = max(2, settings.processes or (os.cpu_count() or 1) // 4)
        self._config = ForkServerConfig([], self._limits, settings.memory_bytes)
        self._server: ForkServerClient | None = None  # None while it starts again
        self._queue: FairQueue[_PendingCompile] = FairQueue(MAX_WAITING)
        self._pending: dict[CompileJob, _PendingCompile] = {}
        self._running: dict[asyncio.Task[None], _PendingCompile] = {}
        self._starting: asyncio.Task[None] | None = None
        self._cache = CompileCache(settings.cache_bytes)
        self._stats = CompileStats()

    async def start(self, tokenizers: Mapping[str, TokenTable]) -> None:
        """Start the fork server for these models; return when it can compile.

        Raises:
            Unavailable: it could not be started.
        """
        vocabularies = [
            ModelVocabulary(name, list(table.token_bytes), sorted(table.eos_token_ids))
            for name, table in tokenizers.items()
        ]
        self._config = ForkServerConfig(vocabularies, self._limits, self._settings.memory_bytes)
        try:
            self._server = await ForkServerClient.start(self._config, self._command)
        except (ForkServerGone, TimeoutError, OSError) as error:
            raise Unavailable("the grammar compiler could not be started") from error

    async def compile(
        self, model: str, spec: ConstraintSpec, tenant: str = ""
    ) -> CompiledConstraint:
        """Return the compiled constraint; equal requests are compiled once.

        Args:
            tenant: Whose request it is; tenants take turns.
        Raises:
            BadRequest: it is malformed, unsupported, or too much work; the message says which. The
                API layer adds the name of the request's field.
            NotFound: the model is unknown.
            Overloaded: too many compiles are queued.
            Unavailable: the machine did not finish it in time; it may do so later.
        """
        if model not in {known.name for known in self._config.models}:
            raise NotFound(f"no model {model!r}", param="model", code="model_not_found")
        job = self._make_job(model, spec)
        if (known := self._cache.find(job)) is not None:
            self._count(cache_hits=1)
            if isinstance(known, str):
                raise BadRequest(known)
            return known
        pending = self._join(job, tenant)
        self._start_queued()
        try:
            return await self._wait(pending)
        except (TimeoutError, Unavailable):
            self._count(unfinished=1)
            raise Unavailable(
                "The grammar compiler did not get to it in time; try again.",
                retry_after_s=RETRY_AFTER_S,
            ) from None

    def stats(self) -> CompileStats:
        """Return the counters."""
        return replace(
            self._stats,
            cached_bytes=self._cache.num_bytes,
            waiting=len(self._queue),
            running=len(self._running),
        )

    async def close(self) -> None:
        """End all processes and their jobs."""
        server, self._server = self._server, None
        tasks = [*self._running, *filter(None, [self._starting])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pending in self._pending.values():
            pending.fail(Unavailable("The server is shutting down."))
        if server is not None:
            await server.close()

    def _make_job(self, model: str, spec: ConstraintSpec) -> CompileJob:
        if len(spec.text) > self._limits.max_bytes:
            raise BadRequest(f"{spec.kind} is larger than {self._limits.max_bytes} bytes")
        style = spec.style.over(self._settings.json_style)
        try:
            spec = bundled(canonical(replace(spec, style=style)), self._settings.schemas)
            return CompileJob(model, spec)
        except ConstraintError as error:
            raise BadRequest(str(error)) from None

    def _join(self, job: CompileJob, tenant: str) -> _PendingCompile:
        """Return the pending compile of a job; it is queued for the tenant unless it is running."""
        pending = self._pending.get(job)
        if pending is None or pending.result.done():
            pending = _PendingCompile(job, tenant, asyncio.get_running_loop().create_future())
            self._pending[job] = pending
        elif pending not in self._queue:
            pending.tenants.add(tenant)
            return pending
        pending.tenants.add(tenant)
        if pending.is_long or pending.is_retry:
            self._queue.put_back(tenant, pending, is_long=pending.is_long)
        elif (left := self._queue.add(tenant, pending)) is not None:
            left.fail(Overloaded("too many grammars are waiting to be compiled"))
            self._forget(left)
        return pending

    async def _wait(self, pending: _PendingCompile) -> CompiledConstraint:
        """Return the result; a compile that nobody waits for any more leaves the queue."""
        pending.num_waiters += 1
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await asyncio.shield(pending.result)
        finally:
            pending.num_waiters -= 1
            if pending.num_waiters == 0 and pending in self._queue:
                self._queue.discard(pending)
                self._forget(pending)

    def _forget(self, pending: _PendingCompile) -> None:
        if self._pending.get(pending.job) is pending:
            del self._pending[pending.job]

    def _start_queued(self) -> None:
        """Start queued compiles while slots are free."""
        while self._server is not None and len(self._running) < self._num_slots:
            num_long = sum(pending.is_long for pending in self._running.values())
            if (turn := self._queue.take(self._num_slots, num_long)) is None:
                return
            pending, _ = turn
            task = asyncio.create_task(self._run(self._server, pending))
            self._running[task] = pending
            task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        pending = self._running.pop(task)
        if pending.result.done():
            self._forget(pending)
        self._start_queued()

    async def _run(self, server: ForkServerClient, pending: _PendingCompile) -> None:
        deadline_s = self._settings.deadline_s
        budget_s = deadline_s if pending.is_long else min(FIRST_TRY_S, deadline_s)
        niceness = LONG_NICENESS if pending.is_long else TRY_NICENESS
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                outcome = await server.run(pending.job, budget_s, niceness)
        except TimeoutError:
            pending.fail(Unavailable("it has not ended"))
        except ForkServerGone:
            self._replace(server)
            self._retry(pending)
        else:
            self._count(seconds=outcome.cpu_s)
            self._handle_outcome(pending, outcome, is_last=budget_s >= deadline_s)

    def _handle_outcome(
        self, pending: _PendingCompile, outcome: JobOutcome, *, is_last: bool
    ) -> None:
        """Set the result of a compile, or queue it again."""
        answer, code = outcome.answer, outcome.returncode
        if isinstance(answer, CompileRefused):
            self._refuse(pending, answer.message)
        elif answer is not None:
            self._count(compiled=1)
            self._cache.keep(pending.job, answer.constraint)
            pending.result.set_result(answer.constraint)
        elif code == -signal.SIGPROF and not is_last:
            pending.is_long = True
            self._queue_again(pending)
        elif code == -signal.SIGPROF:
            self._count(timeouts=1)
            self._queue.note_offence(pending.tenant)
            deadline = f"{self._settings.deadline_s:g} s of CPU time"
            self._refuse(pending, f"it does not compile within {deadline}")
        elif code in KILLED:
            log.warning("a compile was killed", code=code, is_retry=pending.is_retry)
            self._retry(pending)
        else:
            self._count(crashes=1)
            self._queue.note_offence(pending.tenant)
            memory = f"{self._settings.memory_bytes >> 20} MiB of memory"
            self._refuse(pending, f"it does not compile within {memory}")

    def _retry(self, pending: _PendingCompile) -> None:
        """Queue a compile once more that was interrupted for reasons of ours."""
        if pending.is_retry:
            pending.fail(Unavailable("it was interrupted twice"))
        else:
            pending.is_retry = True
            self._queue_again(pending)

    def _queue_again(self, pending: _PendingCompile) -> None:
        if pending.num_waiters == 0:
            pending.fail(Unavailable("nobody waits for it"))
        else:
            for tenant in pending.tenants:
                self._queue.put_back(tenant, pending, is_long=pending.is_long)

    def _replace(self, server: ForkServerClient) -> None:
        """Start another fork server in place of a dead one, unless one is starting already."""
        if self._server is server:
            log.error("grammar compiler lost, starting another", pid=server.pid)
            self._server = None
            self._starting = asyncio.create_task(self._start_again(server))

    async def _start_again(self, dead: ForkServerClient) -> None:
        """Start a fork server; if that fails, try again after a pause, which doubles."""
        await dead.close()
        pause_s = 1.0
        while self._server is None:
            try:
                self._server = await ForkServerClient.start(self._config, self._command)
            except (ForkServerGone, TimeoutError, OSError):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 60.0)
        self._start_queued()

    def _refuse(self, pending: _PendingCompile, message: str) -> None:
        self._count(refused=1)
        self._cache.keep_refusal(pending.job, message)
        pending.fail(BadRequest(message))

    def _count(self, **more: float) -> None:
        """Add to counters of CompileStats by their names."""
        new = {name: getattr(self._stats, name) + value for name, value in more.items()}
        self._stats = replace(self._stats, **new)
