"""The outermost middleware: request ids, the access log and the HTTP metrics."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plait.server.api.request_state import GENERATION, failure_of
from plait.server.telemetry.logs import log_access, request_scope
from plait.server.telemetry.telemetry import Telemetry

CLIENT_LEFT = 499  # the client disconnected before the response had ended
MAX_MESSAGE = 300  # characters of an error message
_CLIENTS_OWN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class AccessMiddleware:
    """Gives every request an id, and logs and counts it when its response has ended.

    A client's own X-Request-Id is returned and logged if it is harmless; it has no other use.
    """

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500  # unless a response starts
        has_ended = False

        async def stamped(message: Message) -> None:
            nonlocal status, has_ended
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)
            has_ended = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            with request_scope(request_id):
                await self._app(scope, receive, stamped)
        finally:
            failure = failure_of(scope)
            if failure is not None:
                status = failure.status
            elif status < 400 and not has_ended:
                status = CLIENT_LEFT
            self._tell(scope, status, time.monotonic() - began)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._telemetry.metrics.observe_http(
            route=route, method=scope["method"], status=status, seconds=seconds
        )
        if self._telemetry.settings.access_log:
            log_access(
                method=scope["method"],
                path=scope["path"],
                status=status,
                outcome=_outcome(status),
                seconds=round(seconds, 4),
                client=(scope.get("client") or ("",))[0],
                request_id=scope["state"]["request_id"],
                **_facts(scope),
            )


def _outcome(status: int) -> str:
    """Return the outcome of a request; the status is the error's where a stream has failed."""
    if status == CLIENT_LEFT:
        return "client_left"
    return "ok" if status < 400 else "refused" if status < 500 else "failed"


def _facts(scope: Scope) -> dict[str, Any]:
    """Return the log fields of the generation and of the error, where there is one."""
    facts: dict[str, Any] = {}
    outputs = scope["state"].get(GENERATION)
    if outputs is not None:
        facts |= outputs.log_fields()
    failure = failure_of(scope)
    if failure is not None:
        named = {"code": failure.code, "param": failure.param}
        facts |= {key: value for key, value in named.items() if value}
        facts["error"] = failure.message[:MAX_MESSAGE]
    return facts


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _CLIENTS_OWN_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
