"""Normalize paths and methods: single slashes, no slash at the end, HEAD becomes GET."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile(r"//+")


class PathMiddleware:
    """Finds a route's path in what base URLs make of it, and answers HEAD as GET.

    The HTTP server, which still sees a HEAD, sends no body then.

    Clients join "http://host/v1/" and "/chat/completions". A redirect would not do: it makes some
    of them send a GET, and others leave their API key out. Everything within, keys included, sees
    the route's own path and method; what is around it, the log for one, sees what was sent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        inner = {**scope, "path": route_path(scope["path"]), "method": method}
        try:
            await self._app(inner, receive, send)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]


def route_path(path: str) -> str:
    """Return a path with single slashes, and none at its end."""
    return _SLASHES.sub("/", path).rstrip("/") or "/"
