"""How the sequences of one request compete: the contract of every search.

A request is a group: its members are sequences, numbered from 0 in the order in which they are
made. After each step the search hears what became of its members, and answers with actions, which
hold before the next step. It knows tokens and numbers, neither logits nor blocks. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from plait.decoders.contract.decoder import (
    Alternative,
    Drawn,
    FinishReason,
    SearchNeeds,
    TokenLogprobs,
)

SearchState = TypeVar("SearchState")
Kept = TypeVar("Kept", bound="Remembered")


class Remembered(Protocol):
    """What a search keeps for later requests."""

    @property
    def num_bytes(self) -> int:
        """What it takes of the memory for such things, by estimate."""


class Recall(Protocol):
    """A memory of the engine, as one request sees it."""

    def __call__(self, name: str, make: Callable[[], Kept], /) -> Kept:
        """Return what requests alike have kept under a name, or make it.

        Alike are those of one namespace with the same prompt, constraint, sampling parameters (but
        for the seed) and limits. What is used least recently is forgotten.
        """


def forget(name: str, make: Callable[[], Kept], /) -> Kept:
    """Remember nothing: the Recall of a request that shares nothing."""
    return make()


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What a search gets to know of a request."""

    n: int  # texts to return
    max_tokens: int  # of one text
    seed: int  # a search that draws keys its draws with it: the same request, the same result
    is_constrained: bool = False
    is_greedy: bool = False  # its temperature is 0
    recall: Recall = forget


@dataclass(frozen=True, slots=True)
class MemberOutcome:
    """What a step made of one member."""

    member: int
    num_output: int  # tokens of its output, those just emitted among them
    emitted: Sequence[int]  # the step's tokens
    logprobs: Sequence[TokenLogprobs]  # of each emitted token, if SearchNeeds.logprobs
    alternatives: Sequence[Sequence[Alternative]]  # of each drawn token (a stop token is drawn, not
    # emitted), the best SearchNeeds.num_alternatives, best first
    log_mass: float  # of the drawn tokens: sum of the log of what the constraint allows
    finish: FinishReason | None  # why its text ends, if it does; it may be forked all the same.
    # "dead_end": the constraint refuses whatever may follow; cut back, it may go on elsewhere
    entropies: Sequence[float] = ()  # nats, of the model's own distribution (temperature 1, before
    # any parameter) at each drawn token, if SearchNeeds.entropies
    draws: Sequence[Drawn] = ()  # one for each drawn token, if SearchNeeds.draws
    pieces: Sequence[bytes] = ()  # of each emitted token, if SearchNeeds.pieces
    score: float | None = None  # that was asked for by a Score; then nothing else is new


@dataclass(frozen=True, slots=True)
class Fork:
    """A new member: the parent's first `num_output` tokens of output, then `token_ids`.

    Its noise is its own. With `finish`, its text is complete: it is not run, and may be ranked.
    """

    parent: int
    num_output: int
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()  # of token_ids, as the alternatives said; empty: unknown
    finish: FinishReason | None = None
    stop_token: int | None = None  # that ended the text, if one did


@dataclass(frozen=True, slots=True)
class Truncate:
    """The member goes on from its first `num_output` tokens of output, with the same noise."""

    member: int
    num_output: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The member is given up: it is neither run nor returned."""

    member: int


@dataclass(frozen=True, slots=True)
class Hold:
    """The member waits, and keeps its KV blocks as long as nobody else needs them."""

    member: int


@dataclass(frozen=True, slots=True)
class Park:
    """The member waits: it keeps its text and gives its KV blocks back."""

    member: int


@dataclass(frozen=True, slots=True)
class Resume:
    """A parked or held member runs again."""

    member: int


@dataclass(frozen=True, slots=True)
class Reweigh:
    """The member's next draw is scaled, token by token: Decoder.reweigh."""

    member: int
    log_factors: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Score:
    """Ask the request's scorers what the member's first `num_output` tokens of output are worth.

    The sum of their weighted scores comes with an outcome in a later step; members of one step
    together. Meanwhile the member runs on, unless it is held or parked.
    """

    member: int
    num_output: int
    is_complete: bool  # whether the text ends there, as the scorers are told


@dataclass(frozen=True, slots=True)
class Finish:
    """The search is over: rank() says what is returned."""


Action = Fork | Truncate | Drop | Hold | Park | Resume | Reweigh | Score | Finish


@dataclass(frozen=True, slots=True)
class Ranked:
    """A member to be returned."""

    member: int
    score: float = 0.0  # by which the search has ranked it
    log_weight: float = 0.0  # of a sample: the log of its importance weight
    report: Mapping[str, Any] = field(default_factory=dict)  # the text's own, as Search.report


class Search(Protocol[SearchState]):
    """How do several sequences of one request compete?

    Law: given the members' texts it is deterministic; what it draws is keyed with the request's
    seed. What is streamed stands: a fork or cut shorter than what all members share is a fault.
    """

    name: ClassVar[str]
    needs: SearchNeeds

    def start(self, request: SearchRequest) -> tuple[SearchState, int]:
        """Return the state of one request, and how many members it begins with (0, 1, ...)."""

    def step(self, state: SearchState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Return what to do with the members, in order.

        outcomes: of the members that were advanced; with SearchNeeds.is_synchronous, of all that
        run, one step each.
        """

    def rank(self, state: SearchState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return n of the members, best first; one may be repeated if there are fewer.

        Called when no member runs any more, when the search says Finish, or when a budget or the
        request's deadline is over; then some of the members are not complete.

        members: those that are there (not dropped).
        """

    def report(self, state: SearchState) -> Mapping[str, Any]:
        """Return the search's share of the `decoding` object (docs/api.md)."""
