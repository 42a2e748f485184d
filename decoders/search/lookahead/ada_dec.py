"""ada-dec: greedy decoding that pauses at uncertain tokens and compares where they lead.

Where the entropy H of the model's own distribution (nats, temperature 1) is below tau, the
likeliest token is taken. Elsewhere the num_candidates likeliest tokens are tried: each is continued
greedily by up to `lookahead` tokens, a stop token among them, and the candidate with the highest
mean log-probability over itself and its continuation is taken, of equals the likelier token. A
continuation that ends early keeps the sum and the length that it has then.

The continuation of the taken candidate is what greedy decoding would write next, so it is kept up
to the first token with H >= tau, where the next pause begins: a pause costs the continuations of
the other candidates.

Laws: the text is that of the algorithm which decodes each continuation again; tau = infinity,
num_candidates = 1 or lookahead = 0 give the greedy text. It draws nothing: temperature and seed
have no effect.

Source: AdaDec, arXiv:2506.08980, section 3, and its thresholds. There, finished continuations go on
adding log-probabilities, and rules for code end them early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field, model_validator

from plait.decoders.contract.decoder import SearchNeeds
from plait.decoders.contract.registry import Method, MethodError, Options
from plait.decoders.contract.search import Action, Drop, MemberOutcome, Ranked, SearchRequest
from plait.decoders.search.lookahead.draws import Branch, extend_branch

TAU = {  # nats, by model: thresholds that the authors have fitted
    "deepseek-1.3b": 0.985,
    "deepseek-6.7b": 1.134,
    "stable-3b": 1.100,
    "qwen3-0.6b": 1.321,
    "qwen3-1.7b": 0.615,
    "qwen3-4b": 0.713,
    "qwen3-8b": 0.706,
}
NO_TAU = (
    "tau depends on the model: name a preset, or give what `plait calibrate ada-dec` has measured"
)


class AdaDecOptions(Options):
    """Options of ada-dec."""

    tau: float = Field(ge=0, description="entropy in nats from which candidates are compared")
    num_candidates: int = Field(default=3, ge=1, le=32, description="tokens compared at a pause")
    lookahead: int = Field(default=5, ge=0, le=256, description="tokens that follow each of them")

    @model_validator(mode="before")
    @classmethod
    def _has_tau(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and "tau" not in fields:
            raise ValueError(NO_TAU)
        return fields


@dataclass(slots=True)
class AdaDecState:
    """The candidates of a pause, likeliest first, or the one member that is decoded greedily."""

    branches: list[Branch] = field(default_factory=lambda: [Branch(0, 0)])
    is_paused: bool = False  # draws[0] of every branch is the candidate
    num_members: int = 1
    num_pauses: int = 0


class AdaDec:
    """Greedy decoding with pauses; see the module's docstring."""

    name: ClassVar[str] = "ada-dec"

    def __init__(self, options: AdaDecOptions) -> None:
        self._tau, self._lookahead = options.tau, options.lookahead
        self.needs = SearchNeeds(
            options.num_candidates, logprobs=True, entropies=True, is_greedy=True
        )

    def start(self, request: SearchRequest) -> tuple[AdaDecState, int]:
        """Begin with one member; raise MethodError for more than one text."""
        if request.n > 1:
            raise MethodError("ada-dec finds one text; n must be 1.", "n")
        return AdaDecState(), 1

    def step(self, state: AdaDecState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Begin a pause where the draws say so, and end it when its candidates are rolled out."""
        by_member = {branch.member: branch for branch in state.branches}
        for outcome in outcomes:
            by_member[outcome.member].add(outcome)
        actions: list[Action] = []
        while True:
            if state.is_paused:
                if not all(map(self._is_rolled_out, state.branches)):
                    waiting = ((each, self._is_rolled_out(each)) for each in state.branches)
                    return actions + [a for each, waits in waiting for a in each.wait(waits)]
                _choose(state, self._score, actions)
            if not self._pause(state, actions):
                return actions

    def rank(self, state: AdaDecState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return the candidate that is best by now."""
        there = [branch for branch in state.branches if branch.member in members]
        return [Ranked(max(there, key=self._score).member)]

    def report(self, state: AdaDecState) -> Mapping[str, Any]:
        """Return how often it has paused."""
        return {"pauses": state.num_pauses}

    def _pause(self, state: AdaDecState, actions: list[Action]) -> bool:
        """Begin a pause at the first uncertain draw of the one member; False if there is none."""
        (own,) = state.branches
        uncertain = (
            i
            for i, draw in enumerate(own.draws)
            if draw.entropy >= self._tau and len(draw.alternatives) > 1
        )
        own.forget(next(uncertain, len(own.draws)))
        if not own.draws:
            actions += own.wait(False)
            return False
        state.branches = []
        for token in own.draws[0].alternatives:
            branch, made = extend_branch(own, token, state.num_members)
            state.num_members += len(made)
            state.branches.append(branch)
            actions += made
        if own not in state.branches:  # what its constraint has forced is not among the best
            actions.append(Drop(own.member))
        state.is_paused = True
        state.num_pauses += 1
        return True

    def _is_rolled_out(self, branch: Branch) -> bool:
        return branch.finish is not None or len(branch.draws) > self._lookahead

    def _score(self, branch: Branch) -> float:
        """Return the mean log-probability of the candidate and its continuation."""
        seen = branch.draws[: 1 + self._lookahead]
        return sum(draw.logprob for draw in seen) / len(seen) if seen else -math.inf


def _choose(state: AdaDecState, score: Callable[[Branch], float], actions: list[Action]) -> None:
    """End a pause with the best candidate; what it has drawn since is kept."""
    best = max(state.branches, key=score)
    actions += [Drop(branch.member) for branch in state.branches if branch is not best]
    best.forget(1)
    state.branches, state.is_paused = [best], False


METHOD = Method(
    kind="search",
    needs=frozenset({"search"}),
    name="ada-dec",
    summary="Greedy decoding that looks ahead where the model is uncertain.",
    source="AdaDec, arXiv:2506.08980, section 3",
    target="plait.decoders.search.lookahead.ada_dec:AdaDec",
    options=AdaDecOptions,
    num_sequences="num_candidates",
    is_causal=True,
    unused=frozenset({"presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"}),
    presets={model: {"tau": tau} for model, tau in TAU.items()},
)
