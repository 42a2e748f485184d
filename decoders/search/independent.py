"""The n sequences of a request, each on its own: what a request without a search gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from plait.decoders.contract.decoder import SearchNeeds
from plait.decoders.contract.registry import Method, Options
from plait.decoders.contract.search import Action, MemberOutcome, Ranked, SearchRequest


class IndependentSearch:
    """Member i is choice i. The engine asks it nothing after the start."""

    name: ClassVar[str] = "independent"
    needs: SearchNeeds = SearchNeeds(has_fixed_choices=True)

    def start(self, request: SearchRequest) -> tuple[None, int]:
        """Begin with one member for each choice."""
        return None, request.n

    def step(self, state: None, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Do nothing."""
        return ()

    def rank(self, state: None, members: Sequence[int]) -> Sequence[Ranked]:
        """Return the members in their order."""
        return [Ranked(member) for member in members]

    def report(self, state: None) -> Mapping[str, Any]:
        """Return nothing."""
        return {}


def make(options: Options) -> IndependentSearch:
    """Build the search; it has no options."""
    return IndependentSearch()


METHOD = Method(
    kind="search",
    name="independent",
    summary="n sequences, each on its own.",
    source="",
    target="plait.decoders.search.independent:make",
)
