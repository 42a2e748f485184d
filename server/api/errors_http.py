"""Errors as OpenAI writes them: {"error": {message, type, param, code}}, and the headers that go
with them. SDKs retry 408, 409, 429 and 5xx by themselves, after Retry-After seconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from plait.server.api.disconnect import ClientLeft
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import (
    BadRequest,
    DeadlineExceeded,
    Internal,
    MethodNotAllowed,
    NotFound,
    ServerError,
    Unauthorized,
)

_MAX_CHARS = 500  # of a message about a value the client sent
_MAX_PARAM_CHARS = 200
_MAX_REPORTS = 64  # of pydantic's that are looked at
_RENAMED = {
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_completion_tokens",
    "repeat_penalty": "repetition_penalty",
    "grammar": "structured_outputs.grammar",
    "regex": "structured_outputs.regex",
    "ebnf": "structured_outputs.grammar",
}
_FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})
_CODES = {
    "unsupported_parameter": "unsupported_parameter",
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
}


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


def error_response(error: ServerError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the HTTP answer for an error."""
    extra = dict(headers or {})
    if error.retry_after_s is not None:
        extra["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        extra["www-authenticate"] = "Bearer"
    if isinstance(error, DeadlineExceeded):
        extra["x-should-retry"] = "false"  # the time the client gave is over
    return Response(error_body(error), error.status, headers=extra, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of the application an OpenAI error."""
    app.add_exception_handler(ServerError, _on_server_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientLeft, _on_client_left)
    app.add_exception_handler(Exception, _on_fault)


async def _on_server_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServerError)
    return error_response(error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    given = dict(request.query_params) if error.body is None else error.body
    return error_response(invalid_request(error.errors(), given))


async def _on_http(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: no such route, or another method's."""
    assert isinstance(error, HTTPException)
    headers = error.headers
    if error.status_code == 404:
        return error_response(NotFound("There is no such route."), headers)
    if error.status_code == 405:
        return error_response(MethodNotAllowed("The route has no such method."), headers)
    return error_response(BadRequest("The request can't be read."), headers)


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it but the access log


async def _on_fault(request: Request, error: Exception) -> Response:
    """Answer a fault of ours; the server logs the traceback, the client learns nothing of it."""
    request_id = getattr(request.state, "request_id", "")
    return error_response(Internal("The server failed."), {"x-request-id": request_id})


def invalid_request(errors: Sequence[Any], body: Any) -> BadRequest:
    """Return the error for a body that the schema refuses: about its first bad field only.

    A union reports each of its branches: the report that reaches deepest into the field counts,
    and those about the same place are joined.
    """
    located = [(_path(error, body), error) for error in errors[:_MAX_REPORTS]]
    field = located[0][0][:1]
    about = [(path, error) for path, error in located if path[:1] == field]
    where, first = max(about, key=lambda item: len(item[0]))
    messages = dict.fromkeys(_message(e) for path, e in about if path == where)
    param = _clip(_dotted(where), _MAX_PARAM_CHARS)
    text = "; or: ".join(messages)
    return BadRequest(
        _clip(f"{param}: {text}" if param else text, _MAX_CHARS),
        param=param or None,
        code=_CODES.get(first["type"]),
    )


def _path(error: Any, body: Any) -> tuple[str | int, ...]:
    """Return where in the body an error is, without the names of union branches."""
    path: list[str | int] = []
    parts = error["loc"][1:]  # [0] is "body" or "query"
    for place, part in enumerate(parts):
        is_last = place == len(parts) - 1
        if isinstance(part, int) and isinstance(body, list):
            body = body[part] if part < len(body) else None
        elif isinstance(body, dict) and (part in body or (is_last and error["type"] == "missing")):
            body = body.get(part)
        else:
            continue
        path.append(part)
    return tuple(path)


def _dotted(path: Sequence[str | int]) -> str:
    """Return messages[0].content for ("messages", 0, "content")."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _message(error: Any) -> str:
    if error["type"] != "extra_forbidden":
        return str(error["msg"])
    name = str(error["loc"][-1])
    hint = _RENAMED.get(name) or next(iter(difflib.get_close_matches(name[:64], _FIELDS, 1)), None)
    return "There is no such parameter." + (f" Did you mean {hint}?" if hint else "")


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
