"""A request in flight: its events on their way to the client, and its timestamps for metrics."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from plait.decoders.contract.decoder import PredictionResult
from plait.server import errors
from plait.server.errors import Internal, ServerError
from plait.server.telemetry.metrics import EngineMetrics, SequenceTimes
from plait.server.wire.messages import Delta, Failed, GenerateRequest, Started


@dataclass(slots=True)
class _SequenceProgress:
    """Times of one unfinished sequence, in seconds of time.monotonic()."""

    first_token: float = 0.0
    last_token: float = 0.0
    tokens: int = 0


class InFlightRequest:
    """The pool's side of a request. Used on one event loop.

    Events are queued here until the client takes them; a slow client gets the queued deltas of a
    sequence merged into one. Their number is bounded by the request's n and max_tokens.
    """

    def __init__(self, request: GenerateRequest, metrics: EngineMetrics) -> None:
        self.request = request
        self.arrived = request.arrived or time.monotonic()
        self.started = 0.0
        self.first_token = 0.0
        self.finish_reasons: list[str] = []
        self.num_tokens = 0
        self._metrics = metrics
        self._open = {index: _SequenceProgress() for index in range(request.n)}
        self._waiting: deque[Started | Delta] = deque()
        self.failure: ServerError | None = None
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether all sequences have ended."""
        return not self._open

    def put(self, event: Started | Delta) -> None:
        """Queue an event from the worker; events of a sequence that has ended are dropped."""
        if isinstance(event, Started):
            if self.started or self.is_over:
                return
            self.started = event.at
            self._metrics.started(event.at - self.arrived)
        elif event.index in self._open:
            self._observe(event)
        else:
            return
        self._waiting.append(event)
        self._changed.set()

    def fail(self, error: ServerError) -> None:
        """End the request; the client gets the error after the queued events."""
        if self.is_over:
            return
        self.failure = error
        self._end_all("deadline" if isinstance(error, errors.DeadlineExceeded) else "error")

    def stop(self, index: int | None) -> None:
        """End one sequence (a stop string was found) or all (the client has left)."""
        if index is None:
            self._waiting.clear()
            self._end_all("abort")
        elif index in self._open:
            self._end(index, "stop")
            self._changed.set()

    async def take(self) -> list[Started | Delta]:
        """Return all queued events, after waiting for a first one; empty: the request is over.

        Raises:
            ServerError: the error that ended the request, after its last events have been taken.
        """
        while not self._waiting and not self.is_over:
            self._changed.clear()
            await self._changed.wait()
        if self._waiting:
            waiting, self._waiting = self._waiting, deque()
            return coalesce(waiting)
        if self.failure is not None:
            raise self.failure
        return []

    def _observe(self, delta: Delta) -> None:
        progress = self._open[delta.index]
        if delta.token_ids:
            now = time.monotonic()
            if progress.tokens == 0:
                progress.first_token = now
                self.first_token = self.first_token or now
                self._metrics.first_token(now - self.arrived)
            else:
                self._metrics.next_tokens(now - progress.last_token)
            progress.last_token = now
            progress.tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._end(delta.index, delta.finish_reason)

    def _end(self, index: int, reason: str) -> None:
        progress = self._open.pop(index)
        self.finish_reasons.append(reason)
        self.num_tokens += progress.tokens
        self._metrics.finished(
            reason,
            SequenceTimes(
                arrived=self.arrived,
                started=self.started or progress.first_token,
                first_token=progress.first_token,
                last_token=progress.last_token,
                tokens=progress.tokens,
            ),
        )

    def _end_all(self, reason: str) -> None:
        for index in list(self._open):
            self._end(index, reason)
        self._changed.set()


def coalesce(events: Iterable[Started | Delta]) -> list[Started | Delta]:
    """Return the events with the deltas of each sequence merged at the place of the first one.

    Law: the tokens of each sequence, and everything else its deltas say, stay the same.
    """
    merged: list[Started | Delta] = []
    deltas: dict[int, list[Delta]] = {}
    place: dict[int, int] = {}
    for event in events:
        if isinstance(event, Delta):
            if event.index not in deltas:
                place[event.index] = len(merged)
                merged.append(event)
            deltas.setdefault(event.index, []).append(event)
        else:
            merged.append(event)
    for index, several in deltas.items():
        if len(several) > 1:
            merged[place[index]] = _merge(several)
    return merged


def _merge(deltas: list[Delta]) -> Delta:
    first, last = deltas[0], deltas[-1]
    has_logprobs = any(delta.logprobs is not None for delta in deltas)
    return Delta(
        request_id=first.request_id,
        index=first.index,
        token_ids=[token for delta in deltas for token in delta.token_ids],
        logprobs=[entry for d in deltas for entry in d.logprobs or ()] if has_logprobs else None,
        finish_reason=last.finish_reason,
        stop_token=last.stop_token,
        prompt_logprobs=first.prompt_logprobs,
        trace=last.trace,
        predicted=_merge_predictions(deltas),
        search=last.search,
        scores=last.scores,
    )


def _merge_predictions(deltas: Iterable[Delta]) -> PredictionResult | None:
    """Return the prediction results of several deltas, with positions in the merged tokens."""
    accepted: list[int] = []
    rejected: list[tuple[int, int]] = []
    start = 0
    for delta in deltas:
        if delta.predicted is not None:
            accepted += [start + place for place in delta.predicted.accepted]
            rejected += [(start + place, rows) for place, rows in delta.predicted.rejected]
        start += len(delta.token_ids)
    return PredictionResult(accepted, rejected) if accepted or rejected else None


def to_server_error(failed: Failed) -> ServerError:
    """Return the error that a worker's report stands for."""
    kind = getattr(errors, failed.error, None)
    if isinstance(kind, type) and issubclass(kind, ServerError):
        return kind(failed.message, param=failed.param, code=failed.code)
    return Internal(failed.message)
