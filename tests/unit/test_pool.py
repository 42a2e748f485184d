"""The pool against scripted workers in real processes: when all is well, and when not."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from plait.decoders.constrained.spec import ConstraintSpec
from plait.server.errors import (
    BadRequest,
    DeadlineExceeded,
    Internal,
    NotFound,
    Overloaded,
    Unavailable,
)
from plait.server.models.catalog import BadModel
from plait.server.pool.local.process import describe_exit
from plait.server.pool.pool import Pool
from plait.server.pool.worker import EXIT_RANK_LOST, WorkerGone
from plait.server.settings import PoolSettings
from plait.server.wire.messages import Delta, Started
from tests.fixtures import scripted_worker as script
from tests.fixtures.pools import Running, collect, request, running_pool, tokens_of, until

Events = AsyncGenerator[Started | Delta, None]


async def worker_pid(pool: Pool, model: str = "m") -> int:
    return tokens_of(await collect(pool, request(script.PID), model))[0]


async def begin(pool: Pool, kind: int = script.ENDLESS, model: str = "m", n: int = 1) -> Events:
    """Start a request and wait until its worker runs it."""
    stream = pool.generate(model, request(kind, n=n))
    assert isinstance(await anext(stream), Started)
    return stream


async def drain_stream(stream: Events) -> None:
    async for _ in stream:
        pass


def in_flight(running: Running) -> int:
    groups = running.pool._groups.values()
    return sum(len(replica.requests) for group in groups for replica in group.replicas)


async def test_a_request_gets_its_tokens_and_leaves_nothing_behind() -> None:
    async with running_pool() as running:
        events = await collect(running.pool, request(script.COUNT, max_tokens=5, n=2))
        assert isinstance(events[0], Started)
        assert tokens_of(events, 0) == tokens_of(events, 1) == [0, 1, 2, 3, 4]
        assert in_flight(running) == 0


async def test_many_requests_at_once_keep_apart() -> None:
    async with running_pool() as running:
        wanted = list(range(1, 41))
        answers = await asyncio.gather(
            *(collect(running.pool, request(script.COUNT, max_tokens=k)) for k in wanted)
        )
        assert [tokens_of(events) for events in answers] == [list(range(k)) for k in wanted]
        assert in_flight(running) == 0


async def test_closing_the_iterator_aborts_the_request() -> None:
    async with running_pool() as running:
        async with aclosing(await begin(running.pool)) as stream:
            await anext(stream)
        assert in_flight(running) == 0
        await until(lambda: running.metric("vllm:num_requests_running", **LABELS) == 0)
        assert running.metric("vllm:request_success_total", finished_reason="abort", **LABELS) == 1


async def test_aborting_one_sequence_leaves_the_others() -> None:
    async with running_pool() as running:
        asked = request(script.ENDLESS, n=2)
        seen: list[int] = []
        async for event in running.pool.generate("m", asked):
            if isinstance(event, Delta):
                seen.append(event.index)
            if seen.count(0) == 2:
                running.pool.abort(asked.request_id, 0)
            if seen.count(1) == 9:
                running.pool.abort(asked.request_id)
        assert (seen.count(0), seen.count(1)) == (2, 9)


async def test_unknown_models_and_refused_requests() -> None:
    async with running_pool() as running:
        with pytest.raises(NotFound, match="'other'") as missing:
            await collect(running.pool, request(script.COUNT), model="other")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(BadRequest, match="by the script") as refused:
            await collect(running.pool, request(script.REFUSED))
        assert refused.value.param == "prompt"


async def test_a_killed_worker_fails_its_requests_and_comes_back() -> None:
    async with running_pool() as running:
        pool, pid = running.pool, await worker_pid(running.pool)
        streams = [await begin(pool) for _ in range(3)]
        os.kill(pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(Unavailable) as lost:
                await drain_stream(stream)
            assert lost.value.retry_after_s is not None
        assert not pool.ready().ok
        with pytest.raises(Unavailable, match="no worker right now"):
            await collect(pool, request(script.COUNT))
        await until(lambda: pool.ready().ok)
        assert await worker_pid(pool) != pid
        assert running.metric("plait_worker_restarts_total", reason="exit", **LABELS) == 1
        assert in_flight(running) == 0


async def test_a_hung_worker_is_killed_and_comes_back() -> None:
    settings = PoolSettings(heartbeat_timeout_s=1.5, restart_backoff_s=0.01)
    async with running_pool(pool=settings) as running:
        pid = await worker_pid(running.pool)
        stream = await begin(running.pool)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Unavailable):
            await drain_stream(stream)
        assert "hangs" in running.pool.ready().reason or "killed" in running.pool.ready().reason
        await until(lambda: running.pool.ready().ok)
        assert await worker_pid(running.pool) != pid
        assert running.metric("plait_worker_restarts_total", reason="hang", **LABELS) == 1


async def test_a_failing_step_is_an_internal_error_and_the_worker_is_replaced() -> None:
    async with running_pool() as running:
        with pytest.raises(Internal):
            await collect(running.pool, request(script.POISON))
        await until(lambda: running.pool.ready().ok)
        assert tokens_of(await collect(running.pool, request(script.COUNT))) == [0, 1, 2]


async def test_a_worker_that_ends_within_a_step_costs_only_its_own_requests() -> None:
    async with running_pool(models=("a", "b")) as running:
        other = await begin(running.pool, model="b")
        with pytest.raises(Unavailable):
            await collect(running.pool, request(script.SUICIDE), model="a")
        assert not running.pool.ready().ok
        assert isinstance(await anext(other), Delta)
        await other.aclose()
        await until(lambda: running.pool.ready().ok)


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with running_pool(pool=PoolSettings(max_queue=2)) as running:
        streams = [await begin(running.pool) for _ in range(2)]
        assert running.pool.ready().reason == "m: the queue is full"
        with pytest.raises(Overloaded) as full:
            await collect(running.pool, request(script.COUNT))
        assert full.value.retry_after_s is not None
        assert 1 <= full.value.retry_after_s <= 60
        await streams[0].aclose()
        assert running.pool.ready().ok
        assert tokens_of(await collect(running.pool, request(script.COUNT))) == [0, 1, 2]
        await streams[1].aclose()
        rejected = running.metric("plait_requests_rejected_total", reason="rate_limit_exceeded")
        assert rejected == 1


async def test_the_pool_ends_what_the_worker_lets_run_past_its_deadline() -> None:
    async with running_pool() as running:
        late = request(script.SILENT, deadline=time.monotonic() + 0.01)
        with pytest.raises(DeadlineExceeded):
            await collect(running.pool, late)
        assert in_flight(running) == 0
        await until(lambda: running.metric("vllm:num_requests_running", **LABELS) == 0)


async def test_requests_without_a_deadline_get_the_default() -> None:
    async with running_pool(pool=PoolSettings(default_deadline_s=0.01)) as running:
        with pytest.raises(DeadlineExceeded):
            await collect(running.pool, request(script.SILENT))


async def test_draining_lets_requests_finish_and_takes_no_more() -> None:
    async with running_pool() as running:
        asked = request(script.COUNT, max_tokens=50)
        answer = asyncio.create_task(collect(running.pool, asked))
        await until(lambda: in_flight(running) == 1)
        draining = asyncio.create_task(running.pool.drain(20))
        await asyncio.sleep(0)
        assert running.pool.ready().reason == "draining"
        with pytest.raises(Unavailable, match="shutting down"):
            await collect(running.pool, request(script.COUNT))
        await draining
        assert answer.done() or in_flight(running) == 0
        assert len(tokens_of(await answer)) == 50


async def test_draining_ends_what_takes_too_long() -> None:
    async with running_pool() as running:
        stream = await begin(running.pool)
        await running.pool.drain(0.01)
        with pytest.raises(Unavailable, match="shutting down"):
            await drain_stream(stream)


async def test_two_models_side_by_side() -> None:
    async with running_pool(models=("a", "b")) as running:
        assert [model.name for model in running.pool.models()] == ["a", "b"]
        pids = {await worker_pid(running.pool, name) for name in ("a", "b")}
        assert len(pids) == 2


async def test_replicas_share_the_load_and_stand_in_for_each_other() -> None:
    settings = PoolSettings(replicas=2, restart_backoff_s=0.01)
    async with running_pool(pool=settings) as running:
        streams = [await begin(running.pool) for _ in range(4)]
        group = running.pool._groups["m"]
        assert [len(replica.requests) for replica in group.replicas] == [2, 2]
        for stream in streams:
            await stream.aclose()
        os.kill(await worker_pid(running.pool), signal.SIGKILL)
        await until(lambda: sum(replica.is_up for replica in group.replicas) == 1)
        assert running.pool.ready().ok
        assert "1 of 2 workers" in running.pool.ready().reason
        assert tokens_of(await collect(running.pool, request(script.COUNT))) == [0, 1, 2]


async def test_requests_follow_their_prompts_to_the_same_replica() -> None:
    async with running_pool(pool=PoolSettings(replicas=2)) as running:
        prompt = [script.PID, *range(200)]
        pids = {
            tokens_of(await collect(running.pool, request(script.PID, prompt=[*prompt, tail])))[0]
            for tail in range(6)
        }
        assert len(pids) == 1


async def test_models_that_cannot_be_loaded() -> None:
    with pytest.raises(WorkerGone, match="this model is broken"):
        async with running_pool(models=("broken",)):
            pass
    with pytest.raises(WorkerGone, match="loading took longer"):
        async with running_pool(models=("mute",), pool=PoolSettings(ready_timeout_s=0.5)):
            pass
    with pytest.raises(BadModel, match="served as 'x'"):
        async with running_pool(models=("here/x", "there/x")):
            pass


async def test_workers_end_with_the_pool_and_sockets_with_them() -> None:
    async with running_pool() as running:
        pid = await worker_pid(running.pool)
        folder = running.pool._folder
        assert folder is not None
        assert folder.path.stat().st_mode & 0o777 == 0o700
    assert not folder.path.exists()
    assert not Path(f"/proc/{pid}").exists()


async def test_no_file_descriptor_leaks() -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def use() -> None:
        async with running_pool() as running:
            await asyncio.gather(*(collect(running.pool, request(script.COUNT)) for _ in range(20)))
            os.kill(await worker_pid(running.pool), signal.SIGKILL)
            await until(lambda: not running.pool.ready().ok)
            await until(lambda: running.pool.ready().ok)

    await use()
    before = num_open()
    await use()
    await until(lambda: num_open() <= before)


async def test_compile_knows_the_model_and_is_timed() -> None:
    async with running_pool() as running:
        spec = ConstraintSpec(kind="regex", text="a+")
        assert (await running.pool.compile("m", spec, "")).key == "a+"
        with pytest.raises(NotFound):
            await running.pool.compile("other", spec, "")
        name = "plait_grammar_compile_seconds_count"
        assert running.metric(name, outcome="compiled") == 1
        assert running.metric("plait_grammar_cache_hits_total") == 7


async def test_metrics_tell_of_requests_and_engines() -> None:
    async with running_pool() as running:
        await collect(running.pool, request(script.COUNT, max_tokens=4, n=2))
        tells = running.metric
        assert tells("vllm:request_success_total", finished_reason="length", **LABELS) == 2
        assert tells("vllm:time_to_first_token_seconds_count", **LABELS) == 2
        assert tells("vllm:inter_token_latency_seconds_count", **LABELS) == 6
        assert tells("vllm:request_queue_time_seconds_count", **LABELS) == 1
        assert tells("vllm:request_generation_tokens_sum", **LABELS) == 8
        shape = {"block_size": "16", "num_gpu_blocks": "512"}
        assert tells("vllm:cache_config_info", **LABELS, **shape) == 1
        await until(lambda: tells("vllm:generation_tokens_total", **LABELS) == 8)
        os.kill(await worker_pid(running.pool), signal.SIGKILL)
        await until(lambda: not running.pool.ready().ok)
        assert tells("vllm:generation_tokens_total", **LABELS) >= 8


LABELS = {"model_name": "m", "engine": "0"}


@pytest.mark.parametrize(
    ("code", "want"),
    [
        (3, "the worker ended with code 3"),
        (EXIT_RANK_LOST, "the process of one of the worker's devices has ended: the log says why"),
        (-11, "the worker was killed by signal 11 (Segmentation fault)"),
        (-9, "the worker was killed by signal 9 (Killed), as the system does when memory runs out"),
    ],
)
def test_how_a_worker_ended_is_said_in_words(code: int, want: str) -> None:
    assert describe_exit(code) == want
