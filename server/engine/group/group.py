"""A request as a group of sequences, its members, which a search runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from plait.decoders.contract.decoder import TokenLogprobs
from plait.decoders.contract.registry import from_spec
from plait.decoders.contract.search import MemberOutcome, Score, Search, SearchRequest
from plait.decoders.sampling.params import GREEDY_BELOW
from plait.decoders.search.independent import IndependentSearch
from plait.server.engine.group.memory import SearchMemory
from plait.server.engine.group.scoring import (
    PendingScore,
    ScorerPool,
    TokenBytes,
    WeightedScorer,
    spell,
)
from plait.server.engine.sequence import Sequence
from plait.server.wire.messages import GenerateRequest

INDEPENDENT = IndependentSearch()


def _no_tokenizer() -> TokenBytes:
    raise AssertionError("this worker's searches see no text")


@dataclass(frozen=True, slots=True)
class SearchContext:
    """What the searches of a worker have beside its model."""

    scorers: ScorerPool = field(default_factory=ScorerPool)
    load_tokenizer: Callable[[], TokenBytes] = _no_tokenizer  # slow when it is first called
    memory: SearchMemory = field(default_factory=SearchMemory)


@dataclass(slots=True, eq=False)
class Group:
    """One request: its search, and the members that have not been dropped.

    Members are numbered in the order in which they are made; the number is Sequence.index.
    """

    request: GenerateRequest
    search: Search[Any]
    state: Any  # the search's own
    num_members: int  # made so far
    members: dict[int, Sequence] = field(default_factory=dict)
    outcomes: list[MemberOutcome] = field(default_factory=list)  # that the search has not seen
    scorers: tuple[WeightedScorer, ...] = ()
    tokenizer: TokenBytes | None = None  # if the search or its scorers look at text
    prompt: str = ""  # the prompt's text, for scorers
    pending: list[tuple[Score, PendingScore]] = field(default_factory=list)  # not told the search
    num_streamed: int = 0  # tokens of output that every choice has received
    num_tokens: int = 0  # that the members have drawn, dropped ones included
    open_choices: set[int] = field(default_factory=set)  # whose client waits for them
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)  # of member 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def is_independent(self) -> bool:
        """Whether member i is choice i, so that there is nothing to decide."""
        return self.search.needs.has_fixed_choices

    @property
    def running(self) -> list[Sequence]:
        """The members that take part in steps: neither complete, nor parked, nor on hold."""
        members = self.members.values()
        return [s for s in members if s.finish is None and not (s.is_parked or s.is_on_hold)]

    @property
    def is_due(self) -> bool:
        """Whether the search is to decide now."""
        if not self.outcomes:
            return False
        return not self.search.needs.is_synchronous or all(s.is_held for s in self.running)

    @property
    def has_scores(self) -> bool:
        """Whether the search waits for scores, and all of them are there."""
        return bool(self.pending) and all(pending.is_there for _, pending in self.pending)

    @property
    def spent_budget(self) -> str:
        """The budget of the search that is spent, "tokens" or "ms"; empty: none is."""
        needs = self.search.needs
        if needs.max_total_tokens is not None and self.num_tokens >= needs.max_total_tokens:
            return "tokens"
        elapsed_ms = 1000 * (time.monotonic() - self.begun)
        return "ms" if needs.max_ms is not None and elapsed_ms >= needs.max_ms else ""

    def close(self, choice: int | None) -> list[Sequence]:
        """Note that nobody waits for a choice (None: for any) any more.

        Returns the members that nobody needs now.
        """
        self.open_choices -= self.open_choices if choice is None else {choice}
        members = self.members.values()
        if self.is_independent and choice is not None:
            return [sequence for sequence in members if sequence.index == choice]
        return [] if self.open_choices else list(members)


def make_search(request: GenerateRequest) -> Search[Any]:
    """Return the search that a request names."""
    if request.decoding.search is None:
        return INDEPENDENT
    choice = from_spec("search", request.decoding.search)
    search: Search[Any] = choice.method.make(choice.options)
    return search


def begin_group(
    request: GenerateRequest, closed_choices: Iterable[int], context: SearchContext
) -> Group:
    """Return the group of a request, without its members.

    Raises:
        MethodError: this process does not have the search or a scorer, or the search can't do what
            the request asks.
    """
    search = make_search(request)
    asked = SearchRequest(
        request.n,
        request.max_tokens,
        request.sampling.seed,
        is_constrained=request.constraint is not None,
        is_greedy=request.sampling.temperature < GREEDY_BELOW,
        recall=context.memory.of(request),
    )
    state, num_members = search.start(asked)
    group = Group(request, search, state, num_members)
    group.scorers = tuple(
        context.scorers.make(spec, request.scorer_forms.get(i))
        for i, spec in enumerate(request.decoding.scorers)
    )
    if group.scorers or search.needs.pieces:
        group.tokenizer = context.load_tokenizer()
        group.prompt = spell(group.tokenizer.written_bytes, request.prompt_token_ids)
    group.open_choices = set(range(request.n)).difference(closed_choices)
    return group
