"""Keeps a replica's worker alive: starts it, listens to its heart, starts it again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from plait.server.pool.replica import Replica
from plait.server.pool.worker import Worker, WorkerGone
from plait.server.settings import PoolSettings

STOP_GRACE_S = 2.0  # for a worker that is told to stop
HEALTHY_S = 60.0  # a worker that lived this long has earned a fast restart
BEATS = 4  # looks at the heart per heartbeat_timeout_s
IDLE_SHARE = 0.01  # of a core: who uses less waits for something, who waits for the core gets more

log = structlog.stdlib.get_logger(__name__)


async def supervise(replica: Replica, spawn: Callable[[], Worker], settings: PoolSettings) -> None:
    """Run workers, one after the other, until cancelled.

    Raises:
        WorkerGone: the very first could not load its model. Later failures are tried again, after
            pauses that double from restart_backoff_s to restart_backoff_max_s.
    """
    pause = settings.restart_backoff_s
    while True:
        born = time.monotonic()
        gone = await _live_once(replica, spawn(), settings)
        if replica.info is None:
            raise gone
        if time.monotonic() - born > HEALTHY_S:
            pause = settings.restart_backoff_s
        log.error(
            "worker lost",
            model=replica.model,
            replica=replica.index,
            reason=str(gone),
            restart_in_s=pause,
        )
        replica.metrics.restarted(gone.reason)
        await asyncio.sleep(pause)
        pause = min(2 * pause, settings.restart_backoff_max_s)


async def _live_once(replica: Replica, worker: Worker, settings: PoolSettings) -> WorkerGone:
    """Run one worker until it is gone; return why. When cancelled, stop it kindly."""
    grace_s = STOP_GRACE_S
    try:
        info = await worker.start(replica.is_loading)
        replica.up(worker, info)
        log.info(
            "worker ready",
            model=replica.model,
            replica=replica.index,
            weights=info.weights,
            max_model_len=info.max_model_len,
            kv_cache_tokens=info.num_blocks * info.block_size,
            seconds_to_load=round(info.seconds_to_load, 2),
        )
        await _listen(replica, worker, settings.heartbeat_timeout_s)
    except WorkerGone as gone:
        grace_s = 0.0
        replica.down(str(gone))
        return gone
    finally:
        replica.down(replica.down_reason)
        await worker.close(grace_s)


async def _listen(replica: Replica, worker: Worker, timeout_s: float) -> NoReturn:
    heart = asyncio.create_task(_kill_when_silent(replica, worker, timeout_s))
    try:
        while True:
            replica.deliver(await worker.receive())
    except WorkerGone:
        if heart.done():
            message = f"no heartbeat for {timeout_s:g} s: killed"
            raise WorkerGone("hang", message) from None
        raise
    finally:
        heart.cancel()


async def _kill_when_silent(replica: Replica, worker: Worker, timeout_s: float) -> None:
    """Wait until the worker hangs, then fail the requests and kill the worker.

    It hangs when no report has come for timeout_s, and it has either used as much CPU time since
    the last one or uses none: a worker that a busy machine lets run only now and then is let alone.

    It counts its own looks, not the clock: when this process stood still (suspended, swapped out),
    the reports are waiting in the socket and get read before the next look.
    """
    look_s = timeout_s / BEATS
    missed, cpu = 0, worker.cpu_seconds() or 0.0
    cpu_at_report = cpu
    while True:
        seen, cpu_before = replica.num_reports, cpu
        await asyncio.sleep(look_s)
        cpu = worker.cpu_seconds() or 0.0
        if replica.num_reports != seen:
            missed, cpu_at_report = 0, cpu
            continue
        missed += 1
        is_idle = cpu - cpu_before <= IDLE_SHARE * look_s
        if missed >= BEATS and (is_idle or cpu - cpu_at_report >= timeout_s):
            break
    replica.down("the worker hangs")
    worker.kill()
