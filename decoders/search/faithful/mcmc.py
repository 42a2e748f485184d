"""mcmc: Markov chains over masked draws, each step nearer to the model's law given the constraint.

A chain begins with a masked draw w. A step cuts w at a position i ~ pos(i | w), draws the rest
again under the mask, which gives w', and moves there with probability
min(1, P(w') q(w | w') / (P(w) q(w' | w))), where P is the request's distribution and
q(w' | w) = sum over the cuts i within their common beginning of pos(i | w) * Q(w'[i:] | w'[:i]),
Q the masked law. The n choices are the ends of n chains of num_steps steps.

cut "restart": always at the beginning. The proposals know nothing of each other, so they are drawn
beside each other, and the ratio is that of the importance weights prod legal mass. "uniform": any
token of w, the stop token among them. "priority": tokens by their perplexity, 1 / P(token).

Law: each step keeps P(text | legal), and never increases the total variation to it. Every state is
legal. With the sampler `awrs`, "restart" stays exact, as a pseudo-marginal chain; the other cuts
need the masked law itself, and with the ordinary sampler what is taken back counts as legal.
Source: arXiv:2506.05754, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from random import Random
from typing import Any, ClassVar, Literal

from pydantic import Field

from plait.decoders.contract.decoder import SearchNeeds
from plait.decoders.contract.registry import Method, Options
from plait.decoders.contract.search import (
    Action,
    Drop,
    Finish,
    Fork,
    MemberOutcome,
    Ranked,
    SearchRequest,
)
from plait.decoders.search.faithful.attempts import ROOT, check_samples, park_root
from plait.decoders.search.faithful.chains import (
    Cut,
    Walk,
    accept_chance,
    cut_weights,
    restart_chance,
)


class McmcOptions(Options):
    """Options of mcmc."""

    num_steps: int = Field(default=10, ge=0, le=1000, description="steps of a chain")
    cut: Literal["restart", "uniform", "priority"] = Field(
        default="restart", description="where a text is cut to be drawn again"
    )
    num_parallel: int = Field(default=16, ge=1, le=128, description="sequences at once")


@dataclass(slots=True)
class Chain:
    """One chain; proposals that have come before their turn wait."""

    number: int
    current: Walk | None = None
    num_begun: int = 0  # texts, the first draw among them
    num_judged: int = 0
    num_accepted: int = 0
    waiting: dict[int, Walk] = field(default_factory=dict)  # complete ones, by their place


@dataclass(slots=True)
class McmcState:
    """The chains of one request, and the members that draw for them."""

    request: SearchRequest
    chains: list[Chain]
    coin: Callable[[int, int, float], bool]  # of a chain, a step and a chance
    pick: Callable[[int, int, Sequence[float]], int]  # of a chain, a step and weights
    running: dict[int, tuple[Chain, int, Walk]] = field(default_factory=dict)  # place, text
    num_members: int = 1
    is_open: bool = False


class Mcmc:
    """Constrained Markov chain Monte Carlo; see the module's docstring."""

    name: ClassVar[str] = "mcmc"
    needs: SearchNeeds = SearchNeeds(draws=True, max_tokens_per_step=1, is_synchronous=True)

    def __init__(self, options: McmcOptions) -> None:
        self._options = options
        self._cut: Cut = options.cut

    def start(self, request: SearchRequest) -> tuple[McmcState, int]:
        """Begin with a member that stays at the prompt; raise MethodError at temperature 0."""
        check_samples(request, self.name)

        def coin(chain: int, step: int, chance: float) -> bool:
            return Random(f"mcmc accept {request.seed} {chain} {step}").random() < chance

        def pick(chain: int, step: int, weights: Sequence[float]) -> int:
            rng = Random(f"mcmc cut {request.seed} {chain} {step}")
            return rng.choices(range(len(weights)), weights)[0]

        chains = [Chain(number) for number in range(request.n)]
        return McmcState(request, chains, coin, pick), 1

    def step(self, state: McmcState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Follow the draws; judge the proposals that are complete, and make the next ones."""
        dropped = list[int]()
        seen = sorted(outcomes, key=lambda each: each.member) if state.is_open else ()
        for outcome in seen:
            chain, place, walk = state.running[outcome.member]
            walk.add(outcome)
            if outcome.finish is not None:
                del state.running[outcome.member]
                chain.waiting[place] = walk
                dropped += self._judge(state, chain)
        actions = self._propose(state, min(each.member for each in outcomes))
        if not state.is_open:
            state.is_open = True
            actions += park_root()
        actions += [Drop(member) for member in dropped]
        return actions if state.running else [*actions, Finish()]

    def rank(self, state: McmcState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return the ends of the chains; a chain without one returns what it has begun."""
        begun = {chain.number: member for member, (chain, _, _) in state.running.items()}
        return [_ranked(chain, begun.get(chain.number, ROOT)) for chain in state.chains]

    def report(self, state: McmcState) -> Mapping[str, Any]:
        """Return the share of proposals that were accepted."""
        steps = sum(max(chain.num_judged - 1, 0) for chain in state.chains)
        moves = sum(chain.num_accepted for chain in state.chains)
        return {"acceptance": moves / steps if steps else None}

    def _propose(self, state: McmcState, parent: int) -> list[Action]:
        """Begin texts for the chains in turn, as many as there is room for."""
        actions = list[Action]()
        for chain in sorted(state.chains, key=lambda each: each.num_begun):
            while self._has_room(state) and self._is_ready(chain):
                actions.append(self._begin(state, chain, parent))
        return actions

    def _has_room(self, state: McmcState) -> bool:
        waiting = sum(len(chain.waiting) + 1 for chain in state.chains)
        if len(state.running) + waiting >= self.needs.max_members - 1:
            return False  # some early text takes long
        return len(state.running) < self._options.num_parallel

    def _is_ready(self, chain: Chain) -> bool:
        if chain.num_begun > self._options.num_steps:
            return False
        return self._cut == "restart" or chain.num_begun == chain.num_judged

    def _begin(self, state: McmcState, chain: Chain, parent: int) -> Action:
        """Draw a chain's next text: from the prompt, or from where its current one is cut."""
        place, member, current = chain.num_begun, state.num_members, chain.current
        chain.num_begun += 1
        state.num_members += 1
        if self._cut == "restart" or current is None:
            state.running[member] = chain, place, Walk(member)
            return Fork(parent, 0)
        position = state.pick(chain.number, place, cut_weights(self._cut, current))
        state.running[member] = chain, place, Walk(member, current.draws[:position])
        return Fork(current.member, position)

    def _judge(self, state: McmcState, chain: Chain) -> list[int]:
        """Decide on the proposals whose turn has come; return the members that nobody needs."""
        dropped = list[int]()
        while chain.num_judged in chain.waiting:
            place = chain.num_judged
            proposal, current = chain.waiting.pop(place), chain.current
            chain.num_judged += 1
            if current is None:
                chain.current = proposal
                continue
            chance = (
                restart_chance(current, proposal)
                if self._cut == "restart"
                else accept_chance(self._cut, current, proposal)
            )
            if state.coin(chain.number, place, chance):
                chain.num_accepted += 1
                chain.current, proposal = proposal, current
            dropped.append(proposal.member)
        return dropped


def _ranked(chain: Chain, begun: int) -> Ranked:
    walk = chain.current
    if walk is None:
        return Ranked(begun, report={"steps": 0})
    weight = walk.log_weight
    shown = {"steps": chain.num_judged - 1, "accepted": chain.num_accepted}
    return Ranked(walk.member, exp(weight), weight, shown)


METHOD = Method(
    kind="search",
    needs=frozenset({"search"}),
    name="mcmc",
    summary="Markov chains of masked draws that converge to the law given the constraint.",
    source="arXiv:2506.05754",
    target="plait.decoders.search.faithful.mcmc:Mcmc",
    options=McmcOptions,
    num_sequences="num_parallel",
    is_causal=True,
)
