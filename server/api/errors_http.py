"""Errors as OpenAI writes them: {"error": {message, type, param, code}}, and the headers that go
with them. SDKs retry 408, 409, 429 and 5xx by themselves, after Retry-After seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from plait.server.api.disconnect import ClientDisconnected
from plait.server.api.request_state import note_failure
from plait.server.api.routes.not_found import no_such_route
from plait.server.api.validation.errors import invalid_request
from plait.server.errors import (
    BadRequest,
    DeadlineExceeded,
    Internal,
    MethodNotAllowed,
    ServerError,
    Unauthorized,
)


class ErrorFields(msgspec.Struct, frozen=True):
    """OpenAI's four fields, all of them always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that isn't 2xx, and of an error within a stream."""

    error: ErrorFields


def error_body(error: ServerError) -> bytes:
    """Return the JSON of an error."""
    fields = ErrorFields(error.message, error.type, error.param, error.code)
    return msgspec.json.encode(ErrorBody(fields))


class ErrorResponse(Response):
    """The HTTP answer for an error, which the access log gets to know."""

    def __init__(self, error: ServerError, headers: Mapping[str, str]) -> None:
        super().__init__(error_body(error), error.status, headers, "application/json")
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer (ASGI)."""
        note_failure(scope, self._error)
        await super().__call__(scope, receive, send)


def error_response(error: ServerError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the HTTP answer for an error."""
    extra = dict(headers or {})
    if error.retry_after_s is not None:
        extra["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        extra["www-authenticate"] = "Bearer"
    if isinstance(error, DeadlineExceeded):
        extra["x-should-retry"] = "false"  # the time the client gave is over
    return ErrorResponse(error, extra)


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of the application an OpenAI error."""
    app.add_exception_handler(ServerError, _on_server_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnected, _on_client_left)
    app.add_exception_handler(Exception, _on_fault)


async def _on_server_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServerError)
    return error_response(error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid_request(_checked_type(request), error.errors()))


def _checked_type(request: Request) -> Any:
    """Return the type that the request's body, or its query, was checked against."""
    route = request.scope["route"]
    field = route.body_field or route.dependant.query_params[0]
    return field.field_info.annotation


async def _on_http(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: no such route, or another method's."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return error_response(no_such_route(request.url.path, routes_of(request)), headers)
    if error.status_code == 405:
        allowed = _allowed(request) or headers.get("Allow", "")
        headers["Allow"] = allowed.replace("GET", "GET, HEAD")
        text = f"{request.url.path} takes {allowed}, not {request.method}."
        return error_response(MethodNotAllowed(text), headers)
    return error_response(BadRequest("The request can't be read."), headers)


def _allowed(request: Request) -> str:
    """Return the methods of the path, all of them: the router knows those of its first route."""
    path = getattr(request.scope.get("route"), "path_format", "")
    return ", ".join(routes_of(request).get(path, ()))


def routes_of(request: Request) -> dict[str, list[str]]:
    """Return the methods of every path that the server has."""
    paths: dict[str, Any] = request.app.openapi()["paths"]
    pages = {path: ["GET"] for path in ("/", "/docs", "/openapi.json")}
    return {path: [name.upper() for name in methods] for path, methods in paths.items()} | pages


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it but the access log


async def _on_fault(request: Request, error: Exception) -> Response:
    """Answer a fault of ours; the server logs the traceback, the client learns nothing of it."""
    request_id = getattr(request.state, "request_id", "")
    return error_response(Internal("The server failed."), {"x-request-id": request_id})
