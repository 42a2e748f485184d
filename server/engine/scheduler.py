"""Who runs in the next step, on how many rows, with which blocks.

Running sequences come first, in order of priority and arrival, those that decode before those that
still read their prompt. Prompts are read in chunks of what is left of the step's token budget. When
blocks run out, the sequence that is last in order gives its blocks back and waits (it is recomputed
later; law 1 makes the result the same). Drafts get rows and blocks that nobody else needs, so they
never make a sequence wait.

At most max_seqs sequences take part in a step. A member of a search that is held until its group
has taken the step keeps its blocks, but no place; and members leave places to other requests.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Sequences
from dataclasses import dataclass

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import AttentionMode, DraftBudget, Proposal
from plait.server.engine.kv.block_table import BLOCK_SIZE, num_blocks_for
from plait.server.engine.kv.manager import KVCacheManager
from plait.server.engine.sequence import ScheduledSequence, Sequence
from plait.server.engine.token_budget import plan_tokens
from plait.server.engine.turns import is_searching, take_turns

KV_CACHE_TOO_SMALL = (
    "The text and what its decoder feeds with it are longer than the whole KV cache."
)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the scheduler means to run in a step."""

    planned: Sequences[tuple[Sequence, int]]  # each with how many uncomputed tokens it feeds
    proposing: Sequences[Sequence]  # those that feed their last ones, so that decoders may add to
    budget: DraftBudget


class Scheduler:
    """The queues of one engine."""

    def __init__(
        self,
        kv: KVCacheManager,
        *,
        max_seqs: int,
        max_rows: int,
        costs: CostCurve | None = None,
    ) -> None:
        self.num_preemptions = 0
        self._kv = kv
        self._max_seqs = max_seqs
        self._max_rows = max_rows
        self._costs = costs or CostCurve()
        self._num_plans = 0
        self._waiting: list[tuple[tuple[int, float, str, int], Sequence]] = []
        self._running: list[Sequence] = []
        self._is_stalled = False  # the last step was empty though there was work

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence into the queue."""
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and release its blocks."""
        sequence.is_done = True
        self.park(sequence)

    def park(self, sequence: Sequence) -> None:
        """Take a sequence out of the queues and release its blocks; `add` brings it back."""
        if sequence.is_running:
            self._running.remove(sequence)
            self._release_blocks(sequence)
        else:
            self._unqueue(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Run a new sequence whose text begins as the parent's, on the parent's blocks.

        It waits if there is no place, or if the parent holds no blocks, and is computed anew.
        """
        if not parent.is_running or self._num_places(are_members=is_searching(child)) <= 0:
            self.add(child)
            return
        shared = parent.text.num_shared(child.text)
        reusable = child.whole_blocks(min(parent.num_computed_tokens, shared))
        num_tokens = min(reusable, child.num_cacheable_tokens)
        child.block_table = self._kv.fork(parent.block_table, num_tokens)
        child.num_computed_tokens = num_tokens
        self._run(child)

    def truncate(self, sequence: Sequence) -> None:
        """Forget what is cached behind the end of a text that has been cut."""
        length = min(sequence.num_computed_tokens, sequence.num_cacheable_tokens)
        sequence.num_computed_tokens = length
        self._kv.truncate(sequence.block_table, length)

    def plan(self) -> StepPlan:
        """Return which sequences take part in the next step, and what drafts may use."""
        self._finish_loads()
        self._admit()
        ready = [s for s in self._running if not (s.is_held or self._kv.is_loading(s.block_table))]
        self._num_plans += 1
        ready = take_turns(ready, self._costs, self._num_plans)
        if len(ready) > self._max_seqs:
            ready = sorted(ready, key=is_searching)[: self._max_seqs]
        planned, left = plan_tokens(ready, self._max_rows)
        proposing = [s for s, count in planned if count == s.num_prefill_tokens]
        budget = DraftBudget(self._max_drafts(planned, left), self._max_rows - left)
        return StepPlan(planned, proposing, budget)

    def reserve(
        self, plan: StepPlan, proposals: Sequences[Proposal]
    ) -> tuple[list[ScheduledSequence], list[tuple[Sequence, str]]]:
        """Return what the step feeds, all of which has its blocks, and what can never have them.

        proposals: of plan.proposing. When blocks run out, sequences are preempted.
        """
        by_id = dict(zip(map(id, plan.proposing), proposals, strict=True))
        wanted = [ScheduledSequence(s, count, by_id.get(id(s))) for s, count in plan.planned]
        num_blocks = self._kv.pool.num_blocks
        oversized = [
            (each.sequence, KV_CACHE_TOO_SMALL)
            for each in wanted
            if num_blocks_for(each.stop) > num_blocks
        ]
        scheduled = [each for each in wanted if self._reserve(each)]
        self._is_stalled = not scheduled and bool(self._running or self._waiting)
        return scheduled, oversized

    def commit(self, sequence: Sequence, num_computed_tokens: int) -> None:
        """Note that so many tokens are cached now, and offer full blocks to later prompts.

        Blocks that only drafts have needed go back.
        """
        sequence.num_computed_tokens = num_computed_tokens
        self._kv.truncate(sequence.block_table, sequence.num_reserved_tokens)
        self._kv.register(sequence.block_table, sequence.text.token_ids, num_computed_tokens)

    def _finish_loads(self) -> None:
        """Recompute the sequences that wait for a block whose load has failed."""
        failed = self._kv.finish_loads(wait=self._is_stalled)
        if failed:
            for sequence in list(self._running):
                if not failed.isdisjoint(sequence.block_table.block_ids):
                    self._preempt(sequence)

    def _admit(self) -> None:
        skipped = []
        places, others = self._num_places(are_members=True), self._num_places(are_members=False)
        while self._waiting and (places > 0 or others > 0):
            entry = heapq.heappop(self._waiting)
            sequence = entry[1]
            is_member = is_searching(sequence)
            is_blocked = sequence.is_held or (places if is_member else others) <= 0
            if is_blocked or _awaits_prompt(sequence) or not self._match_prefix(sequence):
                skipped.append(entry)
            elif self._start(sequence):
                places, others = places - 1, others - (not is_member)
            else:
                skipped.append(entry)
                if not self._preempt_held():
                    break
        for entry in skipped:
            heapq.heappush(self._waiting, entry)

    def _num_places(self, *, are_members: bool) -> int:
        """Return how many more members of searches, or other sequences, may run."""
        taken = (not s.is_held and (are_members or not is_searching(s)) for s in self._running)
        return self._max_seqs - sum(taken)

    def _start(self, sequence: Sequence) -> bool:
        """Run a sequence that has its cached prefix, if the rest will fit as things stand."""
        kv, table = self._kv, sequence.block_table
        needed = num_blocks_for(sequence.num_reserved_tokens) - len(table.block_ids) + 1
        if needed + len(self._running) > kv.pool.num_available and self._running:
            self._release_blocks(sequence)
            return False
        is_query = kv.pool.prefix_caching and sequence.attention_block_size > 0
        if is_query and not sequence.is_started:  # once, however long it waited
            kv.note_query(len(sequence.text.token_ids) - 1, sequence.num_computed_tokens)
        self._run(sequence)
        return True

    def _run(self, sequence: Sequence) -> None:
        sequence.is_running = True
        self._running.append(sequence)
        self._running.sort(key=lambda s: s.order)

    def _match_prefix(self, sequence: Sequence) -> bool:
        """Give a waiting sequence the longest cached prefix; False: a lower tier is pending."""
        prompt_leader, last = sequence.prompt_leader, sequence.num_cacheable_tokens
        if prompt_leader is not None and prompt_leader.is_running and _has_prompt(prompt_leader):
            num_shared = min(last, sequence.num_shared_prompt_tokens)
            sequence.block_table = self._kv.fork(prompt_leader.block_table, num_shared)
        elif sequence.reports_prompt_logprobs:
            num_shared = 0
        else:
            found = self._kv.match_prefix(sequence.block_table, sequence.text.token_ids, last)
            if found is None:
                return False
            num_shared = found
        sequence.num_computed_tokens = num_shared
        return True

    def _max_drafts(self, planned: Sequences[tuple[Sequence, int]], budget: int) -> int:
        """Return how many rows of drafts the budget and the blocks allow.

        However the decoders share them out, the last block of each sequence may stay half empty.
        """
        if budget <= 0:
            return 0
        spare = self._kv.pool.num_available
        for sequence, rows in planned:
            start = sequence.num_computed_tokens
            stop = max(start + rows, sequence.num_reserved_tokens)
            spare -= self._kv.num_needed(sequence.block_table, start, stop)
        return max(min(budget, spare * BLOCK_SIZE - len(planned) * (BLOCK_SIZE - 1)), 0)

    def _reserve(self, piece: ScheduledSequence) -> bool:
        """Make the blocks that the slice writes exist and belong to its sequence alone."""
        sequence = piece.sequence
        if num_blocks_for(piece.stop) > self._kv.pool.num_blocks:
            return False
        while sequence.is_running:
            if self._kv.reserve(sequence.block_table, sequence.num_computed_tokens, piece.stop):
                _record_context_tokens(piece)
                return True
            if self._running[-1] is not sequence or not self._preempt_held():
                self._preempt(self._running[-1])
        return False

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        sequence.decoder.preempted(sequence.state)
        self._running.remove(sequence)
        self._release_blocks(sequence)
        self.add(sequence)

    def _preempt_held(self) -> bool:
        """Preempt the last held sequence: its group may be waiting for one in the queue."""
        held = next((s for s in reversed(self._running) if s.is_held), None)
        if held is not None:
            self._preempt(held)
        return held is not None

    def _unqueue(self, sequence: Sequence) -> None:
        self._waiting = [entry for entry in self._waiting if entry[1] is not sequence]
        heapq.heapify(self._waiting)

    def _release_blocks(self, sequence: Sequence) -> None:
        self._kv.release(sequence.block_table)
        sequence.num_computed_tokens = 0
        sequence.is_running = False


def _awaits_prompt(sequence: Sequence) -> bool:
    """Tell whether a sibling waits for the prompt that it shares, which another is computing."""
    leader = sequence.prompt_leader
    return leader is not None and leader.is_runnable and not _has_prompt(leader)


def _has_prompt(sequence: Sequence) -> bool:
    """Tell whether all that a sibling can share is cached."""
    return sequence.num_computed_tokens >= sequence.num_shared_prompt_tokens


def _record_context_tokens(piece: ScheduledSequence) -> None:
    """Remember how many rows a decoder refreshes in place: it will want about as many again."""
    if piece.proposal is not None and piece.proposal.attend is AttentionMode.CONTEXT:
        piece.sequence.num_context_tokens = piece.num_proposed_tokens
