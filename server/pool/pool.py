"""The pool: all workers of all models, seen from the front end as one thing that generates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import msgspec
import zmq.asyncio

from plait.server.errors import BadRequest, DeadlineExceeded, NotFound, ServerError, Unavailable
from plait.server.models.catalog import BadModel, ModelFiles, resolve
from plait.server.models.inspect import open_model
from plait.server.pool.compile_service.compiler import CompileService, CompileStats
from plait.server.pool.in_flight import InFlightRequest
from plait.server.pool.process import NATIVE_WORKER_COMMAND, ProcessWorker
from plait.server.pool.replica import Replica
from plait.server.pool.replica_group import Readiness, ReplicaGroup, ServedModel
from plait.server.pool.supervisor import supervise
from plait.server.pool.worker import Worker, WorkerConfig
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.run_folder import RunFolder, open_run_folder
from plait.server.settings import EngineSettings, Settings
from plait.server.telemetry.engine_collector import (
    EngineCollector,
    GrammarCollector,
)
from plait.server.telemetry.telemetry import Telemetry
from plait.server.telemetry.tracing import GenerationSpan
from plait.server.wire.messages import (
    CompiledConstraint,
    Delta,
    DraftStoreReport,
    DraftStoreTask,
    GenerateRequest,
    Started,
)

if TYPE_CHECKING:
    from plait.decoders.constrained.spec import ConstraintSpec

# The worker ends late requests by itself; the pool steps in when it has not done so by then.
DEADLINE_GRACE_S = 0.5


class ConstraintCompiler(Protocol):
    """What the pool needs of the compile service."""

    async def start(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        """Get ready to compile for these models."""

    async def compile(self, model: str, spec: ConstraintSpec, tenant: str) -> CompiledConstraint:
        """Compile in the tenant's turn; BadRequest says what the text's author must change."""

    def stats(self) -> CompileStats:
        """Return its counters."""

    async def close(self) -> None:
        """End its processes."""


def _make_compiler(settings: Settings) -> ConstraintCompiler:
    return CompileService(settings.pool.compile, settings.api.limits)


@dataclass(frozen=True, slots=True)
class PoolDependencies:
    """What a pool is put together from; tests bring their own."""

    worker_command: Sequence[str] = NATIVE_WORKER_COMMAND
    resolve: Callable[[str], ModelFiles] = resolve
    open_model: Callable[[ModelFiles, EngineSettings], Tokenizer] = open_model
    make_compiler: Callable[[Settings], ConstraintCompiler] = _make_compiler


class Pool:
    """Starts, watches and routes to the workers. Everything happens on one event loop."""

    def __init__(
        self, settings: Settings, telemetry: Telemetry, parts: PoolDependencies | None = None
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._parts = parts or PoolDependencies()
        self._groups: dict[str, ReplicaGroup] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._compiler = self._parts.make_compiler(settings)
        self._created = int(time.time())
        self._is_draining = False
        self._serial = count()
        self._idle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []  # one supervisor per replica, in their order
        self._starting_compiler: asyncio.Task[None] | None = None
        self._folder: RunFolder | None = None
        self._context: zmq.asyncio.Context | None = None

    async def start(self) -> None:
        """Check the models, then start all workers; returns while they still load.

        Call close() whatever happens.

        Raises:
            BadModel: there is no such model, it can't be served, or two have one name.
            OSError: there is no folder for the workers' sockets.
        """
        engines = self._named_engines()
        # Before a worker takes seconds to find out the same.
        opening = (asyncio.to_thread(self._parts.open_model, *each) for each in engines)
        tokenizers = await asyncio.gather(*opening)
        self._folder = open_run_folder()
        self._context = zmq.asyncio.Context()
        for files, engine in engines:
            self._groups[files.name] = self._start_group(files, engine)
        registry = self._telemetry.metrics.registry
        registry.register(EngineCollector(lambda: (r.snapshot() for r in self._replicas())))
        registry.register(GrammarCollector(lambda: asdict(self._compiler.stats())))
        self._tokenizers = dict(zip(self._groups, tokenizers, strict=True))
        self._starting_compiler = asyncio.create_task(self._compiler.start(self._tokenizers))

    def publish(self, host: str, port: int) -> None:
        """Write down for health checks where the server listens; raise OSError if that can't be."""
        assert self._folder is not None, "start() comes first"
        self._folder.publish(host, port)

    async def wait_ready(self) -> None:
        """Return once every worker has loaded, and the grammar compiler.

        Raises:
            WorkerGone: one could not load its model; the message is fit for the operator.
            Unavailable: the compiler could not be started.
        """
        assert self._starting_compiler is not None, "start() comes first"
        workers = zip(self._tasks, self._replicas(), strict=True)
        await asyncio.gather(
            asyncio.shield(self._starting_compiler), *(_loaded(*each) for each in workers)
        )

    async def drain(self, limit_s: float) -> None:
        """Take no more requests, wait for those that run, end the rest after limit_s."""
        self._is_draining = True
        self._note_idle()
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            for replica in self._replicas():
                for call in list(replica.calls.values()):
                    replica.give_up(call, Unavailable("The server is shutting down."))

    async def close(self) -> None:
        """Stop the workers, kindly first, and remove every trace of them."""
        self._is_draining = True
        tasks = [*self._tasks, *filter(None, [self._starting_compiler])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._compiler.close()
        if self._context is not None:
            self._context.destroy(linger=0)
        if self._folder is not None:
            self._folder.close()

    def models(self) -> list[ServedModel]:
        """Return the served models, loaded or not."""
        return [
            ServedModel(name, self._created, group.info, self._tokenizers[name])
            for name, group in self._groups.items()
        ]

    def ready(self) -> Readiness:
        """Tell whether new work is welcome: every model up with room, and no drain under way."""
        if self._is_draining:
            return Readiness(False, "draining")
        states = [group.readiness() for group in self._groups.values()]
        faults = [state.reason for state in states if not state.ok]
        compiler = self._starting_compiler
        if compiler is None or not compiler.done() or compiler.exception() is not None:
            faults.append("the grammar compiler is loading")
        notes = [state.reason for state in states if state.reason]
        return Readiness(bool(states) and not faults, "; ".join(faults or notes))

    def alive(self) -> bool:
        """Tell whether every worker is still looked after; a dead worker alone is no reason."""
        return not any(task.done() for task in self._tasks)

    async def compile(self, model: str, spec: ConstraintSpec, tenant: str) -> CompiledConstraint:
        """Compile a constraint for a model's tokenizer, when it is the tenant's turn.

        Raises:
            BadRequest: the text can't be enforced as it says; the message tells where.
            NotFound: there is no such model.
            Overloaded, Unavailable: it may be possible later.
        """
        self._group(model)
        assert self._starting_compiler is not None, "start() comes first"
        await asyncio.shield(self._starting_compiler)
        began, outcome = time.monotonic(), "error"
        try:
            compiled = await self._compiler.compile(model, spec, tenant)
            outcome = "compiled"
            return compiled
        except BadRequest:
            outcome = "refused"
            raise
        finally:
            seconds = time.monotonic() - began
            self._telemetry.metrics.compile_seconds.labels(outcome).observe(seconds)

    async def generate(
        self, model: str, request: GenerateRequest
    ) -> AsyncGenerator[Started | Delta, None]:
        """Run a request; yield its events. Closing the generator early aborts the request.

        The deltas of a sequence that wait for a slow reader come joined into one.

        Raises:
            NotFound, Overloaded, Unavailable: before the first event.
            Unavailable: the worker died. DeadlineExceeded: the request's deadline has passed.
        """
        request = self._with_deadline(request)
        replica, call = self._admit(model, request)
        timer = self._watch_deadline(replica, call)
        try:
            while events := await call.take():
                for event in events:
                    yield event
        finally:
            if timer is not None:
                timer.cancel()
            replica.close(call)
            self._note_idle()
            self._telemetry.tracing.generation(_generation(model, call))

    async def draft_store(self, model: str, task: DraftStoreTask) -> Sequence[DraftStoreReport]:
        """Let every worker of a model do something to its draft store; return their reports.

        Raises:
            NotFound: there is no such model. Unavailable: not every worker could be asked.
            BadRequest: the workers can't do it.
        """
        group = self._group(model)
        if self._is_draining:
            raise Unavailable("The server is shutting down.")
        return await group.draft_store(task)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Stop one sequence (None: all) of a request; unknown ids are fine."""
        for replica in self._replicas():
            if (call := replica.calls.get(request_id)) is not None:
                replica.abort(call, index)

    def _named_engines(self) -> list[tuple[ModelFiles, EngineSettings]]:
        named: dict[str, tuple[ModelFiles, EngineSettings]] = {}
        for engine in self._settings.engines:
            files = self._parts.resolve(engine.model)
            name = engine.served_name or files.name
            if name in named:
                raise BadModel(f"two models would be served as {name!r}: give one another name")
            named[name] = replace(files, name=name), replace(engine, served_name=name)
        return list(named.values())

    def _start_group(self, files: ModelFiles, engine: EngineSettings) -> ReplicaGroup:
        metrics = self._telemetry.metrics
        indices = range(self._settings.pool.replicas)
        replicas = [Replica(files.name, i, metrics.engine(files.name, str(i))) for i in indices]
        for replica in replicas:
            spawn = self._spawner(_with_own_store(engine, replica.index))
            self._tasks.append(asyncio.create_task(supervise(replica, spawn, self._settings.pool)))
        return ReplicaGroup(files, replicas, self._settings.pool.max_queue)

    def _spawner(self, engine: EngineSettings) -> Callable[[], Worker]:
        def spawn() -> Worker:
            assert self._folder is not None and self._context is not None, "start() comes first"
            boot = WorkerConfig(
                # A fresh name each time: a socket serves one worker and never a second.
                socket=str(self._folder.path / f"{next(self._serial)}.sock"),
                engine=engine,
                telemetry=self._settings.telemetry,
            )
            load_s = self._settings.pool.ready_timeout_s
            return ProcessWorker(self._parts.worker_command, boot, self._context, load_s)

        return spawn

    def _replicas(self) -> Iterator[Replica]:
        return (replica for group in self._groups.values() for replica in group.replicas)

    def _group(self, model: str) -> ReplicaGroup:
        if model not in self._groups:
            raise NotFound(
                f"The model {model!r} is not served here.", param="model", code="model_not_found"
            )
        return self._groups[model]

    def _admit(self, model: str, request: GenerateRequest) -> tuple[Replica, InFlightRequest]:
        try:
            group = self._group(model)
            if self._is_draining:
                raise Unavailable("The server is shutting down.")
            replica = group.route(request)
        except ServerError as error:
            self._telemetry.metrics.rejected.labels(error.code).inc()
            raise
        self._idle.clear()
        return replica, replica.open(request)

    def _with_deadline(self, request: GenerateRequest) -> GenerateRequest:
        seconds = self._settings.pool.default_deadline_s
        if request.deadline is not None or seconds is None:
            return request
        return msgspec.structs.replace(request, deadline=time.monotonic() + seconds)

    def _watch_deadline(
        self, replica: Replica, call: InFlightRequest
    ) -> asyncio.TimerHandle | None:
        if call.request.deadline is None:
            return None
        left_s = call.request.deadline - time.monotonic() + DEADLINE_GRACE_S
        error = DeadlineExceeded("The request's deadline has passed.")
        loop = asyncio.get_running_loop()
        return loop.call_later(max(left_s, 0.0), replica.give_up, call, error)

    def _note_idle(self) -> None:
        if not any(replica.calls for replica in self._replicas()):
            self._idle.set()


def _with_own_store(engine: EngineSettings, index: int) -> EngineSettings:
    """Return the settings of one replica: each keeps a file of its own in the folder of drafts."""
    if not engine.draft_store:
        return engine
    file = f"{quote(engine.served_name, safe='')}.{index}.drafts"
    return replace(engine, draft_store=str(Path(engine.draft_store) / file))


async def _loaded(supervising: asyncio.Task[None], replica: Replica) -> None:
    """Wait until a replica has loaded once; raise what its supervisor gave up with."""
    loaded = asyncio.create_task(replica.loaded.wait())
    try:
        await asyncio.wait({supervising, loaded}, return_when=asyncio.FIRST_COMPLETED)
        if supervising.done():
            supervising.result()
    finally:
        loaded.cancel()


def _generation(model: str, call: InFlightRequest) -> GenerationSpan:
    request = call.request
    return GenerationSpan(
        model=model,
        request_id=request.request_id,
        max_tokens=request.max_tokens,
        n=request.n,
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        input_tokens=len(request.prompt_token_ids),
        output_tokens=call.num_tokens,
        finish_reasons=call.finish_reasons,
        arrived=call.arrived,
        started=call.started,
        first_token=call.first_token,
        ended=time.monotonic(),
    )
