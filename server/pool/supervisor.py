"""Keeps a replica's worker running: starts it, monitors its heartbeat, restarts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from plait.server.pool.replica import Replica
from plait.server.pool.worker import Worker, WorkerGone
from plait.server.settings import PoolSettings

STOP_GRACE_S = 2.0  # for a worker to stop by itself
HEALTHY_S = 60.0  # a worker that ran this long is restarted without a longer pause
CHECKS_PER_TIMEOUT = 4  # of the heartbeat, per heartbeat_timeout_s
IDLE_SHARE = 0.01  # of a core: a worker that uses less is blocked, not merely slowed down

log = structlog.stdlib.get_logger(__name__)


async def supervise(
    replica: Replica, make_worker: Callable[[], Worker], settings: PoolSettings
) -> None:
    """Run workers, one after the other, until cancelled.

    A lost worker is replaced after a pause, which doubles with each failure, from restart_backoff_s
    to restart_backoff_max_s.

    Raises:
        WorkerGone: the first worker could not load its model.
    """
    pause = settings.restart_backoff_s
    while True:
        started_at = time.monotonic()
        gone = await _run_worker(replica, make_worker(), settings)
        if replica.info is None:
            raise gone
        if time.monotonic() - started_at > HEALTHY_S:
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


async def _run_worker(replica: Replica, worker: Worker, settings: PoolSettings) -> WorkerGone:
    """Run one worker until it is lost; return why. When cancelled, stop it gracefully."""
    grace_s = STOP_GRACE_S
    try:
        info = await worker.start(replica.set_loading_stage)
        replica.attach(worker, info)
        log.info(
            "worker ready",
            model=replica.model,
            replica=replica.index,
            weights=info.weights,
            max_model_len=info.max_model_len,
            kv_cache_tokens=info.num_blocks * info.block_size,
            seconds_to_load=round(info.seconds_to_load, 2),
        )
        await _receive_reports(replica, worker, settings.heartbeat_timeout_s)
    except WorkerGone as gone:
        grace_s = 0.0
        replica.detach(str(gone))
        return gone
    finally:
        replica.detach(replica.down_reason)
        await worker.close(grace_s)


async def _receive_reports(replica: Replica, worker: Worker, timeout_s: float) -> NoReturn:
    monitor = asyncio.create_task(_monitor_heartbeat(replica, worker, timeout_s))
    try:
        while True:
            replica.deliver(await worker.receive())
    except WorkerGone:
        if monitor.done():
            message = f"no heartbeat for {timeout_s:g} s: killed"
            raise WorkerGone("hang", message) from None
        raise
    finally:
        monitor.cancel()


async def _monitor_heartbeat(replica: Replica, worker: Worker, timeout_s: float) -> None:
    """Return once the worker hangs, after failing its requests and killing it.

    It hangs if no report has come for timeout_s, and since the last report it has either used
    timeout_s of CPU time or uses none now. So a worker that merely gets little CPU time on a busy
    machine is not killed.

    Checks are counted, not time: if this process itself was suspended or swapped out, the worker's
    reports wait in the socket and are read before the next check.
    """
    check_s = timeout_s / CHECKS_PER_TIMEOUT
    missed, cpu = 0, worker.cpu_seconds() or 0.0
    cpu_at_report = cpu
    while True:
        seen, cpu_before = replica.num_reports, cpu
        await asyncio.sleep(check_s)
        cpu = worker.cpu_seconds() or 0.0
        if replica.num_reports != seen:
            missed, cpu_at_report = 0, cpu
            continue
        missed += 1
        is_idle = cpu - cpu_before <= IDLE_SHARE * check_s
        if missed >= CHECKS_PER_TIMEOUT and (is_idle or cpu - cpu_at_report >= timeout_s):
            break
    replica.detach("the worker hangs")
    worker.kill()
