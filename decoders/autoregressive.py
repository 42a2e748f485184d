"""The autoregressive host: one token per forward pass, sampled under the request's constraint.

It also keeps the promise that a constrained answer ends within its budget: a drawn token after
which the shortest legal end would no longer fit is taken back, banned, and drawn again (so the draw
follows the law restricted to what can still be finished); after MAX_REDRAWS the shortest end known
is followed to its end. Law: if min_tokens() <= max_tokens at the start, the text ends complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any, ClassVar

import torch
from torch import Tensor

from plait.decoders.protocol import (
    Constraint,
    DecodeRequest,
    Finish,
    Forward,
    Outcome,
    Proposal,
    Sampler,
    TokenLogprobs,
)
from plait.decoders.registry import Choice, choose
from plait.decoders.sampling.sampler import Draws
from plait.decoders.sampling.state import SamplingState

MAX_REDRAWS = 8
PLAIN = Proposal()


class ConstraintBroken(RuntimeError):
    """A constraint contradicts itself; its request fails, the others go on."""


@dataclass(slots=True)
class AutoregressiveState:
    """What the host remembers of one sequence."""

    sampling: SamplingState
    sampler: Sampler
    constraint: Constraint | None
    stop_token_ids: frozenset[int]
    remaining: int  # tokens that may still be emitted
    closing: list[int] = field(default_factory=list)  # the end that is being followed, if one is
    log_weight: float = 0.0  # sum over tokens of the log legal mass
    num_emitted: int = 0
    num_steered: int = 0  # tokens redrawn or forced to end within the budget


class AutoregressiveDecoder:
    """Plain decoding: proposes nothing, accepts one token per sequence."""

    name: ClassVar[str] = "autoregressive"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, vocab_size: int, *, naive: bool = False) -> None:
        self._num_words = -(-vocab_size // 32)
        self._naive = naive
        self._samplers: dict[Choice, Sampler] = {}

    def start(self, request: DecodeRequest) -> AutoregressiveState:
        """Return the state of one new sequence."""
        return AutoregressiveState(
            sampling=SamplingState(
                request.sampling,
                request.prompt_token_ids,
                sequence_index=request.sequence_index,
                stop_token_ids=request.stop_token_ids,
            ),
            sampler=self._sampler(request.options),
            constraint=request.constraint,
            stop_token_ids=request.stop_token_ids,
            remaining=request.max_tokens,
        )

    def block(self, state: AutoregressiveState) -> int:
        """Read text causally."""
        return 1

    def propose(self, states: Sequence[AutoregressiveState], room: int) -> Sequence[Proposal]:
        """Propose nothing: the pending token is all there is to feed."""
        return [PLAIN] * len(states)

    def accept(self, states: Sequence[AutoregressiveState], forward: Forward) -> Sequence[Outcome]:
        """Draw one token per sequence and end those that are complete or out of budget."""
        outcomes: dict[int, Outcome] = {}
        for sampler, rows in _by_sampler(states):
            logits = forward.logits if len(rows) == len(states) else forward.logits[rows]
            members = [states[row] for row in rows]
            draws = sampler.sample(
                logits, [state.sampling for state in members], self._fill_bitmask(members)
            )
            for i, row in enumerate(rows):
                outcomes[row] = self._try_commit(members[i], i, draws, logits)
        return [outcomes[row] for row in range(len(states))]

    def evicted(self, state: AutoregressiveState) -> None:
        """Nothing that the host remembers depends on the cache."""

    def report(self, state: AutoregressiveState) -> Mapping[str, Any]:
        """Return log_weight (sum of log legal mass), its mean per token as a mass, and steering."""
        if state.constraint is None:
            return {}
        return {
            "log_weight": state.log_weight,
            "legal_mass": exp(state.log_weight / max(state.num_emitted, 1)),
            "steered": state.num_steered,
        }

    def _sampler(self, options: Mapping[str, Any]) -> Sampler:
        choice = choose(options, "sampler")
        assert choice is not None
        if choice not in self._samplers:
            self._samplers[choice] = choice.method.make(choice.options, naive=self._naive)
        return self._samplers[choice]

    def _fill_bitmask(self, states: Sequence[AutoregressiveState]) -> Tensor | None:
        if all(state.constraint is None for state in states):
            return None
        bitmask = torch.full((len(states), self._num_words), -1, dtype=torch.int32)
        for row, state in enumerate(states):
            if state.constraint is not None:
                state.constraint.fill_bitmask(bitmask, row)
        return bitmask

    def _try_commit(
        self, state: AutoregressiveState, row: int, draws: Draws, logits: Tensor
    ) -> Outcome:
        try:
            return self._commit(state, row, draws, logits)
        except ConstraintBroken as broken:
            return Outcome(fault=str(broken))

    def _commit(
        self, state: AutoregressiveState, row: int, draws: Draws, logits: Tensor
    ) -> Outcome:
        if state.remaining == 0:  # max_tokens 0: only the prompt was asked about
            return Outcome(finish="length")
        token, logprobs = draws.token_ids[row], draws.logprobs[row]
        state.log_weight += draws.log_mass[row]
        if state.constraint is not None:
            settled = self._settle(state, token, logprobs, logits[row : row + 1])
            if settled is None:
                return Outcome(finish="stop")
            token, logprobs = settled
        if token in state.stop_token_ids:
            return Outcome(finish="stop", stop_token=token)
        state.remaining -= 1
        state.num_emitted += 1
        state.sampling.append(token)
        return Outcome(
            emit=(token,),
            finish=_finish(state),
            logprobs=(logprobs,) if logprobs is not None else (),
        )

    def _settle(
        self,
        state: AutoregressiveState,
        token: int,
        logprobs: TokenLogprobs | None,
        logits: Tensor,
    ) -> tuple[int, TokenLogprobs | None] | None:
        """Advance the constraint by a token after which the answer can still be completed.

        None: the answer is complete as it stands, and no longer one that was drawn fits.
        """
        constraint = state.constraint
        assert constraint is not None
        banned: set[int] = set()
        while not state.closing and not self._fits(state, token):
            banned.add(token)
            if len(banned) > MAX_REDRAWS:
                state.closing = list(constraint.closing_tokens())
                if not state.closing:
                    return None
            else:
                draws = self._redraw(state, logits, banned)
                token, logprobs = draws.token_ids[0], draws.logprobs[0]
        if state.closing:
            token = state.closing.pop(0)
            _advance(constraint, token)
            logprobs = state.sampler.report(logits, [state.sampling], [token])[0]
        state.num_steered += bool(banned)
        return token, logprobs

    def _fits(self, state: AutoregressiveState, token: int) -> bool:
        """Advance the constraint by the token, unless the answer could not be completed then."""
        constraint = state.constraint
        assert constraint is not None
        _advance(constraint, token)
        if token in state.stop_token_ids or constraint.min_tokens() < state.remaining:
            return True
        constraint.rollback(1)
        return False

    def _redraw(self, state: AutoregressiveState, logits: Tensor, banned: set[int]) -> Draws:
        bitmask = self._fill_bitmask([state])
        return state.sampler.sample(logits, [state.sampling], bitmask, [banned])


def _by_sampler(states: Sequence[AutoregressiveState]) -> list[tuple[Sampler, list[int]]]:
    """Return each sampler in use with its rows."""
    groups: dict[int, tuple[Sampler, list[int]]] = {}
    for row, state in enumerate(states):
        groups.setdefault(id(state.sampler), (state.sampler, []))[1].append(row)
    return list(groups.values())


def _advance(constraint: Constraint, token: int) -> None:
    if not constraint.accept_token(token):
        raise ConstraintBroken(f"the constraint refuses token {token}, which it had allowed")


def _finish(state: AutoregressiveState) -> Finish | None:
    """Return why a sequence ends after the token just emitted, if it does.

    A constrained text whose grammar allows no more tokens ends by itself; one that is complete when
    the budget is spent has reached its end as well.
    """
    constraint = state.constraint
    if constraint is not None and constraint.is_terminated():
        return "stop"
    if state.remaining > 0:
        return None
    return "stop" if constraint is not None and constraint.is_accepting() else "length"
