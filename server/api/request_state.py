"""What has become of a request, noted in its ASGI scope for the access log."""

from __future__ import annotations

from starlette.types import Scope

from plait.server.errors import ServerError

GENERATION = "generation"  # key of scope["state"]: an Outputs, if anything was generated
_FAILURE = "failure"


def note_failure(scope: Scope, error: ServerError) -> None:
    """Note the error that was answered, or that has ended a stream."""
    scope.setdefault("state", {})[_FAILURE] = error


def failure_of(scope: Scope) -> ServerError | None:
    """Return the error that was noted."""
    failure: ServerError | None = scope.get("state", {}).get(_FAILURE)
    return failure
