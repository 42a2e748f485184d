"""asap: adaptive sampling with approximate expected futures; the law is reached in the limit.

Each token is drawn in proportion to its probability times the bound of its future, which is learnt
from earlier samples of the request and of requests alike (futures.py); nothing is rejected.
The first sample is a masked draw; texts follow P(text | legal) once every future has been seen.
The samples are drawn one after the other, and the last n are returned.

Law: sample k follows prod over t of p(w_t) c(u w_t) / c(u), c being the bounds after k - 1 samples.
It need not be nearer to P(text | legal) than sample k - 1.
Source: Park et al., arXiv:2405.21047, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import SearchNeeds
from plait.decoders.contract.registry import Method, MethodError, Options
from plait.decoders.contract.search import (
    Action,
    Drop,
    Finish,
    MemberOutcome,
    Ranked,
    SearchRequest,
)
from plait.decoders.search.faithful.attempts import (
    ROOT,
    AttemptsState,
    advance,
    begin,
    open_root,
    park_root,
    start_attempt,
)


class AsapOptions(Options):
    """Options of asap."""

    num_samples: int | None = Field(
        default=None, ge=1, le=2000, description="samples to draw, of which the last n count"
    )
    num_parallel: int = Field(default=1, ge=1, le=128, description="samples at once")
    share: bool = Field(default=True, description="learn from and for later requests alike")


class Asap:
    """Adaptive sampling with approximate expected futures; see the module's docstring."""

    name: ClassVar[str] = "asap"
    needs: SearchNeeds = SearchNeeds(draws=True, max_tokens_per_step=1, is_synchronous=True)

    def __init__(self, options: AsapOptions) -> None:
        self._options = options

    def start(self, request: SearchRequest) -> tuple[AttemptsState, int]:
        """Begin with the member that stays at the prompt; raise MethodError for too few samples."""
        if self._num_samples(request) < request.n:
            message = (
                f"asap: num_samples is {self._options.num_samples}, fewer than n, {request.n}."
            )
            raise MethodError(message, "decoding.search.num_samples")
        return begin(request, self.name, shares=self._options.share), 1

    def step(self, state: AttemptsState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Learn from the draws; begin the next samples."""
        if not state.num_attempts:
            open_root(state, outcomes)
            return [*self._begin_next(state, ROOT), *park_root()]
        actions = list[Action]()
        for outcome in sorted(outcomes, key=lambda each: each.member):
            actions += advance(state, outcome) or ()
        actions += self._begin_next(state, min(each.member for each in outcomes))
        first = self._num_samples(state.request) - state.request.n  # that is returned
        for member in [m for m, sample in state.complete.items() if sample.number < first]:
            del state.complete[member]
            actions.append(Drop(member))
        return actions if state.running else [*actions, Finish()]

    def rank(self, state: AttemptsState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return the last n samples, in their order; unfinished ones where there are fewer."""
        last = sorted(state.complete, key=lambda member: state.complete[member].number)
        last = [*last, *state.running, ROOT]
        last += last[-1:] * state.request.n
        return [Ranked(member) for member in last[: state.request.n]]

    def report(self, state: AttemptsState) -> Mapping[str, Any]:
        """Return the samples drawn, and a bound on P(legal): the root's."""
        return {
            "samples": state.num_attempts,
            "attempt_tokens": state.num_tokens,
            "legal_bound": state.trie.root.bound,
        }

    def _num_samples(self, request: SearchRequest) -> int:
        return self._options.num_samples or request.n

    def _begin_next(self, state: AttemptsState, parent: int) -> list[Action]:
        actions, num_samples = list[Action](), self._num_samples(state.request)
        while len(state.running) < self._options.num_parallel and state.num_attempts < num_samples:
            actions += start_attempt(state, parent, is_checked=False)
        return actions


METHOD = Method(
    kind="search",
    needs=frozenset({"search"}),
    name="asap",
    summary="Samples scaled by the legal futures that earlier ones have found.",
    source="Park et al., arXiv:2405.21047, algorithm 1",
    target="plait.decoders.search.faithful.asap:Asap",
    options=AsapOptions,
    num_sequences="num_parallel",
    is_causal=True,
    excludes=frozenset({"awrs"}),  # its masses are estimates
)
