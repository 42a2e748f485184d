"""smc: sequential Monte Carlo, texts that follow the model's law given the constraint.

A masked draw follows p(token) 1[legal] / mass, which distorts the law of whole texts: it walks into
places from which the constraint leaves no probable way on. Particles are texts that are drawn so;
after each step a particle's weight is multiplied by the legal mass of its draw, and when the
weights have become unequal (effective sample size below ess_threshold * num_particles), particles
are resampled: light ones are dropped, heavy ones forked with noise of their own, all weights become
the mean. Complete particles stay and compete. The n choices are drawn by weight.

Law: the weighted texts estimate expectations under P(text | legal) consistently, and
exp(log_evidence) is an unbiased estimate of P(legal). P: the request's distribution before the
constraint. A text that can't go on ends without a stop token, whose probability does not count.
Where all weights come to nothing (truncation or checks leave nothing legal), texts go on as masked
draws, and log_evidence is None. With a constraint that takes tokens back, the sampler `awrs` keeps
the weights unbiased; the ordinary one counts what is taken back as legal.
Source: Loula et al., arXiv:2504.13139, section 2; Lipkin et al., arXiv:2504.05410, section 3; where
the bitmask is exact, the weight is the exact legal mass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, log
from random import Random
from typing import Any, ClassVar

from pydantic import Field

from plait.decoders.contract.decoder import SearchNeeds
from plait.decoders.contract.registry import Method, MethodError, Options
from plait.decoders.contract.search import (
    Action,
    Drop,
    Fork,
    MemberOutcome,
    Ranked,
    SearchRequest,
)
from plait.decoders.search.faithful.attempts import check_samples
from plait.decoders.search.faithful.resampling import (
    Scheme,
    effective_size,
    log_sum_exp,
    normalised,
    resample,
)


class SmcOptions(Options):
    """Options of smc."""

    num_particles: int = Field(default=16, ge=1, le=256, description="particles, at least n")
    ess_threshold: float = Field(
        default=0.5, ge=0, le=1, description="resample below this share of num_particles"
    )
    resampling: Scheme = Field(default="stratified", description="scheme of resampling")


@dataclass(slots=True)
class SmcState:
    """The particles of one request; a complete member may be several of them."""

    request: SearchRequest
    rng: Random
    members: list[int]  # of each particle
    log_weights: list[float]
    lengths: dict[int, int] = field(default_factory=dict)  # tokens of output, by member
    complete: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)  # complete at a dead end
    is_void: bool = False  # whether all weights have come to nothing
    num_members: int = 0  # made so far
    num_resamplings: int = 0


class Smc:
    """Sequential Monte Carlo; see the module's docstring."""

    name: ClassVar[str] = "smc"
    needs: SearchNeeds = SearchNeeds(max_tokens_per_step=1, is_synchronous=True)

    def __init__(self, options: SmcOptions) -> None:
        self._options = options

    def start(self, request: SearchRequest) -> tuple[SmcState, int]:
        """Begin with num_particles members; raise MethodError if n is more, or at temperature 0."""
        check_samples(request, self.name)
        num = self._options.num_particles
        if num < request.n:
            message = f"smc: num_particles is {num}, fewer than n, {request.n}."
            raise MethodError(message, "decoding.search.num_particles")
        rng = Random(f"smc {request.seed}")
        return SmcState(request, rng, [*range(num)], [0.0] * num, num_members=num), num

    def step(self, state: SmcState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Weigh the particles by their draws; resample if too few of them count."""
        for outcome in outcomes:  # of members that are one particle each
            state.log_weights[state.members.index(outcome.member)] += outcome.log_mass
            state.lengths[outcome.member] = outcome.num_output
            if outcome.finish is not None:
                state.complete.add(outcome.member)
            if outcome.finish == "dead_end":
                state.dead.add(outcome.member)
        if max(state.log_weights) == -inf:
            _go_on_unweighted(state)
        weights, num = normalised(state.log_weights), len(state.members)
        is_over = state.complete.issuperset(state.members)
        if is_over or effective_size(weights) >= self._options.ess_threshold * num:
            return []
        counts = resample(self._options.resampling, weights, num, state.rng)
        return _replace_particles(state, counts)

    def rank(self, state: SmcState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return n particles drawn by weight, in random order; a heavy one may come repeatedly."""
        weights, n = normalised(state.log_weights), state.request.n
        rng = Random(f"smc choices {state.request.seed}")
        counts = resample("stratified", weights, n, rng)
        drawn = [m for m, count in zip(state.members, counts, strict=True) for _ in range(count)]
        rng.shuffle(drawn)
        share = dict.fromkeys(state.members, 0.0)
        for member, weight in zip(state.members, weights, strict=True):
            share[member] += weight
        if state.is_void:
            share = dict.fromkeys(share, 0.0)
        return [_ranked(member, share[member]) for member in drawn]

    def report(self, state: SmcState) -> Mapping[str, Any]:
        """Return the estimate of P(legal), the effective sample size, and how often resampled."""
        evidence = log_sum_exp(state.log_weights) - log(len(state.log_weights))
        size = effective_size(normalised(state.log_weights))
        return {
            "log_evidence": None if state.is_void else evidence,
            "ess": 0.0 if state.is_void else size,
            "resamplings": state.num_resamplings,
        }


def _go_on_unweighted(state: SmcState) -> None:
    """Take note that no particle has any weight: the texts are legal at best, and follow no law."""
    state.is_void = True
    state.log_weights = [-inf if member in state.dead else 0.0 for member in state.members]


def _ranked(member: int, weight: float) -> Ranked:
    return Ranked(member, weight, log(weight) if weight else -inf, {"weight": weight})


def _replace_particles(state: SmcState, counts: Sequence[int]) -> list[Action]:
    """Give every particle as many copies as are counted, all of the mean weight."""
    before = dict.fromkeys(state.members)
    mean = log_sum_exp(state.log_weights) - log(len(counts))
    forks, after = list[Action](), list[int]()
    for member, count in zip(state.members, counts, strict=True):
        for copy in range(count):
            if copy == 0 or member in state.complete:
                after.append(member)
                continue
            forks.append(Fork(member, state.lengths[member]))
            state.lengths[state.num_members] = state.lengths[member]
            after.append(state.num_members)
            state.num_members += 1
    state.members, state.log_weights = after, [mean] * len(after)
    state.num_resamplings += 1
    return [*(Drop(member) for member in before if member not in after), *forks]


METHOD = Method(
    kind="search",
    needs=frozenset({"search"}),
    name="smc",
    summary="Sequential Monte Carlo: choices follow the model's law given the constraint.",
    source="Loula et al., arXiv:2504.13139; Lipkin et al., arXiv:2504.05410",
    target="plait.decoders.search.faithful.smc:Smc",
    options=SmcOptions,
    num_sequences="num_particles",
    is_causal=True,
    presets={"awrs-smc": {"num_particles": 5, "ess_threshold": 0.5}},
)
