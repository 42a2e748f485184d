"""Who runs in the next step, on how many rows, with which blocks.

Running sequences come first, in order of priority and arrival, those that decode before those that
still read their prompt. Prompts are read in chunks of what is left of the step's token budget. When
blocks run out, the sequence that is last in order gives its blocks back and waits (it is recomputed
later; law 1 makes the result the same). Drafts get rows and blocks that nobody else needs, so they
never make a sequence wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from collections.abc import Sequence as Sequences

from plait.decoders.contract.decoder import AttentionMode, DraftBudget, Proposal
from plait.server.engine.kv.block_pool import (
    BLOCK_SIZE,
    BlockPool,
    blocks_per_unit,
    extend_block_hashes,
    num_blocks_for,
)
from plait.server.engine.row_budget import plan_rows
from plait.server.engine.sequence import ScheduledSequence, Sequence

Copy = Callable[[int, int], None]  # (source block, destination block)
Propose = Callable[[Sequences[Sequence], DraftBudget], Sequences[Proposal]]


class Scheduler:
    """The queues and the block tables of one engine."""

    def __init__(self, blocks: BlockPool, copy: Copy, *, max_seqs: int, max_rows: int) -> None:
        self.blocks = blocks
        self.num_preemptions = 0
        self.oversized: list[Sequence] = []  # they want more blocks than there are
        self._copy = copy
        self._max_seqs = max_seqs
        self._max_rows = max_rows
        self._waiting: list[tuple[tuple[int, float, str, int], Sequence]] = []
        self._running: list[Sequence] = []

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
        if sequence.is_running:
            self._running.remove(sequence)
            self._vacate(sequence)
        else:
            self._waiting = [entry for entry in self._waiting if entry[1] is not sequence]
            heapq.heapify(self._waiting)

    def schedule(self, propose: Propose) -> list[ScheduledSequence]:
        """Return the slices of the next step; every one of them has its blocks."""
        self._admit()
        planned, budget = plan_rows(self._running, self._max_rows)
        complete = [s for s, rows in planned if rows == s.num_readable]
        fed = self._max_rows - budget
        room = DraftBudget(self._room(planned, budget), fed)
        proposals = dict(zip(map(id, complete), propose(complete, room), strict=True))
        slices = [ScheduledSequence(s, rows, proposals.get(id(s))) for s, rows in planned]
        return [piece for piece in slices if self._reserve(piece)]

    def commit(self, sequence: Sequence, num_computed_tokens: int) -> None:
        """Note that so many tokens are cached now, and offer full blocks to later prompts.

        Blocks that only drafts have needed go back.
        """
        sequence.num_computed_tokens = num_computed_tokens
        needed = num_blocks_for(sequence.next_stop)
        self.blocks.release(sequence.blocks[needed:])
        del sequence.blocks[needed:]
        full = num_computed_tokens // BLOCK_SIZE
        first = len(sequence.hashes)
        if self.blocks.prefix_caching and full > first:
            unit = blocks_per_unit(sequence.block)
            extend_block_hashes(sequence.hashes, sequence.root, sequence.tokens, full, unit)
            for i in range(first, full):
                self.blocks.register(sequence.blocks[i], sequence.hashes[i])

    def _admit(self) -> None:
        skipped = []
        while self._waiting and len(self._running) < self._max_seqs:
            entry = heapq.heappop(self._waiting)
            if _awaits_leader(entry[1]):
                skipped.append(entry)
            elif not self._start(entry[1]):
                skipped.append(entry)
                break
        for entry in skipped:
            heapq.heappush(self._waiting, entry)

    def _start(self, sequence: Sequence) -> bool:
        """Give the sequence what the cache has of it, if the rest will fit as things stand."""
        blocks = self.blocks
        shared = self._share_prefix(sequence)
        needed = num_blocks_for(sequence.next_stop) - len(shared) + 1
        if needed + len(self._running) > blocks.num_available and self._running:
            blocks.release(shared)
            sequence.num_computed_tokens = 0
            return False
        is_query = blocks.prefix_caching and sequence.block > 0
        if is_query and not sequence.is_started:  # once, however long it waited
            blocks.queries += len(sequence.tokens) - 1
            blocks.hits += sequence.num_computed_tokens
        sequence.blocks = shared
        sequence.is_running = True
        self._running.append(sequence)
        self._running.sort(key=lambda s: s.order)
        return True

    def _share_prefix(self, sequence: Sequence) -> list[int]:
        """Return referenced blocks for the longest cached prefix; sets num_computed_tokens."""
        leader, last = sequence.leader, sequence.num_reusable
        if leader is not None and leader.is_running and _has_prompt(leader):
            sequence.num_computed_tokens = min(last, sequence.num_shareable)
            shared = leader.blocks[: num_blocks_for(sequence.num_computed_tokens)]
            self.blocks.share(shared)
            sequence.hashes = leader.hashes[: sequence.num_computed_tokens // BLOCK_SIZE]
            return shared
        sequence.num_computed_tokens, sequence.hashes = 0, []
        if not self.blocks.prefix_caching or sequence.wants_prompt_logprobs:
            return []
        chain: list[bytes] = []
        unit = blocks_per_unit(sequence.block)
        extend_block_hashes(chain, sequence.root, sequence.tokens, last // BLOCK_SIZE, unit)
        shared = self.blocks.match(chain)
        whole = len(shared) // unit * unit
        self.blocks.release(shared[whole:])
        shared = shared[:whole]
        sequence.hashes = chain[:whole]
        sequence.num_computed_tokens = len(shared) * BLOCK_SIZE
        return shared

    def _room(self, planned: Sequences[tuple[Sequence, int]], budget: int) -> int:
        """Return how many rows of drafts the budget and the blocks allow.

        However the decoders share them out, the last block of each sequence may stay half empty.
        """
        if budget <= 0:
            return 0
        spare = self.blocks.num_available
        for sequence, rows in planned:
            stop = max(sequence.num_computed_tokens + rows, sequence.next_stop)
            spare -= len(self._shared(sequence, stop)) + _missing(sequence, stop)
        return max(min(budget, spare * BLOCK_SIZE - len(planned) * (BLOCK_SIZE - 1)), 0)

    def _reserve(self, piece: ScheduledSequence) -> bool:
        """Make the blocks that the slice writes exist and belong to its sequence alone."""
        sequence = piece.sequence
        if num_blocks_for(piece.stop) > self.blocks.num_blocks:
            self.oversized.append(sequence)
            return False
        while sequence.is_running:
            if self._try_reserve(sequence, piece.stop):
                _note_rows(piece)
                return True
            self._preempt(self._running[-1])
        return False

    def _try_reserve(self, sequence: Sequence, stop: int) -> bool:
        table = sequence.blocks
        shared = self._shared(sequence, stop)
        fresh = self.blocks.allocate(len(shared) + _missing(sequence, stop))
        if fresh is None:
            return False
        for i in shared:
            own = fresh.pop()
            self._copy(table[i], own)
            self.blocks.release([table[i]])
            table[i] = own
        table.extend(fresh)
        return True

    def _shared(self, sequence: Sequence, stop: int) -> list[int]:
        """Return which of its blocks the sequence must copy before it writes up to `stop`."""
        table = sequence.blocks
        written = range(
            sequence.num_computed_tokens // BLOCK_SIZE, min(len(table), num_blocks_for(stop))
        )
        return [i for i in written if self.blocks.is_shared(table[i])]

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        sequence.decoder.preempted(sequence.state)
        self._running.remove(sequence)
        self._vacate(sequence)
        self.add(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks, sequence.hashes, sequence.num_computed_tokens = [], [], 0
        sequence.is_running = False


def _awaits_leader(sequence: Sequence) -> bool:
    """A sibling starts when the prompt that it shares is cached, or will never be."""
    leader = sequence.leader
    return leader is not None and not leader.is_done and not _has_prompt(leader)


def _has_prompt(sequence: Sequence) -> bool:
    """Tell whether all that a sibling can share is cached."""
    return sequence.num_computed_tokens >= sequence.num_shareable


def _missing(sequence: Sequence, stop: int) -> int:
    return max(num_blocks_for(stop) - len(sequence.blocks), 0)


def _note_rows(piece: ScheduledSequence) -> None:
    """Remember how many rows a decoder refreshes in place: it will want about as many again."""
    if piece.proposal is not None and piece.proposal.attend is AttentionMode.CONTEXT:
        piece.sequence.num_refreshed = piece.num_proposed
