"""The step's boundary: a fault of one sequence ends its request, and nobody else's (law 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from plait.decoders.contract.decoder import Outcome, SequenceError

Result = TypeVar("Result")
FAILED = "The engine failed while it ran this request."


def attempt(work: Callable[[], Result]) -> Result | Exception:
    """Return what the work returns, or what it raises.

    Whoever calls this has sequences that go on without this one, and reports the exception.
    """
    try:
        return work()
    except Exception as fault:  # noqa: BLE001 - see above
        return fault


def faulty(cause: Exception) -> Outcome:
    """Return the outcome of a sequence whose step has raised."""
    if isinstance(cause, SequenceError):
        return Outcome(fault=str(cause), is_client_error=cause.is_client_error)
    return Outcome(fault=FAILED, cause=cause)
