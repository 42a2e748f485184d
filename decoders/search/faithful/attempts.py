"""Attempts at a text, scaled by expected futures: what cars and asap have in common.

Member 0 never leaves the prompt, so nothing is streamed before the end. An attempt is a fork of it.
Each of its draws is scaled by the bounds of the trie (futures.py), which is told of each draw. All
members take one step at a time, so a request's attempts do not depend on what else the engine does.

Let u be a text of the attempt, f(u) the bound by which its last token was scaled (1 if it was not),
and S(u) the mass of the draw that follows u. An exact search rejects the attempt at u with
probability 1 - S(u) / f(u). Then an attempt comes to the text w and is accepted with probability

    prod over t of  p(w_t | u_t) f(u_t w_t) / S(u_t)  *  prod over t > 1 of  S(u_t) / f(u_t)
    = P(w) / S(root)

whatever the bounds are and whenever they were learnt, even from attempts that run beside it: what
is accepted follows P(text | legal). At a new node, S(u) is the legal mass and f(u) is 1: to draw
from the mask and reject so is, in law, to draw without it and reject what is illegal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from random import Random

from plait.decoders.contract.decoder import Drawn, FinishReason
from plait.decoders.contract.registry import MethodError
from plait.decoders.contract.search import (
    Action,
    Fork,
    MemberOutcome,
    Park,
    Reweigh,
    SearchRequest,
    Truncate,
)
from plait.decoders.search.faithful.futures import FutureNode, FutureTrie

ROOT = 0  # the member that stays at the prompt
TRIE = "futures"


@dataclass(slots=True)
class Attempt:
    """One try at a text."""

    number: int  # of the request's attempts, from 0
    node: FutureNode  # where its text stands
    factors: Mapping[int, float]  # bounds by which the next draw is scaled, by token
    is_checked: bool  # whether it is rejected where the law asks for it
    scaled_by: float | None = None  # the bound by which its last token was scaled; None: no token
    num_tokens: int = 0
    finish: FinishReason | None = None


@dataclass(slots=True)
class AttemptsState:
    """The attempts of one request by member, in the order of their numbers."""

    request: SearchRequest
    trie: FutureTrie
    coin: Callable[[int, int, float], bool]  # of an attempt's number, position and chance
    running: dict[int, Attempt] = field(default_factory=dict)
    complete: dict[int, Attempt] = field(default_factory=dict)
    num_members: int = 1
    num_attempts: int = 0
    num_rejected: int = 0
    num_tokens: int = 0  # that attempts have drawn


def begin(request: SearchRequest, name: str, *, shares: bool) -> AttemptsState:
    """Return the state of a request, whose only member is ROOT.

    Raises:
        MethodError: its temperature is 0, so that there is no law to follow.
    """
    check_samples(request, name)
    trie = request.recall(TRIE, FutureTrie) if shares else FutureTrie()

    def coin(number: int, position: int, chance: float) -> bool:
        return Random(f"{name} {request.seed} {number} {position}").random() < chance

    return AttemptsState(request, trie, coin)


def check_samples(request: SearchRequest, name: str) -> None:
    """Raise MethodError if the request's temperature is 0."""
    if request.is_greedy:
        raise MethodError(f"{name} draws samples; at temperature 0 there are none.", "temperature")


def open_root(state: AttemptsState, outcomes: Sequence[MemberOutcome]) -> None:
    """Learn from the first draw of ROOT, which is the only one that is not scaled."""
    for outcome in outcomes:
        if outcome.member == ROOT and outcome.draws:
            _learn(state, state.trie.root, {}, outcome.draws[0], outcome.finish)


def park_root() -> list[Action]:
    """Return what brings ROOT back to the prompt, after forks that read its cache."""
    return [Truncate(ROOT, 0), Park(ROOT)]


def start_attempt(state: AttemptsState, parent: int, *, is_checked: bool) -> list[Action]:
    """Return what begins a new attempt from the prompt of a member, which is there until then."""
    root, member = state.trie.root, state.num_members
    attempt = Attempt(state.num_attempts, root, _factors(root), is_checked)
    state.running[member] = attempt
    state.num_members += 1
    state.num_attempts += 1
    return [Fork(parent, 0), *_reweigh(member, root)]


def advance(state: AttemptsState, outcome: MemberOutcome) -> list[Action] | None:
    """Follow one draw of an attempt; None: it is rejected, and the caller drops the member."""
    attempt = state.running[outcome.member]
    state.num_tokens += 1
    (drawn,) = outcome.draws
    mass = 0.0 if outcome.finish == "dead_end" else exp(drawn.log_mass)
    _learn(state, attempt.node, attempt.factors, drawn, outcome.finish)
    if attempt.is_checked and not _passes(state, attempt, drawn, mass):
        _reject(state, outcome.member)
        return None
    attempt.finish = outcome.finish
    if outcome.finish is not None:
        is_cut = outcome.finish != "stop" and state.request.is_constrained
        if attempt.is_checked and is_cut and drawn.token_id is not None:
            prob = exp(drawn.base_logprob)
            state.trie.child(attempt.node, drawn.token_id, prob).learn(0.0)
            _reject(state, outcome.member)
            return None
        state.complete[outcome.member] = state.running.pop(outcome.member)
        return []
    assert drawn.token_id is not None
    attempt.scaled_by = attempt.factors.get(drawn.token_id, 1.0)
    attempt.node = state.trie.child(attempt.node, drawn.token_id, exp(drawn.base_logprob))
    attempt.factors = _factors(attempt.node)
    attempt.num_tokens += 1
    return _reweigh(outcome.member, attempt.node)


def _passes(state: AttemptsState, attempt: Attempt, drawn: Drawn, mass: float) -> bool:
    """Tell whether the attempt survives the node that it has drawn from."""
    if drawn.taken_back or drawn.is_forced or drawn.token_id is None:
        return False  # the token is not the one that was drawn from the law
    if attempt.factors.get(drawn.token_id, 1.0) <= 0:
        return False  # nothing legal was left
    if attempt.scaled_by is None:
        return True
    chance = mass / attempt.scaled_by
    return state.coin(attempt.number, attempt.num_tokens, chance)


def _reject(state: AttemptsState, member: int) -> None:
    del state.running[member]
    state.num_rejected += 1


def _learn(
    state: AttemptsState,
    node: FutureNode,
    factors: Mapping[int, float],
    drawn: Drawn,
    finish: FinishReason | None,
) -> None:
    """Tell the trie of a draw at a node."""
    if not factors:
        node.visit(exp(drawn.log_mass))
    for token, logprob in drawn.taken_back:
        state.trie.child(node, token, exp(logprob)).learn(0.0)
    if finish == "dead_end":
        node.learn(0.0)


def _factors(node: FutureNode) -> Mapping[int, float]:
    return {token: child.bound for token, child in node.children.items() if child.bound < 1}


def _reweigh(member: int, node: FutureNode) -> list[Action]:
    factors = node.log_factors()
    return [Reweigh(member, factors)] if factors else []
