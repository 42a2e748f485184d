"""Commit drawn tokens of one sequence, one at a time, under its constraint and its budget.

It keeps the promise that a constrained answer ends within its budget: a drawn token after which the
shortest legal end would no longer fit is taken back, banned, and drawn again (so the draw follows
the distribution restricted to what can still be finished); after MAX_REDRAWS the shortest end known
is followed to its end. Law: if min_tokens() <= max_tokens at the start, the text ends complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from plait.decoders.autoregressive.alternatives import list_alternatives
from plait.decoders.autoregressive.bitmask import next_bitmask
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import (
    Alternative,
    FinishReason,
    Outcome,
    SequenceError,
    TokenLogprobs,
)
from plait.decoders.sampling.sampler import Draws

MAX_REDRAWS = 8


class ConstraintContradiction(SequenceError):
    """A constraint contradicts itself."""


class NoAllowedToken(SequenceError):
    """The request's own fields leave no token to go on with: it must be changed."""

    is_client_error: ClassVar[bool] = True


NO_ALLOWED_TOKEN = (
    "allowed_token_ids, bad_words and min_tokens, and the form of the answer if one is asked for, "
    "together leave no token that may follow."
)


def commit_token(state: AutoregressiveState, row: int, draws: Draws, logits: Tensor) -> Outcome:
    """Make the token drawn at a row the sequence's next one.

    Raises:
        ConstraintContradiction: the constraint refuses what it had allowed.
        NoAllowedToken: the request bans what must follow.
    """
    if state.remaining == 0:  # max_tokens 0: only the prompt was asked about
        return Outcome(finish="length")
    token, logprobs = draws.token_ids[row], draws.logprobs[row]
    log_mass, alternatives = draws.log_mass[row], _alternatives(state, logits[row : row + 1])
    if state.constraint is not None:
        state.log_masses.append(log_mass)
        constrained = _constrain_token(state, token, logprobs, logits[row : row + 1])
        if constrained is None:
            return Outcome(finish="stop", log_mass=log_mass, alternatives=alternatives)
        token, logprobs = constrained
    is_end = token in state.stop_token_ids
    if not (is_end and state.constraint is not None) and state.sampling.is_banned(token):
        raise NoAllowedToken(NO_ALLOWED_TOKEN)
    if is_end:
        return Outcome(
            finish="stop", stop_token=token, log_mass=log_mass, alternatives=alternatives
        )
    state.request.text.append(token)
    state.sampling.observe(token)
    return Outcome(
        emit=(token,),
        finish=_finish(state),
        logprobs=(logprobs,) if logprobs is not None else (),
        log_mass=log_mass,
        alternatives=alternatives,
    )


def _alternatives(
    state: AutoregressiveState, logits: Tensor
) -> tuple[()] | tuple[Sequence[Alternative]]:
    """Return what a search wants to be told of a draw, before it."""
    if not state.request.search.num_alternatives:
        return ()
    return (list_alternatives(state, logits),)


def _constrain_token(
    state: AutoregressiveState, token: int, logprobs: TokenLogprobs | None, logits: Tensor
) -> tuple[int, TokenLogprobs | None] | None:
    """Advance the constraint by a token after which the answer can still be completed.

    None: the answer is complete as it stands, and no longer one that was drawn fits.
    """
    constraint = state.constraint
    assert constraint is not None
    banned: set[int] = set()
    while not state.is_closing and not _can_finish_after(state, token):
        is_stuck = token in banned  # nothing else is left to be drawn
        banned.add(token)
        if is_stuck or len(banned) > MAX_REDRAWS:
            state.closing = tuple(constraint.closing_tokens())
            state.closing_start = state.request.text.num_output
            if not state.closing:
                return None
        else:
            draws = _redraw(state, constraint, logits, banned)
            token, logprobs = draws.token_ids[0], draws.logprobs[0]
    if state.is_closing:
        token = state.next_closing()
        _advance(constraint, token)
        logprobs = state.sampler.report(logits, [state.sampling], [token])[0]
    state.num_accepted += 1
    state.num_steered += bool(banned)
    return token, logprobs


def _can_finish_after(state: AutoregressiveState, token: int) -> bool:
    """Advance the constraint by the token, unless the answer could not be completed then."""
    constraint = state.constraint
    assert constraint is not None
    _advance(constraint, token)
    if token in state.stop_token_ids or constraint.min_tokens() < state.remaining:
        return True
    constraint.rollback(1)
    return False


def _redraw(
    state: AutoregressiveState, constraint: Constraint, logits: Tensor, banned: set[int]
) -> Draws:
    bitmask = next_bitmask(constraint, logits.shape[1])
    return state.sampler.sample(logits, [state.sampling], bitmask, [banned])


def _advance(constraint: Constraint, token: int) -> None:
    if not constraint.accept_token(token):
        raise ConstraintContradiction(f"the constraint refuses token {token}, which it had allowed")


def _finish(state: AutoregressiveState) -> FinishReason | None:
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
