"""The engine: propose, forward, accept, for all running sequences at once.

It knows token ids, sequences and KV blocks, and decoders and searches by their protocols; it knows
no characters, and names no method but the default search, `independent`.
Whatever raises within a step ends the requests at fault, and the others go on: docs/architecture.md
says who is at fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from functools import partial

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import Outcome
from plait.decoders.contract.isolation import FAILED, attempt, faulty
from plait.decoders.contract.scorer import ScorerError
from plait.server.engine.admission import POLL_S, Admission
from plait.server.engine.draft_store.keeper import StoreKeeper
from plait.server.engine.group.group import Group
from plait.server.engine.group.search_runner import SearchRunner
from plait.server.engine.kv.manager import KVCacheManager
from plait.server.engine.runner import Runner
from plait.server.engine.scheduler import Scheduler
from plait.server.engine.sequence import ScheduledSequence, Sequence
from plait.server.engine.services import BaseEngine, Report
from plait.server.engine.step.decoder_calls import accept, propose
from plait.server.engine.step.forward_pass import ForwardPass, check_runner, run_forward_passes
from plait.server.engine.step.reports import (
    count_rows,
    make_deadline_delta,
    make_delta,
    make_started,
    release,
)
from plait.server.settings import EngineSettings
from plait.server.wire.messages import (
    Delta,
    Stats,
)


class Engine(BaseEngine):
    """Runs requests on one model. One thread adds, aborts and steps."""

    def __init__(
        self,
        runner: Runner,
        kv: KVCacheManager,
        admission: Admission,
        settings: EngineSettings,
        costs: CostCurve | None = None,
        keeper: StoreKeeper | None = None,
    ) -> None:
        """Begin without requests.

        Args:
            runner: of the model.
            kv: of its cache.
            admission: lets requests in.
            settings: How much is run at once.
            costs: learns what the engine's passes take; decoders may look at it, too.
            keeper: of the drafters' stores.
        """
        super().__init__(admission, settings, costs or CostCurve(), keeper or StoreKeeper())
        self._runner = runner
        self._kv = kv
        self._scheduler = Scheduler(
            kv,
            max_seqs=settings.max_num_seqs,
            max_rows=settings.max_step_tokens,
            costs=self._costs,
        )
        self._searching: dict[str, Group] = {}  # those whose searches decide something
        self._searches = SearchRunner(self._scheduler, self._release)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request or one of its sequences, and free all it holds; unknown ids are fine."""
        self._admission.drop(request_id, index)
        group = self._groups.get(request_id)
        if group is None:
            return
        for sequence in group.close(index):
            self._remove(sequence)

    def close(self) -> None:
        """Save what is to outlive the engine; nothing is added or stepped afterwards."""
        self._keeper.save()
        self._searches.close()

    def step(self) -> list[Report]:
        """Advance every running sequence by one forward pass; return what there is to tell."""
        reports = self._admit() + self._expire() + self._decide_groups()
        plan = self._scheduler.plan()
        proposals, failures = propose(plan.proposing, plan.budget)
        scheduled, oversized = self._scheduler.reserve(plan, proposals)
        reports += self._fail_all(failures) + self._fail_all(oversized)
        scheduled = [each for each in scheduled if not each.sequence.is_done]
        if not scheduled:
            if self._searches.awaits_scores and not reports:
                self._searches.exchange_scores(POLL_S)
            return reports
        reports += [make_started(s.sequence) for s in scheduled if not s.sequence.is_started]
        passes, failed = run_forward_passes(self._runner, scheduled)
        outcomes: dict[int, Outcome] = {id(each): faulty(cause) for each, cause in failed}
        for made in passes:
            outcomes |= self._accept(made)
        reports += [r for s in scheduled for r in self._commit(s, outcomes.get(id(s)))]
        reports += self._decide_groups()
        self._step_tokens.append(sum(made.num_rows for made in passes))
        if not passes:
            check_runner(self._runner, self._kv.pool)
        return reports

    def stats(self) -> Stats:
        """Return gauges, counters since the start, and the rows of each step since last asked."""
        counters, scheduler, pool = self._counters, self._scheduler, self._kv.pool
        counters.prefix_cache_queries = self._kv.num_queried_tokens
        counters.prefix_cache_hits = self._kv.num_hit_tokens
        counters.num_preemptions = scheduler.num_preemptions
        running, waiting = scheduler.num_running, scheduler.num_waiting
        return self._stats(running, waiting, pool.num_used, pool.num_blocks)

    def check_integrity(self) -> None:
        """Raise AssertionError if blocks are lost, or held while nothing runs."""
        pool = self._kv.pool
        pool.check_integrity()
        assert self._groups or pool.num_used == pool.num_loading, "blocks are held by nobody"

    def _admit(self) -> list[Report]:
        """Queue the requests whose constraints have been loaded meanwhile."""
        arrived, failed = self._admission.poll(wait=not self._groups)
        for group in arrived:
            self._groups[group.request.request_id] = group
            if not group.is_independent:
                self._searching[group.request.request_id] = group
            for sequence in group.members.values():
                self._scheduler.add(sequence)
        return [*failed]

    def _expire(self) -> list[Report]:
        """End the sequences whose request's deadline has passed."""
        return [report for group in self._late() for report in self._end_late(group)]

    def _end_late(self, group: Group) -> list[Report]:
        """End a request whose deadline has passed, with what its search has by now."""
        if not group.is_independent:
            return self._decide(group, partial(self._searches.finish, group, "deadline"))
        members = list(group.members.values())
        for sequence in members:
            self._remove(sequence)
        return [make_deadline_delta(sequence) for sequence in members]

    def _fail_all(self, failures: Sequences[tuple[Sequence, Exception | str]]) -> list[Report]:
        """Fail the requests of sequences that can't take part in the step."""
        reports: list[Report] = []
        for sequence, cause in failures:
            if sequence.is_done:  # with another sequence of its request
                continue
            request_id = sequence.request.request_id
            if isinstance(cause, str):
                reports += self._fail(request_id, cause, "ContextTooLong")
            else:
                reports += self._fail(request_id, cause=cause)
        return reports

    def _accept(self, made: ForwardPass) -> dict[int, Outcome]:
        """Let the decoders accept, and learn what the pass has cost."""
        begun = time.perf_counter()
        outcomes = accept(made)
        if made.forward.offsets[-1] == made.num_rows:  # prompt tokens without logits are cheaper
            self._costs.observe(made.num_rows, made.seconds + time.perf_counter() - begun)
        return outcomes

    def _decide_groups(self) -> list[Report]:
        """Let the searches act whose members have got on, or whose scores have come."""
        if not self._searching:
            return []
        due = self._searches.due(list(self._searching.values()))
        reports = [report for group, act in due for report in self._decide(group, act)]
        self._searches.exchange_scores()
        return reports

    def _commit(self, piece: ScheduledSequence, outcome: Outcome | None) -> list[Report]:
        """Make the outcome true, or end the request; return what the client gets to see."""
        if piece.sequence.is_done:  # its request failed earlier in this step
            return []
        request_id = piece.sequence.request.request_id
        if outcome is not None and outcome.fault:
            error = "BadRequest" if outcome.is_client_error else "Internal"
            return self._fail(request_id, outcome.fault, error, cause=outcome.cause)
        reports = attempt(partial(self._apply_outcome, piece, outcome))
        if isinstance(reports, Exception):
            return self._fail(request_id, cause=reports)
        return reports

    def _apply_outcome(self, piece: ScheduledSequence, outcome: Outcome | None) -> list[Report]:
        """Note what was computed: cache, text, counters."""
        sequence = piece.sequence
        count_rows(self._counters, piece, outcome)
        if outcome is None:
            self._scheduler.commit(sequence, piece.start)
            return []
        self._runner.compact(piece, outcome.keep)
        sequence.forwards += 1
        sequence.steps.extend([sequence.forwards] * len(outcome.emit))
        self._scheduler.commit(sequence, piece.start + len(outcome.keep))
        assert sequence.num_pending >= 0, "a decoder kept rows that it did not emit"
        group = self._groups[sequence.request.request_id]
        if not group.is_independent:
            self._searches.record(group, sequence, outcome)
            return []
        if outcome.finish is not None:
            self._remove(sequence)
        delta = make_delta(sequence, outcome)
        return [delta] if delta is not None else []

    def _decide(self, group: Group, act: Callable[[], list[Delta]]) -> list[Report]:
        """Let a search act; if it fails, its request does."""
        made = attempt(act)
        if isinstance(made, Exception):
            return self._fail(group.request.request_id, *_fault_of(made), cause=made)
        if not group.members:
            self._forget(group)
        return [*made]

    def _remove(self, sequence: Sequence) -> None:
        group = self._groups[sequence.request.request_id]
        self._searches.drop(group, sequence)
        if not group.members:
            self._forget(group)

    def _forget(self, group: Group) -> None:
        del self._groups[group.request.request_id]
        self._searching.pop(group.request.request_id, None)

    def _release(self, sequence: Sequence) -> None:
        release(sequence, self._token_trace)


def _fault_of(cause: Exception) -> tuple[str, str]:
    """Return what a client is told of a search's fault: a message, and the class of the error."""
    return (str(cause), "Unavailable") if isinstance(cause, ScorerError) else (FAILED, "Internal")
