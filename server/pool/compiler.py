"""The compile service: constraints become grammars in child processes that may be killed.

Two children stand ready, so that a hostile grammar in one does not keep others waiting. A compile
that passes its deadline costs its child's life and is answered with a 400; so is one that exhausts
the child's memory. What compiled, and what was refused, is remembered. No torch or xgrammar here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec

from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    canonical,
)
from plait.server.errors import BadRequest, NotFound, Overloaded, Unavailable
from plait.server.models.catalog import ModelFiles
from plait.server.pool.messages import CompiledConstraint
from plait.server.pool.process import child_environment
from plait.server.settings import CompileSettings, LimitSettings

COMPILER = (sys.executable, "-P", "-m", "plait.server.pool.compile_worker")
NUM_CHILDREN = 2
MAX_WAITING = 256  # compiles in line; beyond, clients are told to come back
MAX_WAIT_S = 30.0  # in line
MAX_REFUSALS = 1024  # remembered
REFUSAL_S = 60.0  # a refusal is forgotten after this time: a deadline may have been bad luck
START_LIMIT_S = 120.0
HEADER_BYTES = 4  # little-endian length before each message


class Model(msgspec.Struct, frozen=True):
    """A model whose tokenizer the child loads."""

    kind: str
    path: str
    name: str


class Boot(msgspec.Struct, frozen=True):
    """The child's first message."""

    models: list[Model]
    limits: ConstraintLimits
    memory_bytes: int


class Job(msgspec.Struct, frozen=True):
    """Compile this for that model."""

    model: str
    spec: ConstraintSpec


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child's answer to Boot."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The compile has succeeded."""

    constraint: CompiledConstraint


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The constraint's author must change it."""

    message: str


Answer = Ready | Done | Refused
_encoder = msgspec.msgpack.Encoder()
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


@dataclass(frozen=True, slots=True)
class CompileStats:
    """What the service has done so far; counters only grow."""

    compiled: int = 0
    cache_hits: int = 0
    refused: int = 0
    timeouts: int = 0
    crashes: int = 0  # children that died of a constraint, or of memory
    seconds: float = 0.0  # spent compiling
    cached_bytes: int = 0


class _ChildGone(Exception):
    """The child has died."""


class _Child:
    """One compile process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, boot: Boot) -> _Child:
        """Start a process; return when it can compile."""
        child = cls(
            await asyncio.create_subprocess_exec(
                *COMPILER,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=child_environment(os.environ, 1),
                start_new_session=True,
            )
        )
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await child.ask(boot)
        except BaseException:
            await child.kill()
            raise
        return child

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, message: Boot | Job) -> Answer:
        """Send a message and return the answer.

        Raises:
            _ChildGone: it died instead.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        body = _encoder.encode(message)
        try:
            stdin.write(len(body).to_bytes(HEADER_BYTES, "little") + body)
            await stdin.drain()
            header = await stdout.readexactly(HEADER_BYTES)
            return _answers.decode(await stdout.readexactly(int.from_bytes(header, "little")))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise _ChildGone from error

    async def kill(self) -> None:
        """Kill the process and wait until it is gone."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


class CompileService:
    """Compiles constraints for the models it was started with. Used on one event loop."""

    def __init__(self, settings: CompileSettings, limits: LimitSettings) -> None:
        self._settings = settings
        self._limits = ConstraintLimits(
            max_bytes=limits.max_schema_bytes,
            max_depth=limits.max_schema_depth,
            max_whitespace=settings.max_whitespace,
        )
        self._boot = Boot([], self._limits, settings.memory_bytes)
        self._idle: asyncio.Queue[_Child] = asyncio.Queue()
        self._children: set[_Child] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._in_flight: dict[Job, asyncio.Task[CompiledConstraint]] = {}
        self._done: OrderedDict[Job, CompiledConstraint] = OrderedDict()
        self._refused: OrderedDict[Job, tuple[str, float]] = OrderedDict()
        self._stats = CompileStats()

    async def start(self, models: Sequence[ModelFiles]) -> None:
        """Start the children; return when the first one can compile.

        Raises:
            Unavailable: it could not be started.
        """
        listed = [Model(m.kind, str(m.path), m.name) for m in models]
        self._boot = Boot(listed, self._limits, self._settings.memory_bytes)
        try:
            await self._add_child()
        except (_ChildGone, TimeoutError, OSError) as error:
            raise Unavailable("the grammar compiler could not be started") from error
        for _ in range(NUM_CHILDREN - 1):
            self._replace_child()

    async def compile(self, model: str, spec: ConstraintSpec) -> CompiledConstraint:
        """Return the compiled constraint; equal requests are compiled once.

        Raises:
            BadRequest: it is malformed, unsupported, or too much work; the message says which.
            NotFound: the model is unknown.
            Overloaded: too many compiles are in line.
        """
        if model not in {known.name for known in self._boot.models}:
            raise NotFound(f"no model {model!r}", param="model", code="model_not_found")
        job = self._make_job(model, spec)
        if (done := self._recall(job)) is not None:
            return done
        task = self._in_flight.get(job)
        if task is None:
            if len(self._in_flight) >= MAX_WAITING:
                raise Overloaded("too many grammars are waiting to be compiled")
            task = self._in_flight[job] = asyncio.create_task(self._run(job))
            task.add_done_callback(lambda finished: self._land(job, finished))
        return await asyncio.shield(task)

    def stats(self) -> CompileStats:
        """Return the counters."""
        cached = sum(_size(job, done) for job, done in self._done.items())
        return replace(self._stats, cached_bytes=cached)

    async def close(self) -> None:
        """End all children and what they were doing."""
        tasks = [*self._starting, *self._in_flight.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(child.kill() for child in self._children))
        self._children.clear()

    def _make_job(self, model: str, spec: ConstraintSpec) -> Job:
        if len(spec.text) > self._limits.max_bytes:
            raise _bad_request(f"{spec.kind} is larger than {self._limits.max_bytes} bytes")
        try:
            return Job(model, canonical(spec))
        except ConstraintError as error:
            raise _bad_request(str(error)) from None

    def _recall(self, job: Job) -> CompiledConstraint | None:
        """Return or raise what is remembered of a job."""
        if job in self._done:
            self._count(cache_hits=1)
            self._done.move_to_end(job)
            return self._done[job]
        message, until = self._refused.get(job, ("", 0.0))
        if time.monotonic() < until:
            self._count(cache_hits=1)
            raise _bad_request(message)
        return None

    def _land(self, job: Job, finished: asyncio.Task[CompiledConstraint]) -> None:
        del self._in_flight[job]
        if not finished.cancelled():
            finished.exception()  # whoever waited has it; nobody may be waiting any more

    async def _run(self, job: Job) -> CompiledConstraint:
        child = await self._take_child()
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.deadline_s):
                answer = await child.ask(job)
        except TimeoutError:
            self._count(timeouts=1)
            await self._drop_child(child)
            deadline = f"{self._settings.deadline_s:g} s"
            raise self._refuse(job, f"it does not compile within {deadline}") from None
        except _ChildGone:
            self._count(crashes=1)
            await self._drop_child(child)
            memory = f"{self._settings.memory_bytes >> 20} MiB"
            raise self._refuse(job, f"it does not compile within {memory} of memory") from None
        except asyncio.CancelledError:
            await child.kill()
            raise
        self._idle.put_nowait(child)
        self._count(seconds=time.monotonic() - started)
        if isinstance(answer, Refused):
            raise self._refuse(job, answer.message)
        assert isinstance(answer, Done), "a child answers a job with Done or Refused"
        self._count(compiled=1)
        self._remember(job, answer.constraint)
        return answer.constraint

    async def _take_child(self) -> _Child:
        """Return an idle child that lives, in the order of asking."""
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                while not (child := await self._idle.get()).is_alive:
                    await self._drop_child(child)
        except TimeoutError:
            raise Overloaded("the grammar compiler is busy") from None
        return child

    async def _drop_child(self, child: _Child) -> None:
        self._children.discard(child)
        self._replace_child()
        await child.kill()

    def _replace_child(self) -> None:
        task = asyncio.create_task(self._add_child_patiently())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _add_child_patiently(self) -> None:
        """Start a child, again and again with growing pauses while that fails."""
        pause_s = 1.0
        while True:
            try:
                return await self._add_child()
            except (_ChildGone, TimeoutError, OSError):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 60.0)

    async def _add_child(self) -> None:
        child = await _Child.start(self._boot)
        self._children.add(child)
        self._idle.put_nowait(child)

    def _refuse(self, job: Job, message: str) -> BadRequest:
        self._count(refused=1)
        self._refused[job] = (message, time.monotonic() + REFUSAL_S)
        self._refused.move_to_end(job)
        if len(self._refused) > MAX_REFUSALS:
            self._refused.popitem(last=False)
        return _bad_request(message)

    def _remember(self, job: Job, done: CompiledConstraint) -> None:
        self._done[job] = done
        total = sum(_size(*item) for item in self._done.items())
        while total > self._settings.cache_bytes:
            total -= _size(*self._done.popitem(last=False))

    def _count(
        self,
        *,
        compiled: int = 0,
        cache_hits: int = 0,
        refused: int = 0,
        timeouts: int = 0,
        crashes: int = 0,
        seconds: float = 0.0,
    ) -> None:
        old = self._stats
        self._stats = replace(
            old,
            compiled=old.compiled + compiled,
            cache_hits=old.cache_hits + cache_hits,
            refused=old.refused + refused,
            timeouts=old.timeouts + timeouts,
            crashes=old.crashes + crashes,
            seconds=old.seconds + seconds,
        )


def _size(job: Job, done: CompiledConstraint) -> int:
    return len(job.spec.text) + len(done.compiled) + len(done.grammar)


def _bad_request(message: str) -> BadRequest:
    return BadRequest(message)  # the API layer names the field that asked for it
