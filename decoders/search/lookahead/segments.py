"""The segment form of deal: beams of some tokens are candidates, and scorers choose among them.

Each of `beams` texts is continued by `lookahead` tokens with a beam search of init_beams beams,
which ranks by log-probability and keeps complete texts among its beams. Of all the beams of all
texts the ones with the highest scores are the next texts, of equals the likelier text's, then the
likelier beam. It ends when all of them are complete, or after max_iterations segments.

Source: DeAL as AISteer360 has it, whose numbers are the preset: lookahead 10, init_beams 5, three
texts, 10 iterations. There, texts are generated again for each segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from plait.decoders.contract.decoder import Alternative, SearchNeeds
from plait.decoders.contract.search import (
    Action,
    Drop,
    Finish,
    MemberOutcome,
    Ranked,
    SearchRequest,
)
from plait.decoders.search.lookahead.deal import (
    Candidate,
    Deal,
    DealOptions,
    check_width,
    take,
)
from plait.decoders.search.lookahead.draws import Branch, extend_branch


@dataclass(slots=True)
class SegmentState:
    """The texts of one request, best first, each with its beams, likeliest first."""

    n: int
    texts: list[list[Candidate]] = field(default_factory=lambda: [[Candidate(Branch(0, 0))]])
    num_tokens: int = 0  # of the segment
    num_iterations: int = 0
    num_members: int = 1
    num_scores: int = 0
    is_over: bool = False  # the budget of iterations is spent

    @property
    def beams(self) -> list[Candidate]:
        """The beams of all texts."""
        return [beam for beams in self.texts for beam in beams]


class DealSegments:
    """The segment form; see the module's docstring."""

    name: ClassVar[str] = "deal"

    def __init__(self, options: DealOptions) -> None:
        self._options = options
        self.needs = SearchNeeds(
            2 * options.init_beams,
            logprobs=True,
            is_greedy=True,
            max_tokens_per_step=1,
            is_synchronous=True,
        )

    def start(self, request: SearchRequest) -> tuple[SegmentState, int]:
        """Begin with one text; raise MethodError if fewer are kept than n."""
        check_width("beams", self._options.beams, request)
        return SegmentState(request.n), 1

    def step(self, state: SegmentState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Extend every beam by a token; at the end of a segment, ask for scores and choose."""
        by_member = {beam.branch.member: beam for beam in state.beams}
        actions: list[Action] = []
        for outcome in outcomes:
            if outcome.score is None:
                by_member[outcome.member].branch.add(outcome)
            else:
                by_member[outcome.member].score = outcome.score
        if any(outcome.score is not None for outcome in outcomes):
            self._choose(state, actions)
            return actions
        before = {beam.branch.member for beam in state.beams}
        state.texts = [self._extend(state, beams, actions) for beams in state.texts]
        there = {beam.branch.member for beam in state.beams}
        actions += [Drop(member) for member in sorted(before - there)]
        state.num_tokens += 1
        is_end = all(beam.is_complete for beam in state.beams)
        if is_end or state.num_tokens == self._options.lookahead:
            self._ask(state, actions)
        return actions

    def rank(self, state: SegmentState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return the n best texts by their last scores; the last one again if there are fewer."""
        there = [beam for beam in state.beams if beam.branch.member in members]
        there.sort(key=lambda beam: -(beam.score or 0.0))
        return take([Ranked(beam.branch.member, beam.score or 0.0) for beam in there], state.n)

    def report(self, state: SegmentState) -> Mapping[str, Any]:
        """Return how many segments and scores there were, and whether that ended the search."""
        found = {"iterations": state.num_iterations, "scores": state.num_scores}
        return {**found, "budget": "iterations"} if state.is_over else found

    def _extend(
        self, state: SegmentState, beams: list[Candidate], actions: list[Action]
    ) -> list[Candidate]:
        """Return the likeliest beams of one text after one more token."""
        found: list[tuple[float, Candidate, Alternative | None]] = []
        for beam in beams:
            draws = beam.branch.draws
            if beam.is_complete or not draws:  # or it has ended without a token
                found.append((beam.logprob, beam, None))
                continue
            tried = draws[0].alternatives
            found += [(beam.logprob + token.logprob, beam, token) for token in tried]
        found.sort(key=lambda entry: -entry[0])  # stable
        kept: list[Candidate] = []
        for logprob, beam, token in found[: self._options.init_beams]:
            if token is None:
                beam.is_complete = True
                kept.append(beam)
                continue
            branch, made = extend_branch(beam.branch, token, state.num_members)
            state.num_members += len(made)
            actions += made
            kept.append(Candidate(branch, logprob, token.finish is not None))
        for beam in kept:
            beam.branch.forget(len(beam.branch.draws))
        return kept

    def _ask(self, state: SegmentState, actions: list[Action]) -> None:
        for beam in state.beams:
            if beam.score is None:
                actions += beam.branch.wait(True)
                actions.append(beam.branch.ask_score(0))
                state.num_scores += 1
        state.num_iterations += 1

    def _choose(self, state: SegmentState, actions: list[Action]) -> None:
        """Keep the texts that the scorers like best; each begins a segment, unless it is over."""
        ordered = sorted(state.beams, key=lambda beam: -(beam.score or 0.0))  # stable
        kept, lost = ordered[: self._options.beams], ordered[self._options.beams :]
        actions += [Drop(beam.branch.member) for beam in lost]
        state.texts, state.num_tokens = [[beam] for beam in kept], 0
        if all(beam.is_complete for beam in kept):
            return
        state.is_over = state.num_iterations == self._options.max_iterations
        if state.is_over:
            actions.append(Finish())
            return
        for beam in kept:
            actions += beam.branch.wait(False)


def make(options: DealOptions) -> Deal | DealSegments:
    """Build the form of deal that the options name."""
    return Deal(options) if options.form == "token" else DealSegments(options)
