"""beam: beam search over the model's own log-probabilities.

Each step extends every beam by its 2 * beam_width most probable legal tokens. Continuations that
end the text are complete; of the others the beam_width with the highest cumulative log-probability
are the next beams. The n best of complete texts and beams are returned, by the score cumulative
log-probability / max(length, 1) ** length_penalty, where length counts the output without the stop
token, whose log-probability is included. It ends when no beam can overtake the complete texts.

Law: a beam as wide as the tree of texts finds the n texts with the highest scores.
Source: vLLM's use_beam_search, where the length includes the prompt and only EOS ends a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from plait.decoders.contract import search
from plait.decoders.contract.decoder import Alternative, SearchNeeds
from plait.decoders.contract.registry import Method, MethodError, Options
from plait.decoders.contract.search import Action, Fork, MemberOutcome, Ranked, SearchRequest


class BeamOptions(Options):
    """Options of beam."""

    beam_width: int = Field(ge=1, le=32, description="beams to keep, at least n")
    length_penalty: float = Field(default=1.0, ge=-10, le=10, description="exponent of the length")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text as far as it is known."""

    cum_logprob: float
    length: int  # tokens of output

    def score(self, penalty: float) -> float:
        """Return what texts are ranked by."""
        return self.cum_logprob / math.pow(max(self.length, 1), penalty)


@dataclass(frozen=True, slots=True)
class Continuation:
    """A beam extended by one token."""

    beam: MemberOutcome
    token: Alternative
    text: Hypothesis

    def make_member(self, state: BeamState, actions: list[Action]) -> int:
        """Return the beam itself if it has emitted the token, else a fork of it."""
        beam, token = self.beam, self.token
        ids = [] if token.is_stop else [token.token_id]
        if ids and ids == list(beam.emitted):
            return beam.member
        logprobs = [token.logprob] * len(ids)
        stop_token = token.token_id if token.is_stop else None
        kept = beam.num_output - len(beam.emitted)
        actions.append(Fork(beam.member, kept, ids, logprobs, token.finish, stop_token))
        state.num_members += 1
        return state.num_members - 1


@dataclass(slots=True)
class BeamState:
    """The beams and the complete texts of one request by member, each best first."""

    request: SearchRequest
    beams: dict[int, Hypothesis]
    complete: dict[int, Hypothesis]
    num_members: int  # so far


class BeamSearch:
    """Beam search; see the module's docstring."""

    name: ClassVar[str] = "beam"

    def __init__(self, options: BeamOptions) -> None:
        self._width, self._penalty = options.beam_width, options.length_penalty
        self.needs = SearchNeeds(2 * self._width, max_tokens_per_step=1, is_synchronous=True)

    def start(self, request: SearchRequest) -> tuple[BeamState, int]:
        """Begin with one beam; raise MethodError if beam_width is below n."""
        if self._width < request.n:
            message = f"beam_width is {self._width}, but n is {request.n}; it can't be below n."
            raise MethodError(message, "decoding.search.beam_width")
        return BeamState(request, {0: Hypothesis(0.0, 0)}, {}, num_members=1), 1

    def step(self, state: BeamState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Replace the beams by their best continuations."""
        outcome_of = {outcome.member: outcome for outcome in outcomes}
        found = [c for beam, text in state.beams.items() for c in _extend(text, outcome_of[beam])]
        found.sort(key=lambda c: -c.text.cum_logprob)  # stable: equal ones in the order of beams
        ended = [c for c in found if c.token.finish == "stop"]
        kept = [c for c in found if c.token.finish != "stop"][: self._width]
        actions, before, texts = list[Action](), state.beams, state.complete
        for c in ended + [c for c in kept if c.token.finish]:
            texts[c.make_member(state, actions)] = c.text
        best = sorted(texts, key=lambda member: -texts[member].score(self._penalty))[: self._width]
        state.complete = {member: texts[member] for member in best}
        state.beams = {c.make_member(state, actions): c.text for c in kept if not c.token.finish}
        alive = state.beams.keys() | state.complete.keys()
        actions += [search.Drop(member) for member in {**before, **texts} if member not in alive]
        return [*actions, search.Finish()] if self._is_decided(state) else actions

    def rank(self, state: BeamState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return the n members with the highest scores; the last one again if there are fewer."""
        texts = {**state.complete, **state.beams}
        ranked = [Ranked(member, texts[member].score(self._penalty)) for member in members]
        ranked.sort(key=lambda each: -each.score)
        return [*ranked, *ranked[-1:] * state.request.n][: state.request.n]

    def report(self, state: BeamState) -> Mapping[str, Any]:
        """Return nothing: ranked members carry their scores."""
        return {}

    def _is_decided(self, state: BeamState) -> bool:
        """Tell whether every continuation of a beam scores less than beam_width complete texts."""
        if len(state.complete) < self._width or not state.beams:
            return False
        longest = state.request.max_tokens if self._penalty > 0 else 0  # no other length is better
        bounds = [Hypothesis(t.cum_logprob, longest or t.length) for t in state.beams.values()]
        worst = min(text.score(self._penalty) for text in state.complete.values())
        return max(bound.score(self._penalty) for bound in bounds) < worst


def _extend(text: Hypothesis, beam: MemberOutcome) -> list[Continuation]:
    cum, length = text.cum_logprob, text.length
    return [
        Continuation(beam, token, Hypothesis(cum + token.logprob, length + (not token.is_stop)))
        for token in beam.alternatives[0]
    ]


METHOD = Method(
    kind="search",
    needs=frozenset({"search"}),
    name="beam",
    summary="Beam search over the model's own log-probabilities.",
    source="use_beam_search of vLLM",
    target="plait.decoders.search.beam:BeamSearch",
    options=BeamOptions,
    num_sequences="beam_width",
    unused=frozenset({"presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"}),
)
