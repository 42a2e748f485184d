"""The compile service over processes that do as they are told: time, memory, deaths and turns."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil
import pytest

from plait.decoders.constrained.spec import ConstraintSpec
from plait.server.errors import BadRequest, Overloaded, Unavailable
from plait.server.pool.compile_service import compiler
from plait.server.pool.compile_service.compiler import CompileService, CompileStats
from plait.server.settings import CompileSettings, LimitSettings
from plait.server.wire.messages import CompiledConstraint

SCRIPT = str(Path(__file__).parents[1] / "fixtures" / "scripted_compiler.py")
MEMORY = 64 * 2**20
FOREVER = "burn 1000"
_serial = count()


@dataclass(frozen=True)
class Tokens:
    """A tokenizer of two tokens."""

    token_bytes: tuple[bytes, ...] = (b"a", b"")
    eos_token_ids: frozenset[int] = frozenset({1})


@asynccontextmanager
async def _running(
    deadline_s: float = 5.0, timeout_s: float = 120.0
) -> AsyncIterator[CompileService]:
    settings = CompileSettings(
        deadline_s=deadline_s, timeout_s=timeout_s, processes=2, memory_bytes=MEMORY
    )
    command = (sys.executable, "-P", SCRIPT)
    service = CompileService(settings, LimitSettings(), command)
    try:
        await service.start({"m": Tokens()})
        yield service
    finally:
        await service.close()


def _ask(
    service: CompileService, action: str, tenant: str = ""
) -> asyncio.Task[CompiledConstraint]:
    """Compile something that no other test has asked for."""
    spec = ConstraintSpec("regex", f"{action} #{next(_serial)}")
    return asyncio.create_task(service.compile("m", spec, tenant))


async def _until(is_true: Callable[[], bool]) -> None:
    """Return once something holds; the test's own time limit ends a wait in vain."""
    while not is_true():
        await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Occupied:
    """Both slots of a service, held by compiles that wait for a word."""

    tasks: list[asyncio.Task[CompiledConstraint]]
    pipes: list[Path]

    async def release(self) -> None:
        for pipe in self.pipes:
            await asyncio.to_thread(pipe.write_bytes, b"go")
        await asyncio.gather(*self.tasks)


async def _occupy(service: CompileService, folder: Path) -> Occupied:
    pipes = [folder / "first", folder / "second"]
    for pipe in pipes:
        os.mkfifo(pipe)
    tasks = [_ask(service, f"read {pipe}") for pipe in pipes]
    await _until(lambda: len(_children(service)) == len(pipes))
    return Occupied(tasks, pipes)


def _children(service: CompileService) -> list[psutil.Process]:
    assert service._server is not None
    return psutil.Process(service._server.pid).children()


async def test_the_deadline_counts_cpu_time_and_not_waiting() -> None:
    async with _running(deadline_s=0.2) as service:
        await _ask(service, "sleep 0.5")
        with pytest.raises(BadRequest, match=r"within 0\.2 s of CPU time"):
            await _ask(service, FOREVER)
        stats = service.stats()
    assert (stats.compiled, stats.timeouts) == (1, 1)
    assert 0.05 < stats.seconds < 1.0, "what was burnt, as exactly as a timer's ticks"


async def test_a_passed_deadline_is_remembered() -> None:
    spec = ConstraintSpec("regex", FOREVER)
    async with _running(deadline_s=0.1) as service:
        for _ in range(2):
            with pytest.raises(BadRequest, match="does not compile within"):
                await service.compile("m", spec)
        assert service.stats().timeouts == 1


async def test_what_is_longer_than_a_first_try_gets_its_whole_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiler, "FIRST_TRY_S", 0.1)
    async with _running(deadline_s=2.0) as service:
        await _ask(service, "burn 0.3")
        stats = service.stats()
    assert (stats.compiled, stats.timeouts) == (1, 0)
    assert stats.seconds > 0.3 + 0.02, "the first try cost something, as exactly as ticks are"


async def test_nobody_waits_for_the_long_compiles_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F19: more hostile compiles than there are processes, then a good one, of the same tenant."""
    monkeypatch.setattr(compiler, "FIRST_TRY_S", 0.1)
    async with _running(deadline_s=1000.0) as service:
        hostile = [_ask(service, FOREVER) for _ in range(5)]
        await _until(lambda: service.stats().seconds > 0.1)
        await _ask(service, "burn 0.01")
        assert not any(task.done() for task in hostile)
        assert service.stats().compiled == 1


@pytest.mark.parametrize("fault", [FOREVER, f"die {int(signal.SIGABRT)}"])
async def test_who_went_over_a_limit_waits_behind_others(fault: str, tmp_path: Path) -> None:
    served: list[str] = []
    async with _running(deadline_s=0.1) as service:
        with pytest.raises(BadRequest):
            await _ask(service, fault, "bad")
        await _ask(service, "burn 0", "good")  # so that it would be the other's turn
        occupied = await _occupy(service, tmp_path)
        tasks = {tenant: _ask(service, "burn 0", tenant) for tenant in ("bad", "good")}
        for tenant, task in tasks.items():
            task.set_name(tenant)
            task.add_done_callback(lambda done: served.append(done.get_name()))
        await _until(lambda: service.stats().waiting == 2)
        await asyncio.to_thread(occupied.pipes[0].write_bytes, b"go")
        await asyncio.gather(*tasks.values())
        await asyncio.to_thread(occupied.pipes[1].write_bytes, b"go")
        await asyncio.gather(*occupied.tasks)
    assert served == ["good", "bad"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_process_is_no_refusal(number: signal.Signals) -> None:
    async with _running() as service:
        with pytest.raises(Unavailable) as have:
            await _ask(service, f"die {int(number)}")
        assert have.value.retry_after_s == compiler.RETRY_AFTER_S
        stats = service.stats()
    assert (stats.refused, stats.unfinished) == (0, 1)


async def test_a_compile_that_was_killed_once_is_done_again(tmp_path: Path) -> None:
    async with _running() as service:
        assert (await _ask(service, f"die-once {tmp_path / 'died'}")).min_tokens == 1
        assert service.stats().unfinished == 0


async def test_a_process_that_breaks_down_is_a_refusal() -> None:
    async with _running() as service:
        with pytest.raises(BadRequest, match="64 MiB of memory"):
            await _ask(service, f"die {int(signal.SIGABRT)}")
        assert service.stats().crashes == 1


async def test_memory_is_bounded_by_process() -> None:
    async with _running() as service:
        await _ask(service, f"eat {MEMORY // 2}")
        with pytest.raises(BadRequest, match="memory"):
            await _ask(service, f"eat {MEMORY * 2}")


async def test_time_that_this_machine_does_not_give_is_a_503_and_forgotten() -> None:
    spec = ConstraintSpec("regex", "sleep 1000")
    async with _running(timeout_s=0.1) as service:
        for _ in range(2):
            with pytest.raises(Unavailable) as have:
                await service.compile("m", spec)
        await _until(lambda: not _children(service))
    assert have.value.status == 503
    assert have.value.retry_after_s == compiler.RETRY_AFTER_S


async def test_the_fork_server_is_started_again_and_nobody_notices(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with _running() as service:
        waiting = _ask(service, f"read {pipe}")
        await _until(lambda: bool(_children(service)))
        (child,) = _children(service)
        assert service._server is not None
        dead = service._server.pid
        os.kill(dead, signal.SIGKILL)
        await _until(lambda: service._server is not None and service._server.pid != dead)
        await _until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
        await asyncio.to_thread(pipe.write_bytes, b"go")
        assert (await waiting).min_tokens == 1
        assert service.stats().unfinished == 0


async def test_closing_ends_compiles_in_flight_and_leaves_no_process() -> None:
    async with _running() as service:
        waiting = [_ask(service, "sleep 1000") for _ in range(3)]
        await _until(lambda: len(_children(service)) == 2)
        assert service._server is not None
        processes = [psutil.Process(service._server.pid), *_children(service)]
    assert not any(process.is_running() for process in processes)
    for each in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(each, Unavailable)


async def test_the_end_of_the_control_socket_ends_every_child() -> None:
    """As when the front end has been killed and could cancel nothing."""
    async with _running() as service:
        waiting = _ask(service, "sleep 1000")
        await _until(lambda: len(_children(service)) == 1)
        assert service._server is not None
        server, children = service._server, _children(service)
        service._server = None
        await server.close()
        assert not any(child.is_running() for child in children)
    with pytest.raises(Unavailable):
        await waiting


async def test_what_nobody_waits_for_leaves_the_line(tmp_path: Path) -> None:
    async with _running() as service:
        occupied = await _occupy(service, tmp_path)
        leaver, stayer = _ask(service, f"note {tmp_path / 'left'}"), _ask(service, "burn 0")
        await _until(lambda: service.stats().waiting == 2)
        leaver.cancel()
        await _until(leaver.done)
        assert service.stats().waiting == 1
        await occupied.release()
        await stayer
    assert not (tmp_path / "left").exists()


async def test_a_full_line_refuses_whoever_has_most_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiler, "MAX_WAITING", 3)
    async with _running() as service:
        occupied = await _occupy(service, tmp_path)
        greedy = [_ask(service, "burn 0", "greedy") for _ in range(4)]
        with pytest.raises(Overloaded):
            await greedy[3]
        modest = _ask(service, "burn 0", "modest")
        with pytest.raises(Overloaded):
            await greedy[2]
        await occupied.release()
        await asyncio.gather(*greedy[:2], modest)


async def test_stats_tell_what_runs_and_waits() -> None:
    async with _running() as service:
        assert service.stats() == CompileStats()
        tasks = [_ask(service, "sleep 1000") for _ in range(3)]
        await _until(lambda: len(_children(service)) == 2)
        stats = service.stats()
    assert (stats.running, stats.waiting) == (2, 1)
    await asyncio.gather(*tasks, return_exceptions=True)
