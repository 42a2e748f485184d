"""One replica of a model: its current worker, the requests in flight, and the latest statistics."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from plait.server.errors import ServerError, Unavailable
from plait.server.pool.in_flight import InFlightRequest, to_server_error
from plait.server.pool.worker import Worker
from plait.server.telemetry.engine_collector import EngineSnapshot
from plait.server.telemetry.metrics import EngineMetrics
from plait.server.wire.counters import EngineCounters, add_counters
from plait.server.wire.messages import (
    Abort,
    Batch,
    DraftStoreReport,
    DraftStoreTask,
    Failed,
    GenerateRequest,
    ModelInfo,
    Stats,
)

# Retry-After, in seconds: its range, and its value while nothing has been finished yet.
RETRY_MIN_S, RETRY_MAX_S, RETRY_UNKNOWN_S = 1, 60, 5
RATE_WINDOW = 64  # finished requests that the throughput is estimated from


class Replica:
    """Outlives its workers: when one is lost, the next takes its place."""

    def __init__(self, model: str, index: int, metrics: EngineMetrics) -> None:
        self.model = model
        self.index = index
        self.metrics = metrics
        self.requests: dict[str, InFlightRequest] = {}
        self._pending_tasks: dict[str, asyncio.Future[DraftStoreReport]] = {}
        self.info: ModelInfo | None = None  # of the latest worker; kept while it restarts
        self.loaded = asyncio.Event()  # set when the first worker has loaded, never cleared
        self.num_reports = 0
        self.down_reason = "loading"
        self.is_retiring = False  # its worker ends after its last request
        self._worker: Worker | None = None
        self._up, self._idle = asyncio.Event(), asyncio.Event()
        self._stats: Stats | None = None
        self._past_counters = EngineCounters()  # of the workers before this one
        self._finished: deque[float] = deque(maxlen=RATE_WINDOW)

    @property
    def is_up(self) -> bool:
        """Whether a loaded worker is attached."""
        return self._worker is not None

    @property
    def takes_requests(self) -> bool:
        """Whether new requests may go to its worker."""
        return self.is_up and not self.is_retiring

    async def wait_idle(self) -> None:
        """Return when no request is in flight."""
        while self.requests:
            self._idle.clear()
            await self._idle.wait()

    async def wait_up(self) -> None:
        """Return when a loaded worker is attached."""
        while not self.is_up:
            self._up.clear()
            await self._up.wait()

    def set_loading_stage(self, stage: str) -> None:
        """Remember how far a worker is with loading."""
        self.down_reason = f"loading, {stage}"

    def attach(self, worker: Worker, info: ModelInfo) -> None:
        """Take a worker that has loaded; from now on it gets requests."""
        self._worker = worker
        self._up.set()
        self.info = info
        self.loaded.set()

    def detach(self, reason: str) -> None:
        """Give up a worker that is ending, and fail its requests; a second time does nothing."""
        self._worker = None
        self.down_reason = reason
        if self._stats is not None:
            self._past_counters = add_counters(self._past_counters, self._stats.counters)
            self._stats = None
        for in_flight in self.requests.values():
            in_flight.fail(Unavailable("The worker that ran this request has ended. Please retry."))
        for report_due in self._pending_tasks.values():
            if not report_due.done():
                report_due.set_exception(Unavailable("The worker has ended. Please retry."))

    def open(self, request: GenerateRequest) -> InFlightRequest:
        """Send a request to the worker."""
        assert self._worker is not None, "routing gives work to live replicas only"
        assert request.request_id not in self.requests, "request ids are unique"
        in_flight = InFlightRequest(request, self.metrics)
        self.requests[request.request_id] = in_flight
        self.metrics.admitted(
            prompt_tokens=len(request.prompt_token_ids),
            n=request.n,
            max_tokens=request.max_tokens,
        )
        self._worker.send(request)
        return in_flight

    def close(self, in_flight: InFlightRequest) -> None:
        """Forget a request; it is aborted if it still runs."""
        del self.requests[in_flight.request.request_id]
        if not self.requests:
            self._idle.set()
        if not in_flight.is_over:
            self.abort(in_flight, None)
        elif in_flight.failure is None:
            self._finished.append(time.monotonic())

    def abort(self, in_flight: InFlightRequest, index: int | None) -> None:
        """Abort one sequence of a request, or all of them."""
        in_flight.stop(index)
        self._send_abort(Abort(in_flight.request.request_id, index))

    def fail_request(self, in_flight: InFlightRequest, error: ServerError) -> None:
        """End a request with an error, in the pool and in the worker."""
        if not in_flight.is_over:
            in_flight.fail(error)
            self._send_abort(Abort(in_flight.request.request_id))

    async def run_draft_store_task(self, task: DraftStoreTask, limit_s: float) -> DraftStoreReport:
        """Have the worker do a task of its draft stores; return its report.

        Raises:
            Unavailable: no worker is up, or it ended, or did not answer within limit_s.
        """
        if self._worker is None:
            raise Unavailable(f"The model {self.model!r} has no worker: {self.down_reason}.")
        report_due: asyncio.Future[DraftStoreReport] = asyncio.get_running_loop().create_future()
        self._pending_tasks[task.task_id] = report_due
        self._worker.send(task)
        try:
            async with asyncio.timeout(limit_s):
                return await report_due
        except TimeoutError:
            raise Unavailable("The worker did not answer in time. Please retry.") from None
        finally:
            del self._pending_tasks[task.task_id]

    def deliver(self, report: Stats | Batch | DraftStoreReport) -> None:
        """Pass a worker's report to the requests or the task that wait for it."""
        self.num_reports += 1
        if isinstance(report, DraftStoreReport):
            report_due = self._pending_tasks.get(report.task_id)
            if report_due is not None and not report_due.done():
                report_due.set_result(report)
            return
        if isinstance(report, Stats):
            self._stats = report
            self.metrics.steps(report.step_tokens)
            return
        for event in report.reports:
            if isinstance(event, Failed):
                self._fail(event)
            elif (in_flight := self.requests.get(event.request_id)) is not None:
                in_flight.put(event)

    def _fail(self, failed: Failed) -> None:
        """Fail one request; an empty id stands for all: the engine has failed, the worker ends."""
        if failed.request_id:
            if (in_flight := self.requests.get(failed.request_id)) is not None:
                in_flight.fail(to_server_error(failed))
            return
        for in_flight in self.requests.values():
            in_flight.fail(to_server_error(failed))
        self.detach("the engine has failed")

    def _send_abort(self, abort: Abort) -> None:
        if self._worker is not None:
            self._worker.send(abort)

    def retry_after_s(self) -> int:
        """Estimate how long the requests that wait now will take, from the latest throughput."""
        if len(self._finished) < 2 or self._stats is None:
            return RETRY_UNKNOWN_S
        span = max(time.monotonic() - self._finished[0], 1e-3)
        seconds = max(self._stats.num_waiting, 1) * span / len(self._finished)
        return min(max(math.ceil(seconds), RETRY_MIN_S), RETRY_MAX_S)

    def snapshot(self) -> EngineSnapshot:
        """Return this replica's gauges and counters; counters don't fall when a worker restarts."""
        stats = self._stats
        past = self._past_counters
        totals = past if stats is None else add_counters(past, stats.counters)
        return EngineSnapshot(
            model=self.model,
            engine=str(self.index),
            info=self.info,
            num_running=stats.num_running if stats else 0,
            num_waiting=stats.num_waiting if stats else 0,
            kv_usage=stats.kv_blocks_used / max(stats.kv_blocks_total, 1) if stats else 0.0,
            counters=totals,
        )
