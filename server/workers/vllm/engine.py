"""The engine of a vLLM worker: vLLM schedules and computes, our decoder decides.

It admits requests as the native engine does, runs one of vLLM's requests for each sequence, and
reports in the same words. Searches that fork or rank sequences need an engine of ours; admission
refuses them by name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import Outcome
from plait.decoders.contract.isolation import attempt
from plait.server.engine.admission import Admission
from plait.server.engine.draft_store.keeper import StoreKeeper
from plait.server.engine.group.group import Group
from plait.server.engine.sequence import Sequence
from plait.server.engine.services import BaseEngine, Report
from plait.server.engine.step.reports import (
    count_drafts,
    make_deadline_delta,
    make_delta,
    make_started,
    release,
)
from plait.server.settings import EngineSettings
from plait.server.wire.messages import (
    Stats,
)
from plait.server.workers.vllm.protocol import CoreStep, EngineCoreLike
from plait.server.workers.vllm.sampler import Decided, DecoderSampler


class VllmEngine(BaseEngine):
    """Runs requests on vLLM's engine. One thread adds, aborts and steps."""

    def __init__(
        self,
        core: EngineCoreLike,
        sampler: DecoderSampler,
        admission: Admission,
        settings: EngineSettings,
        costs: CostCurve,
        keeper: StoreKeeper,
    ) -> None:
        super().__init__(admission, settings, costs, keeper)
        self._core = core
        self._sampler = sampler
        self._running: dict[str, Sequence] = {}  # by vLLM's ids; those that it queues as well
        self._keys: dict[int, str] = {}  # by id(sequence)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request or one of its sequences, and free all it holds; unknown ids are fine."""
        self._admission.drop(request_id, index)
        group = self._groups.get(request_id)
        if group is not None:
            self._remove(group.close(index))

    def close(self) -> None:
        """Save what is to outlive the engine; nothing is added or stepped afterwards."""
        self._keeper.save()
        self._core.close()

    def step(self) -> list[Report]:
        """Advance every running sequence by one of vLLM's steps; return what there is to tell."""
        reports = self._admit() + self._expire()
        if not self._running:
            return reports
        begun = time.perf_counter()
        told = self._core.step()
        decided, rows = self._sampler.take()
        reports += self._started(told)
        reports += [report for each in decided for report in self._commit(each)]
        if rows:
            self._step_tokens.append(rows)
            if not told.begun:  # prompt tokens without logits are cheaper
                self._costs.observe(rows, time.perf_counter() - begun)
        return reports

    def stats(self) -> Stats:
        """Return gauges, counters since the start, and the rows of each step since last asked."""
        core = self._core.stats()
        self._counters.num_preemptions = core.num_preemptions
        return self._stats(
            core.num_running, core.num_waiting, core.kv_blocks_used, core.kv_blocks_total
        )

    def _admit(self) -> list[Report]:
        """Give vLLM the requests whose constraints have been loaded meanwhile."""
        arrived, failed = self._admission.poll(wait=not self._groups)
        reports: list[Report] = [*failed]
        for group in arrived:
            self._groups[group.request.request_id] = group
            fault = attempt(partial(self._queue, group))
            if isinstance(fault, Exception):
                reports += self._fail(group.request.request_id, cause=fault)
        return reports

    def _queue(self, group: Group) -> None:
        for sequence in group.members.values():
            key = self._core.add(sequence)
            self._running[key] = sequence
            self._keys[id(sequence)] = key
            self._sampler.states[key] = sequence.state

    def _expire(self) -> list[Report]:
        """End the sequences whose request's deadline has passed."""
        members = [sequence for group in self._late() for sequence in group.members.values()]
        self._remove(members)
        return [make_deadline_delta(sequence) for sequence in members]

    def _started(self, told: CoreStep) -> list[Report]:
        """Report the sequences that have left vLLM's queue."""
        reports: list[Report] = []
        for key, num_cached in told.begun.items():
            sequence = self._running[key]
            sequence.num_computed_tokens = num_cached
            self._counters.prompt_tokens += sequence.prompt_length - num_cached
            self._counters.prefix_cache_queries += sequence.prompt_length
            self._counters.prefix_cache_hits += num_cached
            reports.append(make_started(sequence))
        for key, logprobs in told.prompt_logprobs.items():
            self._running[key].prompt_logprobs = logprobs
        return reports

    def _commit(self, decided: Decided) -> list[Report]:
        """Make an outcome true, or end the request; return what the client gets to see."""
        sequence = self._running.get(decided.key)
        if sequence is None:  # its request failed earlier in this step
            return []
        outcome = decided.outcome
        if outcome.fault:
            error = "BadRequest" if outcome.is_client_error else "Internal"
            request_id = sequence.request.request_id
            return self._fail(request_id, outcome.fault, error, cause=outcome.cause)
        self._count(sequence, outcome)
        delta = make_delta(sequence, outcome)
        if outcome.finish is not None:
            self._remove([sequence])
        return [delta] if delta is not None else []

    def _count(self, sequence: Sequence, outcome: Outcome) -> None:
        sequence.forwards += 1
        sequence.steps.extend([sequence.forwards] * len(outcome.emit))
        self._counters.generation_tokens += len(outcome.emit)
        if outcome.drafted:
            count_drafts(self._counters.speculation, outcome)

    def _remove(self, sequences: Iterable[Sequence]) -> None:
        """Free what vLLM and the decoder hold of some sequences."""
        gone = list(sequences)
        keys = [key for each in gone if (key := self._keys.pop(id(each), None)) is not None]
        self._core.abort(keys)
        for key in keys:
            del self._running[key], self._sampler.states[key]
        for sequence in gone:
            request_id = sequence.request.request_id
            group = self._groups[request_id]
            group.members.pop(sequence.index, None)
            if not group.members:
                self._groups.pop(request_id)
            release(sequence, self._token_trace)
