"""Speculation for the sequences of one worker: draft, select what pays, learn from the result.

A sequence's drafters build one tree. Each in turn is asked what follows the text and the chain that
the drafters before it have drafted, until none has more to add. A constraint cuts a draft at the
first illegal token; the next drafter (`forced`, the first in line) can continue from there.

Law: drafts never change the text. A draft holds only ids that can be fed, no stop token, and at
most the tokens that may still be emitted. A draft that is no tree is dropped and logged, once a
drafter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest, DraftBudget
from plait.decoders.contract.drafter import Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Choice
from plait.decoders.speculative import draft_budget
from plait.decoders.speculative.config import (
    MAX_DRAFT,
    DraftOptions,
    StoreOptions,
    drafter_choices,
    is_acceptance_rule,
)
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.draft_budget import AcceptanceEstimates
from plait.decoders.speculative.drafter_stats import DrafterStats, SequenceDrafterStats
from plait.decoders.speculative.drafting import (
    DraftCounts,
    DrafterBinding,
    DraftInProgress,
    SpeculationState,
    count_draft,
    drafters_in_order,
)
from plait.decoders.speculative.lossy.acceptance_rule import AcceptanceRule
from plait.decoders.speculative.tree import DraftTree, MalformedDraft, validate_draft

MAX_CHOICES = 256  # drafters with different options that are kept
ROUNDS = 4  # how often the drafters of a sequence take turns in one chain
NOTHING = DraftTree()
NO_COUNTS = DraftCounts({}, {})
LOG = logging.getLogger(__name__)


class Speculator:
    """Calls the drafters of many sequences and measures what they gain."""

    def __init__(self, context: DrafterContext, costs: CostCurve) -> None:
        """Args: context is what drafters are built with; costs, the seconds of a pass."""
        self._context = context
        self._costs = costs
        self._estimates = AcceptanceEstimates()
        # The drafter that was named last is last.
        self._drafters: dict[Choice, tuple[Drafter[Any], DrafterStats]] = {}
        self._latest_step: tuple[tuple[int, ...], bool] = (), False  # its key, and if drafts pay
        self._malformed: set[str] = set()  # drafters that the log has named

    def start(self, request: DecodeRequest) -> SpeculationState | None:
        """Return the state of one new sequence; None: no drafter takes part."""
        bindings, always, learns = [], False, False
        rule: AcceptanceRule | None = None
        for choice in drafter_choices(request.methods):
            options = choice.options
            drafter, stats = self._drafter(choice)
            if isinstance(drafter, AcceptanceRule):
                rule = drafter
            state = None if is_acceptance_rule(choice) else drafter.start(request)
            if state is None:
                continue
            assert isinstance(options, DraftOptions), "a drafter's options are DraftOptions"
            bindings.append(
                DrafterBinding(drafter, state, options.max_draft, SequenceDrafterStats(stats))
            )
            always |= options.always
            learns |= isinstance(options, StoreOptions) and options.learn
        if not bindings and rule is None:
            return None
        return SpeculationState(
            bindings,
            request.text,
            request.constraint,
            request.stop_token_ids,
            always,
            request.namespace if learns else None,
            rule,
        )

    def fork(self, state: SpeculationState, request: DecodeRequest) -> SpeculationState | None:
        """Return an independent state for request.text, which begins as the state's own does.

        Statistics and counts are copied: they are not derived from the text. A fork adds nothing to
        the draft stores, where it would repeat what its parent adds.
        """
        bindings = []
        for binding in state.bindings:
            forked = binding.drafter.fork(binding.state, request)
            if forked is not None:
                stats = binding.stats.copy()
                bindings.append(replace(binding, state=forked, stats=stats))
        return replace(
            state,
            bindings=bindings,
            text=request.text,
            constraint=request.constraint,
            learns_in=None,
            acceptance=state.acceptance.copy(),
            tree=NOTHING,
            drafted=state.drafted.copy(),
            accepted=state.accepted.copy(),
        )

    def truncate(self, state: SpeculationState, request: DecodeRequest) -> SpeculationState:
        """Return the state for its own text, which has been cut; `state` is used up."""
        for binding in state.bindings:
            binding.state = binding.drafter.truncate(binding.state, request)
        state.bindings = [each for each in state.bindings if each.state is not None]
        state.constraint, state.tree = request.constraint, NOTHING
        return state

    def propose(
        self,
        states: Sequence[SpeculationState],
        limits: Sequence[int],
        budget: DraftBudget,
        others: int = 0,
    ) -> list[DraftTree]:
        """Return the draft of each sequence; it may be empty.

        Args:
            states: of sequences with drafters.
            limits: the most draft tokens that are of use to each sequence; 0: none.
            budget: of the step.
            others: sequences without drafters that take part in the step.
        """
        self._estimates.decay()
        for state in states:
            state.acceptance.decay()
            state.tree = NOTHING
        drafts = self._begin_drafts(states, limits, budget, others)
        if drafts:
            self._call_drafters(drafts)
            for _, stats in self._drafters.values():
                stats.end_step()
            self._select(drafts, budget, others + len(states) - len(drafts))
        return [state.tree for state in states]

    def record(self, state: SpeculationState, result: VerificationResult) -> DraftCounts:
        """Learn from a verified draft; return what became of it."""
        tree, state.tree = state.tree, NOTHING
        counts = NO_COUNTS
        if len(tree):
            rows, vocab_size = result.accepted_rows, self._context.vocab_size
            self._estimates.learn(tree, rows, state.acceptance, vocab_size)
            counts = count_draft(tree, rows)
            _add(state.drafted, counts.drafted)
            _add(state.accepted, counts.accepted)
        for binding in state.bindings:
            name = binding.drafter.name
            drafted, accepted = counts.drafted.get(name, 0), counts.accepted.get(name, 0)
            binding.stats.add_gain(accepted - drafted * state.row_cost)
            binding.drafter.observe(binding.state, state.text.token_ids, result)
        return counts

    def finish(self, state: SpeculationState) -> None:
        """Release what a sequence that has ended holds; keep its output in the draft stores."""
        for binding in state.bindings:
            binding.drafter.finish(binding.state, state.text)
        if state.learns_in is not None:
            self._context.stores.add(state.learns_in, state.text.output)

    def _begin_drafts(
        self,
        states: Sequence[SpeculationState],
        limits: Sequence[int],
        budget: DraftBudget,
        others: int,
    ) -> list[DraftInProgress]:
        """Return an empty draft for each sequence with a drafter that is worth calling."""
        pays = self._can_pay(len(states), budget, others)
        if not pays and not any(state.always for state in states):  # a busy step
            return []
        value = draft_budget.seconds_per_token(len(states) + others, budget, self._costs)
        drafts = []
        for state, limit in zip(states, limits, strict=True):
            max_tokens = min(limit, MAX_DRAFT, budget.drafts)
            if max_tokens <= 0 or not (pays or state.always):
                continue
            for binding in state.bindings:
                binding.is_called = state.always or binding.stats.is_worth_calling(value)
            if any(binding.is_called for binding in state.bindings):
                drafts.append(self._begin_draft(state, max_tokens))
        return drafts

    def _begin_draft(self, state: SpeculationState, max_tokens: int) -> DraftInProgress:
        context, constraint = self._context, state.constraint
        fork = None if constraint is None else constraint.fork()
        return DraftInProgress(
            state, max_tokens, context.vocab_size, context.num_ids, self._estimates, fork
        )

    def _can_pay(self, drafting: int, budget: DraftBudget, others: int) -> bool:
        """Tell whether any draft can pay; the answer is kept for the next step of the same kind."""
        drafts = min(budget.drafts, drafting * MAX_DRAFT)
        key = (drafting, others, budget.fed, drafts, self._costs.version)
        if self._latest_step[0] != key:
            self._latest_step = key, draft_budget.can_pay(drafting, budget, self._costs, others)
        return self._latest_step[1]

    def _select(self, drafts: Sequence[DraftInProgress], budget: DraftBudget, others: int) -> None:
        """Give each sequence the part of its draft that is worth its rows."""
        trees = [draft.tree for draft in drafts]
        always = [draft.state.always for draft in drafts]
        kept = draft_budget.select_nodes(trees, always, budget, self._costs, others)
        rows = sum(map(len, kept))
        row_cost = draft_budget.tokens_per_row(rows, len(drafts) + others, budget, self._costs)
        for draft, tree, nodes in zip(drafts, trees, kept, strict=True):
            draft.state.tree = tree if len(nodes) == len(tree) else tree.only(nodes)
            draft.state.row_cost = row_cost

    def _drafter(self, choice: Choice) -> tuple[Drafter[Any], DrafterStats]:
        """Return a drafter and its statistics, made when a request first names it.

        Clients may vary the options, so only the latest MAX_CHOICES are kept; a running sequence
        keeps its own.
        """
        made = self._drafters.pop(choice, None)
        if made is None:
            made = choice.method.make(choice.options, context=self._context), DrafterStats()
        self._drafters[choice] = made
        if len(self._drafters) > MAX_CHOICES:
            del self._drafters[next(iter(self._drafters))]
        return made

    def _call_drafters(self, drafts: Sequence[DraftInProgress]) -> None:
        """Call the drafters in turn, each for all its sequences at once, while drafts grow."""
        order = drafters_in_order(drafts)
        for _ in range(ROUNDS):
            before = sum(len(draft.tree) for draft in drafts)
            for drafter in order:
                self._call(drafter, drafts)
            if sum(len(draft.tree) for draft in drafts) == before:
                return

    def _call(self, drafter: Drafter[Any], drafts: Sequence[DraftInProgress]) -> None:
        begun = time.perf_counter()
        requests, extended = [], []
        stats: DrafterStats | None = None
        for draft in drafts:
            binding = next((b for b in draft.state.bindings if b.drafter is drafter), None)
            if binding is None or not (binding.is_called and draft.can_extend):
                continue
            num_own = draft.tree.sources.count(drafter.name)
            max_tokens = min(draft.max_tokens - len(draft.tree), binding.max_draft - num_own)
            if max_tokens <= 0:
                continue
            binding.stats.mark_called()
            stats = binding.stats.stats
            text, constraint = draft.state.text.token_ids, draft.constraint
            requests.append(DraftRequest(binding.state, text, draft.chain, max_tokens, constraint))
            extended.append(draft)
        if stats is None:
            return
        proposed = drafter.propose(requests)
        for draft, request, found in zip(extended, requests, proposed, strict=True):
            try:
                draft.extend(drafter.name, validate_draft(found, request.max_tokens))
            except MalformedDraft as fault:
                self._log_malformed(drafter.name, fault)
        stats.add_call(time.perf_counter() - begun, len(requests))

    def _log_malformed(self, name: str, fault: MalformedDraft) -> None:
        if name not in self._malformed:
            self._malformed.add(name)
            LOG.warning("drafts of %s are malformed and dropped: %s", name, fault)


def _add(totals: dict[str, int], counts: Mapping[str, int]) -> None:
    for source, count in counts.items():
        totals[source] = totals.get(source, 0) + count
