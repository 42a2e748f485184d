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
from plait.decoders.speculative import economy
from plait.decoders.speculative.accounts import Account, Ledger
from plait.decoders.speculative.config import (
    MAX_DRAFT,
    DraftOptions,
    StoreOptions,
    drafters,
    judges,
)
from plait.decoders.speculative.economy import Estimates, Record
from plait.decoders.speculative.lossy.judge import Judge
from plait.decoders.speculative.tree import (
    ROOT,
    DraftTree,
    MalformedDraft,
    checked,
    is_chain,
    parents_of,
)
from plait.decoders.speculative.workshop import Workshop

MAX_CHOICES = 256  # of drafters with options
ROUNDS = 4  # how often the drafters of a sequence take turns in one chain
NOTHING = DraftTree()
LOG = logging.getLogger(__name__)
Counts = dict[str, int]  # by source


@dataclass(slots=True)
class Post:
    """One drafter of one sequence."""

    drafter: Drafter[Any]
    state: Any
    max_draft: int
    account: Account
    is_wanted: bool = True  # in this step


@dataclass(slots=True)
class Speculation:
    """What is remembered of one sequence."""

    posts: list[Post]
    text: list[int]
    constraint: Constraint | None
    stop_token_ids: frozenset[int]
    always: bool
    learns_in: str | None = None  # namespace whose later sequences may go by this one's output
    num_prompt_tokens: int = 0
    judge: Judge | None = None  # a lossy rule of acceptance, if the request has named one
    record: Record = field(default_factory=Record)
    tree: DraftTree = field(default_factory=DraftTree)  # in flight
    price: float = 0.0  # of its rows, in tokens each
    drafted: dict[str, int] = field(default_factory=dict)  # rows since the start, by source
    accepted: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Growing:
    """A tree in the making, and the chain at whose end it grows."""

    member: Speculation
    limit: int
    tree: DraftTree = field(default_factory=DraftTree)
    chain: list[int] = field(default_factory=list)
    tip: int = ROOT
    is_open: bool = True  # closed by a token that ends the text, a branched draft, or who waits


class Speculator:
    """Asks drafters on behalf of many sequences, and keeps their accounts."""

    def __init__(self, workshop: Workshop, costs: CostCurve) -> None:
        """Args: workshop is what drafters are built with; costs, what a pass costs."""
        self._workshop = workshop
        self._vocab_size = workshop.vocab_size
        self._costs = costs
        self._estimates = Estimates()
        self._drafters: dict[Choice, tuple[Drafter[Any], Ledger]] = {}  # the latest named is last
        self._outlook: tuple[tuple[int, ...], bool] = (), False  # of the last kind of step
        self._faulty: set[str] = set()  # drafters that the log has named

    def start(self, request: DecodeRequest) -> Speculation | None:
        """Return what is needed to draft for one new sequence; None: it has no drafters."""
        choices = drafters(request.options)
        if not choices:
            return None
        posts, always, learns = [], False, False
        judge: Judge | None = None
        for choice in choices:
            options = choice.options
            drafter, ledger = self._drafter(choice)
            if isinstance(drafter, Judge):
                judge = drafter
            state = None if judges(choice) else drafter.start(request)
            if state is None:
                continue
            assert isinstance(options, DraftOptions), "a drafter's options are DraftOptions"
            posts.append(Post(drafter, state, options.max_draft, Account(ledger)))
            always |= options.always
            learns |= isinstance(options, StoreOptions) and options.learn
        if not posts and judge is None:
            return None
        return Speculation(
            posts,
            list(request.prompt_token_ids),
            request.constraint,
            request.stop_token_ids,
            always,
            request.namespace if learns else None,
            len(request.prompt_token_ids),
            judge,
        )

    def propose(
        self,
        members: Sequence[Speculation],
        limits: Sequence[int],
        room: DraftBudget,
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
        growing = self._wanted(members, limits, room, others)
        if growing:
            self._grow(growing)
            for _, ledger in self._drafters.values():
                ledger.close()
            self._choose(growing, room, others + len(members) - len(growing))
        return [member.tree for member in members]

    def settle(self, member: Speculation, verdict: VerificationResult) -> tuple[Counts, Counts]:
        """Learn what became of a draft; return what was drafted and accepted, by source."""
        tree, member.tree = member.tree, NOTHING
        member.text.extend(verdict.emitted)
        counts: tuple[Counts, Counts] = {}, {}
        if len(tree):
            self._estimates.learn(tree, verdict.reached, member.record, self._vocab_size)
            hits = [row - 1 for row in verdict.reached if row > 0]
            counts = dict(tree.count()), dict(tree.count(hits))
        for total, new in zip((member.drafted, member.accepted), counts, strict=True):
            for source, count in new.items():
                total[source] = total.get(source, 0) + count
        for post in member.posts:
            name = post.drafter.name
            rows, right = (count.get(name, 0) for count in counts)
            post.account.settle(right - rows * member.price)
            post.drafter.commit(post.state, member.text, verdict)
        return counts

    def finish(self, member: Speculation) -> None:
        """Let go of a sequence that has ended."""
        for post in member.posts:
            post.drafter.finish(post.state, member.text)
        if member.learns_in is not None:
            output = member.text[member.num_prompt_tokens :]
            self._workshop.stores.add(member.learns_in, output)

    def _wanted(
        self, members: Sequence[Speculation], limits: Sequence[int], room: DraftBudget, others: int
    ) -> list[_Growing]:
        """Return the sequences of which some drafter is worth asking in this step."""
        pays = self._pays(len(members), room, others)
        if not pays and not any(member.always for member in members):  # a busy step
            return []
        value = economy.seconds_a_token(len(members) + others, room, self._costs)
        growing = []
        for member, useful in zip(members, limits, strict=True):
            limit = min(useful, MAX_DRAFT, room.drafts)
            if limit <= 0 or not (pays or member.always):
                continue
            for post in member.posts:
                post.is_wanted = member.always or post.account.pays(value)
            if any(post.is_wanted for post in member.posts):
                growing.append(_Growing(member, limit))
        return growing

    def _pays(self, drafting: int, room: DraftBudget, others: int) -> bool:
        """Tell whether drafts can pay; what was said of the same step before holds for its like."""
        drafts = min(room.drafts, drafting * MAX_DRAFT)
        step = (drafting, others, room.fed, drafts, self._costs.version)
        if self._outlook[0] != step:
            self._outlook = step, economy.is_worthwhile(drafting, room, self._costs, others)
        return self._outlook[1]

    def _choose(self, growing: Sequence[_Growing], room: DraftBudget, others: int) -> None:
        """Keep of the trees what is worth its rows."""
        trees = [each.tree for each in growing]
        always = [each.member.always for each in growing]
        kept = economy.choose(trees, always, room, self._costs, others)
        rows = sum(map(len, kept))
        price = economy.tokens_a_row(rows, len(growing) + others, room, self._costs)
        for each, tree, nodes in zip(growing, trees, kept, strict=True):
            each.member.tree = tree if len(nodes) == len(tree) else tree.only(nodes)
            each.member.price = price

    def _drafter(self, choice: Choice) -> tuple[Drafter[Any], Ledger]:
        """Return a drafter and its account, made when a request first names it so.

        Options are the clients' to vary, so the latest MAX_CHOICES stay; sequences keep theirs.
        """
        made = self._drafters.pop(choice, None)
        if made is None:
            made = choice.method.make(choice.options, workshop=self._workshop), Ledger()
        self._drafters[choice] = made
        if len(self._drafters) > MAX_CHOICES:
            del self._drafters[next(iter(self._drafters))]
        return made

    def _grow(self, growing: Sequence[_Growing]) -> None:
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

    def _ask(self, drafter: Drafter[Any], growing: Sequence[_Growing]) -> None:
        begun = time.perf_counter()
        asks, asked = [], []
        ledger: Ledger | None = None
        for each in growing:
            post = next((p for p in each.member.posts if p.drafter is drafter), None)
            if post is None or not (post.is_wanted and each.is_open):
                continue
            member, own = each.member, each.tree.sources.count(drafter.name)
            limit = min(each.limit - len(each.tree), post.max_draft - own)
            if limit <= 0:
                continue
            post.account.ask()
            ledger = post.account.ledger
            asks.append(DraftRequest(post.state, member.text, each.chain, limit, member.constraint))
            asked.append(each)
        if ledger is None:
            return
        drafts = drafter.propose(asks)
        for each, ask, draft in zip(asked, asks, drafts, strict=True):
            try:
                self._extend(each, drafter.name, checked(draft, ask.limit))
            except MalformedDraft as fault:
                if drafter.name not in self._faulty:
                    self._faulty.add(drafter.name)
                    LOG.warning("drafts of %s are malformed and dropped: %s", drafter.name, fault)
        ledger.spend(time.perf_counter() - begun, len(asks))

    def _extend(self, growing: _Growing, source: str, draft: Draft) -> None:
        """Add a draft behind the chain, as far as it may be."""
        beyond = any(token >= self._vocab_size for token in draft.token_ids)
        if beyond or not is_chain(parents_of(draft)):  # inputs beyond the vocabulary lead nowhere
            self._branch(growing, source, draft)
            return
        member = growing.member
        for token, raw in zip(draft.token_ids, draft.chances, strict=True):
            if not 0 <= token < self._vocab_size or token in member.stop_token_ids:
                growing.is_open = token not in member.stop_token_ids and growing.is_open
                return
            if member.constraint is not None and not member.constraint.accept_token(token):
                return
            chance = self._estimates.chance(source, raw, member.record)
            growing.tip = growing.tree.add(growing.tip, token, source, chance, raw)
            growing.chain.append(token)
        growing.is_open &= draft.is_open

    def _branch(self, growing: _Growing, source: str, draft: Draft) -> None:
        """Add a tree behind the chain; nothing goes on behind it."""
        growing.is_open = False
        member, nodes = growing.member, [growing.tip] * len(draft.token_ids)
        alive = [True] * len(draft.token_ids)
        entries = zip(draft.token_ids, parents_of(draft), draft.chances, strict=True)
        for i, (token, parent, raw) in enumerate(entries):
            known = 0 <= token < self._workshop.num_ids and token not in member.stop_token_ids
            if not known or (parent >= 0 and not alive[parent]):
                alive[i] = False
                continue
            chance = raw  # of a token beyond the vocabulary, which is never drawn: as it was said
            if token < self._vocab_size:
                chance = self._estimates.chance(source, raw, member.record)
            above = nodes[parent] if parent >= 0 else growing.tip
            nodes[i] = growing.tree.add(above, token, source, chance, raw)


def _order(growing: Sequence[_Growing]) -> list[Drafter[Any]]:
    """Return the drafters in use, in the order in which the sequences name them."""
    found: dict[int, Drafter[Any]] = {}
    for each in growing:
        for post in each.member.posts:
            found.setdefault(id(post.drafter), post.drafter)
    return list(found.values())
