"""API keys, compared in constant time. Every path needs one, except those named here."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from plait.server.api.errors_http import error_response
from plait.server.errors import Unauthorized

OPEN_PATHS = frozenset({"/health", "/ready"})


class AuthMiddleware:
    """Rejects requests without a valid API key, and stores the tenant of the others.

    scope["state"]["tenant"] becomes a name made of the key's hash; "" where no keys are set.
    """

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str], protect_metrics: bool) -> None:
        self._app = app
        self._digests = [_digest(key.encode("utf-8")) for key in api_keys]
        self._open = OPEN_PATHS if protect_metrics else OPEN_PATHS | {"/metrics"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http" or not self._digests or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        tenant = self._tenant(Headers(scope=scope))
        if tenant is None:
            response = error_response(Unauthorized("Give a valid API key: Authorization: Bearer."))
            await response(scope, receive, send)
            return
        scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)

    def _tenant(self, headers: Headers) -> str | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        candidate = _digest(key.strip().encode("latin-1"))
        # All keys are compared, so that the time reveals nothing about which one matched.
        matches = [hmac.compare_digest(candidate, digest) for digest in self._digests]
        return candidate.hex()[:16] if any(matches) else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def tenant_of(request: Request) -> str:
    """Return the name of the key's owner; "" where no keys are set."""
    tenant: str = getattr(request.state, "tenant", "")
    return tenant
