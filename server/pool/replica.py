"""One place for a worker: the requests it runs, and what it has last told about itself."""

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
    """Outlives its workers: one may die and the next take its place."""

    def __init__(self, model: str, index: int, metrics: EngineMetrics) -> None:
        self.model = model
        self.index = index
        self.metrics = metrics
        self.calls: dict[str, InFlightRequest] = {}
        self._asked: dict[str, asyncio.Future[DraftStoreReport]] = {}
        self.info: ModelInfo | None = None  # the last one: kept while a worker restarts
        self.loaded = asyncio.Event()  # set for good when the first worker has loaded
        self.num_reports = 0
        self.down_reason = "loading"
        self._worker: Worker | None = None
        self._stats: Stats | None = None
        self._past_counters = EngineCounters()  # of the workers before this one
        self._finished: deque[float] = deque(maxlen=RATE_WINDOW)

    @property
    def is_up(self) -> bool:
        """Whether a loaded worker is there."""
        return self._worker is not None

    def is_loading(self, stage: str) -> None:
        """Note how far a worker is with loading."""
        self.down_reason = f"loading, {stage}"

    def up(self, worker: Worker, info: ModelInfo) -> None:
        """Take a worker that has loaded."""
        self._worker = worker
        self.info = info
        self.loaded.set()

    def down(self, reason: str) -> None:
        """Let go of a worker that is ending, and fail what it ran; twice is as good as once."""
        self._worker = None
        self.down_reason = reason
        if self._stats is not None:
            self._past_counters = add_counters(self._past_counters, self._stats.counters)
            self._stats = None
        for call in self.calls.values():
            call.fail(Unavailable("The worker that ran this request has ended. Please retry."))
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Unavailable("The worker has ended. Please retry."))

    def open(self, request: GenerateRequest) -> InFlightRequest:
        """Send a request to the worker."""
        assert self._worker is not None, "routing gives work to live replicas only"
        assert request.request_id not in self.calls, "request ids are unique"
        call = InFlightRequest(request, self.metrics)
        self.calls[request.request_id] = call
        self.metrics.admitted(
            prompt_tokens=len(request.prompt_token_ids),
            n=request.n,
            max_tokens=request.max_tokens,
        )
        self._worker.send(request)
        return call

    def close(self, call: InFlightRequest) -> None:
        """Forget a request; the worker is told if it still runs."""
        del self.calls[call.request.request_id]
        if not call.is_over:
            self.abort(call, None)
        elif call.failure is None:
            self._finished.append(time.monotonic())

    def abort(self, call: InFlightRequest, index: int | None) -> None:
        """Stop one sequence of a request, or all of them."""
        call.stop(index)
        self._tell(Abort(call.request.request_id, index))

    def give_up(self, call: InFlightRequest, error: ServerError) -> None:
        """End a request with an error, on both sides."""
        if not call.is_over:
            call.fail(error)
            self._tell(Abort(call.request.request_id))

    async def ask(self, task: DraftStoreTask, limit_s: float) -> DraftStoreReport:
        """Let the worker do something to its draft stores; return what has become of it.

        Raises:
            Unavailable: no worker is up, or it ended, or did not answer within limit_s.
        """
        if self._worker is None:
            raise Unavailable(f"The model {self.model!r} has no worker: {self.down_reason}.")
        answer: asyncio.Future[DraftStoreReport] = asyncio.get_running_loop().create_future()
        self._asked[task.task_id] = answer
        self._worker.send(task)
        try:
            async with asyncio.timeout(limit_s):
                return await answer
        except TimeoutError:
            raise Unavailable("The worker did not answer in time. Please retry.") from None
        finally:
            del self._asked[task.task_id]

    def deliver(self, report: Stats | Batch | DraftStoreReport) -> None:
        """Hand a worker's report to whom it concerns."""
        self.num_reports += 1
        if isinstance(report, DraftStoreReport):
            answer = self._asked.get(report.task_id)
            if answer is not None and not answer.done():
                answer.set_result(report)
            return
        if isinstance(report, Stats):
            self._stats = report
            self.metrics.steps(report.step_tokens)
            return
        for event in report.reports:
            if isinstance(event, Failed):
                self._fail(event)
            elif (call := self.calls.get(event.request_id)) is not None:
                call.put(event)

    def _fail(self, failed: Failed) -> None:
        """Fail one request, or with an empty id all: the engine itself has failed and will end."""
        if failed.request_id:
            if (call := self.calls.get(failed.request_id)) is not None:
                call.fail(to_server_error(failed))
            return
        for call in self.calls.values():
            call.fail(to_server_error(failed))
        self.down("the engine has failed")

    def _tell(self, abort: Abort) -> None:
        if self._worker is not None:
            self._worker.send(abort)

    def retry_after_s(self) -> int:
        """Estimate how long it takes to serve what waits now, from the latest throughput."""
        if len(self._finished) < 2 or self._stats is None:
            return RETRY_UNKNOWN_S
        span = max(time.monotonic() - self._finished[0], 1e-3)
        seconds = max(self._stats.num_waiting, 1) * span / len(self._finished)
        return min(max(math.ceil(seconds), RETRY_MIN_S), RETRY_MAX_S)

    def snapshot(self) -> EngineSnapshot:
        """Return what metrics tell of this replica; counters never fall, restarts or not."""
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
