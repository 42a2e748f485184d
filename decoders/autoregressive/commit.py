"""Commit drawn tokens of one sequence, one at a time, under its constraint and its budget.

Which token that is, where the constraint or the budget rules out the one that was drawn:
steering.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, ClassVar

from torch import Tensor

from plait.decoders.autoregressive.alternatives import list_alternatives
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.autoregressive.steering import DEAD_END, Steered, steer
from plait.decoders.contract.decoder import (
    Alternative,
    Drawn,
    FinishReason,
    Outcome,
    SequenceError,
)
from plait.decoders.sampling.sampler import Draws


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
    token, logprobs, log_mass = draws.token_ids[row], draws.logprobs[row], draws.log_mass[row]
    own = logits[row : row + 1]
    alternatives, steered = _alternatives(state, own), Steered(token)
    if state.constraint is not None:
        state.num_untruncated += log_mass == -inf
        steered = steer(state, token, own)
        log_mass = log_mass if steered.log_mass is None else steered.log_mass
        log_mass = -inf if steered.finish == DEAD_END else log_mass
        state.log_masses.append(log_mass)
        if steered.token is not None and steered.token != token:
            (logprobs,) = state.sampler.report(own, [state.sampling], [steered.token])
    drawn = _drawn(state, steered, log_mass, own)
    told: dict[str, Any] = {"log_mass": log_mass, "alternatives": alternatives, "draws": drawn}
    if steered.token is None:
        return Outcome(finish=steered.finish, **told)
    token = steered.token
    is_end = token in state.stop_token_ids
    if not (is_end and state.constraint is not None) and state.sampling.is_banned(token):
        raise NoAllowedToken(NO_ALLOWED_TOKEN)
    if is_end:
        return Outcome(finish="stop", stop_token=token, **told)
    state.request.text.append(token)
    state.sampling.observe(token)
    shown = (logprobs,) if logprobs is not None else ()
    return Outcome(emit=(token,), finish=_finish(state), logprobs=shown, **told)


def _drawn(
    state: AutoregressiveState, steered: Steered, log_mass: float, logits: Tensor
) -> tuple[()] | tuple[Drawn]:
    """Return what a search wants to be told of a draw, before the text goes on."""
    if not state.request.search.draws:
        return ()
    token = steered.token
    asked = [*steered.taken_back, *(() if token is None else (token,))]
    found = state.sampler.base_logprobs(logits, state.sampling, asked)
    taken_back = [*zip(steered.taken_back, found, strict=False)]
    last = -inf if token is None else found[-1]
    return (Drawn(token, last, log_mass, taken_back, steered.is_forced),)


def _alternatives(
    state: AutoregressiveState, logits: Tensor
) -> tuple[()] | tuple[Sequence[Alternative]]:
    """Return what a search wants to be told of a draw, before it."""
    if not state.request.search.num_alternatives:
        return ()
    return (list_alternatives(state, logits),)


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
