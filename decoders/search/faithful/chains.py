"""The Metropolis-Hastings step of mcmc: weights of cuts, laws of proposals, chances to move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, inf, log
from typing import Literal

from plait.decoders.contract.decoder import Drawn, FinishReason
from plait.decoders.contract.search import MemberOutcome
from plait.decoders.search.faithful.resampling import log_sum_exp

Cut = Literal["restart", "uniform", "priority"]
MOST = 50.0  # log of the largest perplexity that counts


@dataclass(slots=True)
class Walk:
    """A text as it was drawn, its stop token included."""

    member: int
    draws: list[Drawn] = field(default_factory=list)
    finish: FinishReason | None = None

    def add(self, outcome: MemberOutcome) -> None:
        """Note what a step has drawn."""
        self.draws += outcome.draws
        self.finish = outcome.finish

    @property
    def tokens(self) -> list[int | None]:
        """Its tokens; None where it came to an end without one."""
        return [drawn.token_id for drawn in self.draws]

    @property
    def log_weight(self) -> float:
        """The log of its importance weight, P / Q, up to a constant."""
        if self.finish == "dead_end":
            return -inf
        return sum(drawn.log_mass for drawn in self.draws)

    @property
    def log_prob(self) -> float:
        """The log of P(text)."""
        return -inf if self.finish == "dead_end" else sum(d.base_logprob for d in self.draws)


def restart_chance(current: Walk, proposal: Walk) -> float:
    """Return the probability to move to a text that was drawn anew."""
    return _ratio(proposal.log_weight, current.log_weight)


def accept_chance(cut: Cut, current: Walk, proposal: Walk) -> float:
    """Return the probability to move to a text that was drawn from a cut of the current one."""
    ahead = proposal.log_prob + log_proposal(cut, proposal, current)
    return _ratio(ahead, current.log_prob + log_proposal(cut, current, proposal))


def cut_weights(cut: Cut, walk: Walk) -> list[float]:
    """Return the weights of the positions at which a text may be cut, one for each draw."""
    if cut == "restart":
        return [1.0] + [0.0] * (len(walk.draws) - 1)
    if cut == "uniform" or walk.log_prob == -inf:
        return [1.0] * len(walk.draws)
    return [exp(min(-drawn.base_logprob, MOST)) for drawn in walk.draws]


def log_proposal(cut: Cut, start: Walk, end: Walk) -> float:
    """Return the log of q(end | start): over all cuts within what the two texts share."""
    weights, shared = cut_weights(cut, start), _num_common(start.tokens, end.tokens)
    logs = [d.base_logprob - d.log_mass if d.log_mass > -inf else 0.0 for d in end.draws]
    tails = [0.0]
    for value in reversed(logs):
        tails.append(tails[-1] + value)
    tails.reverse()  # tails[i]: of the draws from i on
    scale = log_sum_exp([_log(weight) for weight in weights])
    last = min(shared, len(weights) - 1)  # a cut is in front of a token of the start
    return log_sum_exp([_log(weights[i]) - scale + tails[i] for i in range(last + 1)])


def _log(weight: float) -> float:
    return log(weight) if weight > 0 else -inf


def _ratio(ahead: float, behind: float) -> float:
    if behind == -inf:  # whatever has no weight is left
        return 1.0
    return 0.0 if ahead == -inf else exp(min(ahead - behind, 0.0))


def _num_common(one: Sequence[int | None], other: Sequence[int | None]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
