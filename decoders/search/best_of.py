"""best-of: draw several samples and return those with the highest mean log-probability.

The samples are those that n = num_samples would return: member i draws from stream i. The score of
a sample is the mean of the model's own log-probabilities of its tokens; a stop token isn't counted,
and a sample without tokens ranks last. Samples with equal scores rank by their number.

Source: best_of of OpenAI's completions API, with a length-normalised score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import SearchNeeds
from plait.decoders.contract.registry import Method, MethodError, Options
from plait.decoders.contract.search import Action, MemberOutcome, Ranked, SearchRequest


class BestOfOptions(Options):
    """Options of best-of."""

    num_samples: int = Field(ge=1, le=128, description="samples to draw, at least n")


@dataclass(slots=True)
class BestOfState:
    """The scores of one request's samples."""

    n: int
    sums: dict[int, float] = field(default_factory=dict)  # log-probability of each member's tokens
    lengths: dict[int, int] = field(default_factory=dict)


class BestOf:
    """Ranks independent samples; see the module's docstring."""

    name: ClassVar[str] = "best-of"

    def __init__(self, options: BestOfOptions) -> None:
        self.needs = SearchNeeds(logprobs=True)
        self._num_samples = options.num_samples

    def start(self, request: SearchRequest) -> tuple[BestOfState, int]:
        """Begin with num_samples members; raise MethodError if n is more."""
        if self._num_samples < request.n:
            raise MethodError(
                f"best-of: num_samples is {self._num_samples}, fewer than n, {request.n}.",
                "decoding.search.num_samples",
            )
        return BestOfState(request.n), self._num_samples

    def step(self, state: BestOfState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Add up log-probabilities; all members run to their end."""
        for outcome in outcomes:
            gained = sum(token.logprob for token in outcome.logprobs)
            state.sums[outcome.member] = state.sums.get(outcome.member, 0.0) + gained
            state.lengths[outcome.member] = outcome.num_output
        return ()

    def rank(self, state: BestOfState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return the n members with the highest scores."""
        scored = sorted((-_score(state, member), member) for member in members)
        return [Ranked(member, -negative) for negative, member in scored[: state.n]]

    def report(self, state: BestOfState) -> Mapping[str, Any]:
        """Return nothing: the ranks carry the scores."""
        return {}


def _score(state: BestOfState, member: int) -> float:
    length = state.lengths.get(member, 0)
    return state.sums[member] / length if length else -math.inf


METHOD = Method(
    kind="search",
    needs=frozenset({"search"}),
    name="best-of",
    summary="Draws num_samples texts and returns the n of the highest mean log-probability.",
    source="best_of of OpenAI's completions API",
    target="plait.decoders.search.best_of:BestOf",
    options=BestOfOptions,
    num_sequences="num_samples",
)
