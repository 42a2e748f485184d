"""State of one request in its ASGI scope, for the access log: its generation, and its error."""

from __future__ import annotations

from starlette.types import Scope

from plait.server.errors import ServerError

GENERATION = "generation"  # key of scope["state"]: a GenerationOutput
_FAILURE = "failure"


def note_failure(scope: Scope, error: ServerError) -> None:
    """Store the error that was returned, or that ended a stream."""
    scope.setdefault("state", {})[_FAILURE] = error


def failure_of(scope: Scope) -> ServerError | None:
    """Return the stored error, if there is one."""
    failure: ServerError | None = scope.get("state", {}).get(_FAILURE)
    return failure
