"""cars: exact samples by rejection, of which fewer are rejected with every attempt.

Attempts are drawn under the mask and the bounds of a trie of expected futures, and rejected at each
position with the probability that is missing to the law (attempts.py). The trie is shared by the
attempts of a request and by later requests that are alike.

Law: accepted texts are independent draws from P(text | legal). Choices are the accepted attempts
of lowest number, not the first to end, which would favour short texts. When max_attempts are spent,
a text for each missing choice is drawn without rejection, and says so ("accepted": False).
Source: arXiv:2510.01902, algorithm CARS. Differs: rejection where an illegal token would have been
drawn at a new node is decided by its legal mass, which has the same law; masks need not be stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import SearchNeeds
from plait.decoders.contract.registry import Method, Options
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


class CarsOptions(Options):
    """Options of cars."""

    max_attempts: int = Field(default=2000, ge=1, le=100_000, description="then it gives up")
    num_parallel: int = Field(default=8, ge=1, le=128, description="attempts at once")
    share: bool = Field(default=True, description="learn from and for later requests alike")


class Cars:
    """Constrained adaptive rejection sampling; see the module's docstring."""

    name: ClassVar[str] = "cars"
    needs: SearchNeeds = SearchNeeds(draws=True, max_tokens_per_step=1, is_synchronous=True)

    def __init__(self, options: CarsOptions) -> None:
        self._options = options

    def start(self, request: SearchRequest) -> tuple[AttemptsState, int]:
        """Begin with the member that stays at the prompt."""
        return begin(request, self.name, shares=self._options.share), 1

    def step(self, state: AttemptsState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Reject and begin attempts, until there are n accepted ones."""
        if not state.num_attempts:
            open_root(state, outcomes)
            return [*self._begin_missing(state, ROOT), *park_root()]
        actions, rejected = list[Action](), list[int]()
        for outcome in sorted(outcomes, key=lambda each: each.member):
            made = advance(state, outcome)
            if made is None:
                rejected.append(outcome.member)
            else:
                actions += made
        actions += self._begin_missing(state, min(each.member for each in outcomes))
        rejected += _late(state)
        actions += [Drop(member) for member in rejected]
        return actions if state.running else [*actions, Finish()]

    def rank(self, state: AttemptsState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return the accepted texts of lowest number; then others, which say so."""
        accepted = _first_accepted(state)
        others = [m for m, each in state.complete.items() if not each.is_checked]
        others += [*state.running, ROOT]
        chosen = [*accepted, *others, *others[-1:] * state.request.n][: state.request.n]
        return [self._ranked(state, member) for member in chosen]

    def report(self, state: AttemptsState) -> Mapping[str, Any]:
        """Return the attempts made, and a bound on P(legal): the root's."""
        return {
            "attempts": state.num_attempts,
            "rejected": state.num_rejected,
            "attempt_tokens": state.num_tokens,
            "legal_bound": state.trie.root.bound,
        }

    def _ranked(self, state: AttemptsState, member: int) -> Ranked:
        attempt = state.complete.get(member)
        return Ranked(member, report={"accepted": attempt is not None and attempt.is_checked})

    def _begin_missing(self, state: AttemptsState, parent: int) -> list[Action]:
        """Begin as many attempts as there is room for while texts are missing."""
        actions = list[Action]()
        n, options = state.request.n, self._options
        while len(state.running) < options.num_parallel and len(_first_accepted(state)) < n:
            if state.num_attempts >= options.max_attempts or state.trie.root.bound <= 0:
                return actions if state.running else actions + self._give_up(state, parent)
            actions += start_attempt(state, parent, is_checked=True)
        return actions

    def _give_up(self, state: AttemptsState, parent: int) -> list[Action]:
        """Begin a text that is not rejected for each one that no attempt is left for."""
        found = sum(attempt.is_checked for attempt in state.complete.values())
        if found < len(state.complete):
            return []  # they have been drawn
        return [
            action
            for _ in range(state.request.n - found)
            for action in start_attempt(state, parent, is_checked=False)
        ]


def _late(state: AttemptsState) -> list[int]:
    """Forget and return the attempts that can't be among the n accepted of lowest number."""
    needed = _first_accepted(state)[: state.request.n]
    if len(needed) < state.request.n:
        return []
    worst = state.complete[needed[-1]].number
    late = [member for member, attempt in state.running.items() if attempt.number > worst]
    for member in late:
        del state.running[member]
    return late


def _first_accepted(state: AttemptsState) -> list[int]:
    """Return the members that are accepted, by the numbers of their attempts."""
    accepted = [m for m, attempt in state.complete.items() if attempt.is_checked]
    return sorted(accepted, key=lambda member: state.complete[member].number)


METHOD = Method(
    kind="search",
    needs=frozenset({"search"}),
    name="cars",
    summary="Exact samples given the constraint, by rejection that learns from every attempt.",
    source="CARS, arXiv:2510.01902",
    target="plait.decoders.search.faithful.cars:Cars",
    options=CarsOptions,
    num_sequences="num_parallel",
    is_causal=True,
    excludes=frozenset({"awrs"}),  # its masses are estimates
)
