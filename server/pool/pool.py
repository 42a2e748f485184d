"""The pool: the workers of all models behind one interface for the front end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import msgspec
import zmq.asyncio

from plait.server.errors import BadRequest, DeadlineExceeded, NotFound, ServerError, Unavailable
from plait.server.models.catalog import BadModel, ModelFiles, resolve
from plait.server.models.inspect import open_model
from plait.server.pool.compile_service.compiler import CompileService, CompileStats
from plait.server.pool.connected_worker import ConnectedWorker
from plait.server.pool.fleet import Fleet
from plait.server.pool.in_flight import InFlightRequest
from plait.server.pool.launcher import Launcher
from plait.server.pool.launchers import make_launchers
from plait.server.pool.replica import Replica
from plait.server.pool.replica_group import Readiness, ReplicaGroup, ServedModel
from plait.server.pool.worker import Worker, WorkerConfig
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
    from plait.server.prompt.tokenizer import Tokenizer

# A worker ends late requests itself; the pool does so where the worker has not after this time.
DEADLINE_GRACE_S = 0.5


class ConstraintCompiler(Protocol):
    """What the pool needs of the compile service."""

    async def start(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        """Get ready to compile for these models."""

    async def compile(self, model: str, spec: ConstraintSpec, tenant: str) -> CompiledConstraint:
        """Compile a constraint; tenants take turns. BadRequest says what its author must change."""

    def stats(self) -> CompileStats:
        """Return its counters."""

    async def close(self) -> None:
        """End its processes."""


def _make_compiler(settings: Settings) -> ConstraintCompiler:
    return CompileService(settings.pool.compile, settings.api.limits)


@dataclass(frozen=True, slots=True)
class PoolDependencies:
    """What a pool is built from; tests replace parts of it."""

    launchers: Callable[[Settings, Path, zmq.asyncio.Context], Mapping[str, Launcher]] = (
        make_launchers
    )
    resolve: Callable[[str], ModelFiles] = resolve
    open_model: Callable[[ModelFiles, EngineSettings], Tokenizer] = open_model
    make_compiler: Callable[[Settings], ConstraintCompiler] = _make_compiler


class Pool:
    """Starts and supervises workers, and routes requests to them. Used on one event loop."""

    def __init__(
        self, settings: Settings, telemetry: Telemetry, dependencies: PoolDependencies | None = None
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._dependencies = dependencies or PoolDependencies()
        self._groups: dict[str, ReplicaGroup] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._compiler = self._dependencies.make_compiler(settings)
        self._created = int(time.time())
        self._is_draining = False
        self._launchers: Mapping[str, Launcher] = {}
        self._fleets: list[Fleet] = []
        self._starting_compiler: asyncio.Task[None] | None = None
        self._folder: RunFolder | None = None
        self._context: zmq.asyncio.Context | None = None

    async def start(self) -> None:
        """Check the models, then start all workers; returns while they still load.

        Call close() whatever happens.

        Raises:
            BadModel: there is no such model, it can't be served, or two have one name.
            OSError: no folder for the workers' sockets can be made.
        """
        engines = _named_engines(self._settings.engines, self._dependencies.resolve)
        # A bad model is found here at once, not by a worker after seconds.
        opening = (asyncio.to_thread(self._dependencies.open_model, *each) for each in engines)
        tokenizers = await asyncio.gather(*opening)
        self._folder = open_run_folder()
        self._context = zmq.asyncio.Context()
        self._launchers = self._dependencies.launchers(
            self._settings, self._folder.path, self._context
        )
        for files, engine in engines:
            self._groups[files.name] = self._start_group(files, engine)
        registry = self._telemetry.metrics.registry
        registry.register(EngineCollector(lambda: (r.snapshot() for r in self._replicas())))
        registry.register(GrammarCollector(lambda: asdict(self._compiler.stats())))
        self._tokenizers = dict(zip(self._groups, tokenizers, strict=True))
        self._starting_compiler = asyncio.create_task(self._compiler.start(self._tokenizers))

    def publish(self, host: str, port: int) -> None:
        """Publish the server's address for health checks; raise OSError if that fails."""
        assert self._folder is not None, "start() comes first"
        self._folder.publish(host, port)

    async def wait_ready(self) -> None:
        """Return once all workers and the grammar compiler have loaded.

        Raises:
            WorkerGone: one could not load its model; the message is fit for the operator.
            Unavailable: the compiler could not be started.
        """
        assert self._starting_compiler is not None, "start() comes first"
        await asyncio.gather(
            asyncio.shield(self._starting_compiler), *(each.wait_loaded() for each in self._fleets)
        )

    async def replace_workers(self) -> None:
        """Replace the workers of all models, one after the other, without losing a request.

        Raises:
            WorkerGone: one that was to replace another could not load.
        """
        for fleet in self._fleets:
            await fleet.replace_workers()

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests, wait for those in flight, and fail the rest after limit_s."""
        self._is_draining = True
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(replica.wait_idle() for replica in self._replicas()))
        except TimeoutError:
            for replica in self._replicas():
                for in_flight in list(replica.requests.values()):
                    replica.fail_request(in_flight, Unavailable("The server is shutting down."))

    async def close(self) -> None:
        """Stop the workers, gracefully first, and free all that was held for them."""
        self._is_draining = True
        if self._starting_compiler is not None:
            self._starting_compiler.cancel()
            await asyncio.gather(self._starting_compiler, return_exceptions=True)
        await asyncio.gather(*(fleet.close() for fleet in self._fleets))
        await self._compiler.close()
        for launcher in set(self._launchers.values()):
            await launcher.close()
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
        """Return whether new requests are accepted: each model has a worker with room, no drain."""
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
        """Return whether every replica is supervised; its worker may be restarting."""
        return all(fleet.is_supervised for fleet in self._fleets)

    async def compile(self, model: str, spec: ConstraintSpec, tenant: str) -> CompiledConstraint:
        """Compile a constraint for a model's tokenizer; tenants take turns.

        Raises:
            BadRequest: the constraint can't be enforced; the message says where.
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

        Deltas of one sequence that wait for a slow reader are merged into one.

        Raises:
            NotFound, Overloaded, Unavailable: before the first event.
            Unavailable: the worker died. DeadlineExceeded: the request's deadline has passed.
        """
        request = _with_deadline(request, self._settings.pool.default_deadline_s)
        replica, in_flight = self._admit(model, request)
        timer = self._watch_deadline(replica, in_flight)
        try:
            while events := await in_flight.take():
                for event in events:
                    yield event
        finally:
            if timer is not None:
                timer.cancel()
            replica.close(in_flight)
            self._telemetry.tracing.generation(_generation(model, in_flight))

    async def draft_store(self, model: str, task: DraftStoreTask) -> Sequence[DraftStoreReport]:
        """Have every worker of a model do a task of its draft store; return their reports.

        Raises:
            NotFound: there is no such model. Unavailable: not every worker answered.
            BadRequest: the workers can't do it.
        """
        group = self._group(model)
        if self._is_draining:
            raise Unavailable("The server is shutting down.")
        return await group.draft_store(task)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Abort one sequence (None: all) of a request; unknown ids are ignored."""
        for replica in self._replicas():
            if (in_flight := replica.requests.get(request_id)) is not None:
                replica.abort(in_flight, index)

    def _start_group(self, files: ModelFiles, engine: EngineSettings) -> ReplicaGroup:
        if engine.worker not in self._launchers:
            raise BadModel(
                f"{files.name}: worker {engine.worker!r} would need a launcher and a worker of "
                f"that kind; there is: {', '.join(self._launchers)}"
            )
        metrics = self._telemetry.metrics
        fleet = Fleet(
            lambda index: Replica(files.name, index, metrics.engine(files.name, str(index))),
            lambda index: self._make_worker(_with_own_store(engine, index)),
            self._settings.pool,
        )
        self._fleets.append(fleet)
        return ReplicaGroup(files, fleet.replicas, self._settings.pool.max_queue)

    def _make_worker(self, engine: EngineSettings) -> Worker:
        """Return a replica's first worker, or one that replaces it."""
        assert self._context is not None, "start() comes first"
        return ConnectedWorker(
            self._launchers[engine.worker],
            WorkerConfig(engine=engine, telemetry=self._settings.telemetry),
            self._context,
            self._settings.pool.ready_timeout_s,
        )

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
        return replica, replica.open(request)

    def _watch_deadline(
        self, replica: Replica, in_flight: InFlightRequest
    ) -> asyncio.TimerHandle | None:
        if in_flight.request.deadline is None:
            return None
        left_s = in_flight.request.deadline - time.monotonic() + DEADLINE_GRACE_S
        error = DeadlineExceeded("The request's deadline has passed.")
        loop = asyncio.get_running_loop()
        return loop.call_later(max(left_s, 0.0), replica.fail_request, in_flight, error)


def _named_engines(
    engines: Sequence[EngineSettings], resolve_model: Callable[[str], ModelFiles]
) -> list[tuple[ModelFiles, EngineSettings]]:
    """Return the files and settings of each model, with the name that it is served by."""
    named: dict[str, tuple[ModelFiles, EngineSettings]] = {}
    for engine in engines:
        files = resolve_model(engine.model)
        name = engine.served_name or files.name
        if name in named:
            raise BadModel(f"two models would be served as {name!r}: give one another name")
        named[name] = replace(files, name=name), replace(engine, served_name=name)
    return list(named.values())


def _with_deadline(request: GenerateRequest, seconds: float | None) -> GenerateRequest:
    if request.deadline is not None or seconds is None:
        return request
    return msgspec.structs.replace(request, deadline=time.monotonic() + seconds)


def _with_own_store(engine: EngineSettings, index: int) -> EngineSettings:
    """Return the settings of one replica: each has a file of its own in the draft store folder."""
    if not engine.draft_store:
        return engine
    file = f"{quote(engine.served_name, safe='')}.{index}.drafts"
    return replace(engine, draft_store=str(Path(engine.draft_store) / file))


def _generation(model: str, in_flight: InFlightRequest) -> GenerationSpan:
    request = in_flight.request
    return GenerationSpan(
        model=model,
        request_id=request.request_id,
        max_tokens=request.max_tokens,
        n=request.n,
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        input_tokens=len(request.prompt_token_ids),
        output_tokens=in_flight.num_tokens,
        finish_reasons=in_flight.finish_reasons,
        arrived=in_flight.arrived,
        started=in_flight.started,
        first_token=in_flight.first_token,
        ended=time.monotonic(),
    )
