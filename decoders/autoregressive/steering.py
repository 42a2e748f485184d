"""Which drawn token may follow one sequence: what its constraint refuses is drawn again.

Two kinds of tokens are taken back: those that the constraint refuses though its bitmask allows them
(decoders/contract/constraint.py, is_exact), and those after which the shortest legal end would no
longer fit into the budget. The next token of the draw's own order follows (Sampler.order), so the
draw is exact for the distribution restricted to what is not taken back. After MAX_REDRAWS tokens
that do not fit, the shortest end known is followed to its end.

Law: if min_tokens() <= max_tokens at the start and the bitmask is exact, the text ends complete.
Where every legal token is refused, the text is at a dead end (`DEAD_END`): it ends there, for a
search that can cut it back and go on elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from math import inf

from torch import Tensor

from plait.decoders.autoregressive.bitmask import next_bitmask
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.contract.constraint import is_exact
from plait.decoders.contract.decoder import FinishReason, SequenceError
from plait.decoders.sampling.estimators import Weighed

MAX_REDRAWS = 8
DEAD_END: FinishReason = "dead_end"


class ConstraintContradiction(SequenceError):
    """A constraint contradicts itself."""


class Verdict(Enum):
    """What becomes of a drawn token."""

    ACCEPTED = auto()  # the constraint has advanced by it
    REFUSED = auto()  # by a check of the constraint
    TOO_LONG = auto()  # the answer could not be completed within its budget


@dataclass(frozen=True, slots=True)
class Steered:
    """What follows a text, after what its constraint and its budget have made of a draw."""

    token: int | None  # by which the constraint has advanced; None: the text ends without one
    finish: FinishReason | None = None  # of a text that ends without one
    taken_back: Sequence[int] = ()  # drawn before it, in this order
    is_forced: bool = False  # not drawn
    log_mass: float | None = None  # of the draw; None: as it was when the token was drawn


def steer(state: AutoregressiveState, token: int, logits: Tensor) -> Steered:
    """Advance the constraint by the token, or by the one to take in its place.

    The text ends with "stop" if it is complete as it stands and no longer one that was drawn fits,
    at a DEAD_END if whatever may follow is refused.

    Args:
        state: of a sequence with a constraint.
        token: as drawn.
        logits: [1, vocab], what it was drawn from.
    Raises:
        ConstraintContradiction: an exact constraint refuses what it had allowed.
    """
    if state.is_closing:
        return _close(state, ())
    if state.sampler.is_weighing:
        bitmask = next_bitmask(state.constraint, logits.shape[1])
        verdicts = set[Verdict]()
        check = partial(_passes, state, verdicts)
        found = state.sampler.weigh(logits, state.sampling, bitmask, check)
        if found is not None:
            return _take(state, *found, is_too_long=Verdict.TOO_LONG in verdicts)
    taken_back: list[int] = []
    num_long = 0
    for candidate in _candidates(state, token, logits):
        verdict = try_token(state, candidate)
        if verdict is Verdict.ACCEPTED:
            state.num_steered += num_long > 0
            state.num_accepted += 1
            return Steered(candidate, taken_back=taken_back)
        taken_back.append(candidate)
        num_long += verdict is Verdict.TOO_LONG
        if num_long > MAX_REDRAWS:
            break
    return _end(state, taken_back, is_too_long=num_long > 0)


def _take(
    state: AutoregressiveState, weighed: Weighed, log_mass: float, *, is_too_long: bool
) -> Steered:
    """Advance the constraint by a token that has been checked already."""
    constraint = state.constraint
    assert constraint is not None
    if weighed.token is None:
        ended = _end(state, weighed.taken_back, is_too_long=is_too_long)
        return replace(ended, log_mass=-inf)
    if not constraint.accept_token(weighed.token):
        raise _contradiction(weighed.token)
    state.num_steered += is_too_long
    state.num_accepted += 1
    return Steered(weighed.token, taken_back=weighed.taken_back, log_mass=log_mass)


def _passes(state: AutoregressiveState, verdicts: set[Verdict], token: int) -> bool:
    """Tell whether a token may follow, and note the verdict; the constraint stays where it is."""
    verdict = try_token(state, token)
    verdicts.add(verdict)
    if verdict is not Verdict.ACCEPTED:
        return False
    assert state.constraint is not None
    state.constraint.rollback(1)
    return True


def _end(state: AutoregressiveState, taken_back: Sequence[int], *, is_too_long: bool) -> Steered:
    """Bring a text to its end behind which no token may follow, or none that is drawn."""
    constraint = state.constraint
    assert constraint is not None
    if not is_too_long:
        return Steered(None, DEAD_END, taken_back)
    state.num_steered += 1
    state.closing = tuple(constraint.closing_tokens())
    state.closing_start = state.request.text.num_output
    return _close(state, taken_back) if state.closing else Steered(None, "stop", taken_back)


def try_token(state: AutoregressiveState, token: int) -> Verdict:
    """Advance the constraint by the token if it may follow; otherwise it stays where it is."""
    constraint = state.constraint
    assert constraint is not None
    state.num_checks += 1
    if not constraint.accept_token(token):
        if is_exact(constraint):
            raise _contradiction(token)
        state.num_refused += 1
        return Verdict.REFUSED
    if token in state.stop_token_ids or constraint.min_tokens() < state.remaining:
        return Verdict.ACCEPTED
    constraint.rollback(1)
    return Verdict.TOO_LONG


def _candidates(state: AutoregressiveState, token: int, logits: Tensor) -> Iterator[int]:
    """Yield the token, then what is drawn if those before it are banned."""
    yield token
    bitmask = next_bitmask(state.constraint, logits.shape[1])
    for each in state.sampler.order(logits, state.sampling, bitmask):
        if each != token:
            yield each


def _close(state: AutoregressiveState, taken_back: Sequence[int]) -> Steered:
    """Advance the constraint by the next token of the shortest end known, which is followed."""
    constraint = state.constraint
    assert constraint is not None
    token = state.next_closing()
    if not constraint.accept_token(token):
        if is_exact(constraint):
            raise _contradiction(token)
        state.num_refused += 1
        return Steered(None, DEAD_END, taken_back)
    state.num_accepted += 1
    return Steered(token, taken_back=taken_back, is_forced=True)


def _contradiction(token: int) -> ConstraintContradiction:
    return ConstraintContradiction(f"the constraint refuses token {token}, which it had allowed")
