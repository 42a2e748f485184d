"""Speculation for the sequences of one worker: draft, choose what pays, learn from the verdict.

A sequence's drafters fill one tree: each is asked in turn what follows the text and the chain that
those before it have drafted, until none has more to say; a constraint cuts a draft at the first
token that it forbids, so that the next drafter (`forced`, first of all) can repair it.

Law: whatever a drafter says, the text is the one without it; a draft holds only tokens of the
vocabulary, none that ends the text, and at most what may still be emitted. A draft that is no tree
is dropped, and its drafter named in the log, once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest, DraftBudget
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Choice
from plait.decoders.speculative import draft_budget
from plait.decoders.speculative.config import (
    MAX_DRAFT,
    DraftOptions,
    StoreOptions,
    is_acceptance_rule,
    resolve_drafters,
)
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.draft_budget import AcceptanceEstimates, SequenceAcceptance
from plait.decoders.speculative.drafter_stats import DrafterStats, SequenceDrafterStats
from plait.decoders.speculative.lossy.acceptance_rule import AcceptanceRule
from plait.decoders.speculative.tree import (
    ROOT,
    DraftTree,
    MalformedDraft,
    is_chain,
    parents_of,
    validate_draft,
)

MAX_CHOICES = 256  # of drafters with options
ROUNDS = 4  # how often the drafters of a sequence take turns in one chain
NOTHING = DraftTree()
LOG = logging.getLogger(__name__)
Counts = dict[str, int]  # by source


@dataclass(slots=True)
class DrafterBinding:
    """One drafter of one sequence."""

    drafter: Drafter[Any]
    state: Any
    max_draft: int
    sequence_stats: SequenceDrafterStats
    is_wanted: bool = True  # in this step


@dataclass(slots=True)
class SpeculationState:
    """What is remembered of one sequence."""

    bindings: list[DrafterBinding]
    text: list[int]
    constraint: Constraint | None
    stop_token_ids: frozenset[int]
    always: bool
    learns_in: str | None = None  # namespace whose later sequences may go by this one's output
    num_prompt_tokens: int = 0
    rule: AcceptanceRule | None = None  # a lossy rule of acceptance, if the request has named one
    record: SequenceAcceptance = field(default_factory=SequenceAcceptance)
    tree: DraftTree = field(default_factory=DraftTree)  # in flight
    price: float = 0.0  # of its rows, in tokens each
    drafted: dict[str, int] = field(default_factory=dict)  # rows since the start, by source
    accepted: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _DraftInProgress:
    """A tree in the making, and the chain at whose end it grows."""

    member: SpeculationState
    max_tokens: int
    tree: DraftTree = field(default_factory=DraftTree)
    chain: list[int] = field(default_factory=list)
    tip: int = ROOT
    can_extend: bool = True  # closed by a token that ends the text, a branched draft, or who waits


class Speculator:
    """Asks drafters on behalf of many sequences, and keeps their accounts."""

    def __init__(self, context: DrafterContext, costs: CostCurve) -> None:
        """Args: workshop is what drafters are built with; costs, what a pass costs."""
        self._workshop = context
        self._vocab_size = context.vocab_size
        self._costs = costs
        self._estimates = AcceptanceEstimates()
        self._drafters: dict[
            Choice, tuple[Drafter[Any], DrafterStats]
        ] = {}  # the latest named is last
        self._outlook: tuple[tuple[int, ...], bool] = (), False  # of the last kind of step
        self._faulty: set[str] = set()  # drafters that the log has named

    def start(self, request: DecodeRequest) -> SpeculationState | None:
        """Return what is needed to draft for one new sequence; None: it has no drafters."""
        choices = resolve_drafters(request.options)
        if not choices:
            return None
        bindings, always, learns = [], False, False
        rule: AcceptanceRule | None = None
        for choice in choices:
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
            list(request.prompt_token_ids),
            request.constraint,
            request.stop_token_ids,
            always,
            request.namespace if learns else None,
            len(request.prompt_token_ids),
            rule,
        )

    def propose(
        self,
        members: Sequence[SpeculationState],
        limits: Sequence[int],
        budget: DraftBudget,
        others: int = 0,
    ) -> list[DraftTree]:
        """Return each sequence's draft, maybe empty.

        Args:
            members: sequences with drafters.
            limits: tokens that are of use to each; 0: none.
            room: of the step.
            others: sequences without drafters that take part in the step.
        """
        self._estimates.fade()
        for member in members:
            member.record.fade()
            member.tree = NOTHING
        growing = self._wanted(members, limits, budget, others)
        if growing:
            self._grow(growing)
            for _, stats in self._drafters.values():
                stats.close()
            self._choose(growing, budget, others + len(members) - len(growing))
        return [member.tree for member in members]

    def settle(self, member: SpeculationState, result: VerificationResult) -> tuple[Counts, Counts]:
        """Learn what became of a draft; return what was drafted and accepted, by source."""
        tree, member.tree = member.tree, NOTHING
        member.text.extend(result.emitted)
        counts: tuple[Counts, Counts] = {}, {}
        if len(tree):
            self._estimates.learn(tree, result.accepted_rows, member.record, self._vocab_size)
            hits = [row - 1 for row in result.accepted_rows if row > 0]
            counts = dict(tree.count()), dict(tree.count(hits))
        for total, new in zip((member.drafted, member.accepted), counts, strict=True):
            for source, count in new.items():
                total[source] = total.get(source, 0) + count
        for binding in member.bindings:
            name = binding.drafter.name
            rows, right = (count.get(name, 0) for count in counts)
            binding.sequence_stats.settle(right - rows * member.price)
            binding.drafter.commit(binding.state, member.text, result)
        return counts

    def finish(self, member: SpeculationState) -> None:
        """Let go of a sequence that has ended."""
        for binding in member.bindings:
            binding.drafter.finish(binding.state, member.text)
        if member.learns_in is not None:
            output = member.text[member.num_prompt_tokens :]
            self._workshop.stores.add(member.learns_in, output)

    def _wanted(
        self,
        members: Sequence[SpeculationState],
        limits: Sequence[int],
        budget: DraftBudget,
        others: int,
    ) -> list[_DraftInProgress]:
        """Return the sequences of which some drafter is worth asking in this step."""
        pays = self._pays(len(members), budget, others)
        if not pays and not any(member.always for member in members):  # a busy step
            return []
        value = draft_budget.seconds_per_token(len(members) + others, budget, self._costs)
        growing = []
        for member, useful in zip(members, limits, strict=True):
            max_tokens = min(useful, MAX_DRAFT, budget.drafts)
            if max_tokens <= 0 or not (pays or member.always):
                continue
            for binding in member.bindings:
                binding.is_wanted = member.always or binding.sequence_stats.pays(value)
            if any(binding.is_wanted for binding in member.bindings):
                growing.append(_DraftInProgress(member, max_tokens))
        return growing

    def _pays(self, drafting: int, budget: DraftBudget, others: int) -> bool:
        """Tell whether drafts can pay; what was said of the same step before holds for its like."""
        drafts = min(budget.drafts, drafting * MAX_DRAFT)
        step = (drafting, others, budget.fed, drafts, self._costs.version)
        if self._outlook[0] != step:
            self._outlook = step, draft_budget.can_pay(drafting, budget, self._costs, others)
        return self._outlook[1]

    def _choose(
        self, growing: Sequence[_DraftInProgress], budget: DraftBudget, others: int
    ) -> None:
        """Keep of the trees what is worth its rows."""
        trees = [each.tree for each in growing]
        always = [each.member.always for each in growing]
        kept = draft_budget.select_nodes(trees, always, budget, self._costs, others)
        rows = sum(map(len, kept))
        price = draft_budget.tokens_per_row(rows, len(growing) + others, budget, self._costs)
        for each, tree, nodes in zip(growing, trees, kept, strict=True):
            each.member.tree = tree if len(nodes) == len(tree) else tree.only(nodes)
            each.member.price = price

    def _drafter(self, choice: Choice) -> tuple[Drafter[Any], DrafterStats]:
        """Return a drafter and its account, made when a request first names it so.

        Options are the clients' to vary, so the latest MAX_CHOICES stay; sequences keep theirs.
        """
        made = self._drafters.pop(choice, None)
        if made is None:
            made = choice.method.make(choice.options, context=self._workshop), DrafterStats()
        self._drafters[choice] = made
        if len(self._drafters) > MAX_CHOICES:
            del self._drafters[next(iter(self._drafters))]
        return made

    def _grow(self, growing: Sequence[_DraftInProgress]) -> None:
        """Ask the drafters in turn, all sequences of a drafter at once."""
        order = _order(growing)
        try:
            for _ in range(ROUNDS):
                before = sum(len(each.tree) for each in growing)
                for drafter in order:
                    self._ask(drafter, growing)
                if sum(len(each.tree) for each in growing) == before:
                    return
        finally:
            for each in growing:
                if each.member.constraint is not None:
                    each.member.constraint.rollback(len(each.chain))

    def _ask(self, drafter: Drafter[Any], growing: Sequence[_DraftInProgress]) -> None:
        begun = time.perf_counter()
        requests, asked = [], []
        stats: DrafterStats | None = None
        for each in growing:
            binding = next((p for p in each.member.bindings if p.drafter is drafter), None)
            if binding is None or not (binding.is_wanted and each.can_extend):
                continue
            member, own = each.member, each.tree.sources.count(drafter.name)
            max_tokens = min(each.max_tokens - len(each.tree), binding.max_draft - own)
            if max_tokens <= 0:
                continue
            binding.sequence_stats.ask()
            stats = binding.sequence_stats.stats
            requests.append(
                DraftRequest(binding.state, member.text, each.chain, max_tokens, member.constraint)
            )
            asked.append(each)
        if stats is None:
            return
        drafts = drafter.propose(requests)
        for each, ask, draft in zip(asked, requests, drafts, strict=True):
            try:
                self._extend(each, drafter.name, validate_draft(draft, ask.max_tokens))
            except MalformedDraft as fault:
                if drafter.name not in self._faulty:
                    self._faulty.add(drafter.name)
                    LOG.warning("drafts of %s are malformed and dropped: %s", drafter.name, fault)
        stats.spend(time.perf_counter() - begun, len(requests))

    def _extend(self, growing: _DraftInProgress, source: str, draft: Draft) -> None:
        """Add a draft behind the chain, as far as it may be."""
        beyond = any(token >= self._vocab_size for token in draft.token_ids)
        if beyond or not is_chain(parents_of(draft)):  # inputs beyond the vocabulary lead nowhere
            self._branch(growing, source, draft)
            return
        member = growing.member
        for token, raw in zip(draft.token_ids, draft.acceptance_probs, strict=True):
            if not 0 <= token < self._vocab_size or token in member.stop_token_ids:
                growing.can_extend = token not in member.stop_token_ids and growing.can_extend
                return
            if member.constraint is not None and not member.constraint.accept_token(token):
                return
            acceptance_prob = self._estimates.acceptance_prob(source, raw, member.record)
            growing.tip = growing.tree.add(growing.tip, token, source, acceptance_prob, raw)
            growing.chain.append(token)
        growing.can_extend &= draft.can_extend

    def _branch(self, growing: _DraftInProgress, source: str, draft: Draft) -> None:
        """Add a tree behind the chain; nothing goes on behind it."""
        growing.can_extend = False
        member, nodes = growing.member, [growing.tip] * len(draft.token_ids)
        alive = [True] * len(draft.token_ids)
        entries = zip(draft.token_ids, parents_of(draft), draft.acceptance_probs, strict=True)
        for i, (token, parent, raw) in enumerate(entries):
            known = 0 <= token < self._workshop.num_ids and token not in member.stop_token_ids
            if not known or (parent >= 0 and not alive[parent]):
                alive[i] = False
                continue
            acceptance_prob = (
                raw  # of a token beyond the vocabulary, which is never drawn: as it was said
            )
            if token < self._vocab_size:
                acceptance_prob = self._estimates.acceptance_prob(source, raw, member.record)
            above = nodes[parent] if parent >= 0 else growing.tip
            nodes[i] = growing.tree.add(above, token, source, acceptance_prob, raw)


def _order(growing: Sequence[_DraftInProgress]) -> list[Drafter[Any]]:
    """Return the drafters in use, in the order in which the sequences name them."""
    found: dict[int, Drafter[Any]] = {}
    for each in growing:
        for binding in each.member.bindings:
            found.setdefault(id(binding.drafter), binding.drafter)
    return list(found.values())
