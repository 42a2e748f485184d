"""Paths and methods as routes have them: one slash between names, none behind them, no HEAD."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SLASHES = re.compile(r"//+")


class PathMiddleware:
    """Finds a route's path in what base URLs make of it, and answers HEAD as GET without a body.

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
        is_head = scope["method"] == "HEAD"
        inner = {
            **scope,
            "path": route_path(scope["path"]),
            "method": "GET" if is_head else scope["method"],
        }
        try:
            await self._app(inner, receive, _without_body(send) if is_head else send)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]


def route_path(path: str) -> str:
    """Return a path with single slashes, and none at its end."""
    return _SLASHES.sub("/", path).rstrip("/") or "/"


def _without_body(send: Send) -> Send:
    """Let an answer's head pass, and of its body only the end."""

    async def pass_head(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
        elif not message.get("more_body", False):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return pass_head
