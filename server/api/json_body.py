"""Request bodies: limited in size, JSON by content type, and parsed strictly.

A body that two parsers may read differently is rejected: duplicate keys, NaN and Infinity, numbers
beyond a double, unpaired surrogates, nesting beyond the limit, bytes that aren't UTF-8.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from plait.server.api.disconnect import ClientDisconnected
from plait.server.errors import BadRequest, PayloadTooLarge, RequestTimeout, UnsupportedMediaType
from plait.server.settings import ApiSettings, LimitSettings

# A string literal, or the rest of the text from an unclosed quote; possessive, hence linear.
_STRING = re.compile(rb'"(?>[^"\\]+|\\.)*+"?', re.DOTALL)
_NOT_MARKS = bytes(set(range(256)) - set(b"[]{},"))
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(body: bytes, limits: LimitSettings) -> Any:
    """Return the value of a JSON text (RFC 8259, no duplicate names, finite numbers).

    Raises:
        BadRequest: the text isn't such JSON; the message says where, and never quotes the text.
    Cost: linear in the body for each level of nesting, at C speed. It blocks the event loop, so the
    number of values is limited as well.
    """
    _check_size(body, limits)
    try:
        value = _decoder(limits.max_json_names).decode(body.decode("utf-8"))
        if _SURROGATE_ESCAPE.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise _bad_json("the text is not valid UTF-8, or escapes an unpaired surrogate") from None
    except json.JSONDecodeError as error:
        raise _bad_json(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except ValueError as error:
        raise _bad_json(str(error)) from None
    return value


def _check_size(body: bytes, limits: LimitSettings) -> None:
    """Check the number of values and the depth by the commas and brackets outside of strings.

    Each round deletes the innermost pairs of brackets; brackets that are left are nested too deep.
    """
    marks = _STRING.sub(b"", body).translate(_TO_SQUARE, _NOT_MARKS)
    if len(marks) > limits.max_json_values:
        raise _bad_json(f"it has more than about {limits.max_json_values} values")
    brackets = marks.translate(None, b",")
    for _ in range(limits.max_json_depth):
        size = len(brackets)
        brackets = brackets.replace(b"[]", b"")
        if len(brackets) == size:
            break
    if brackets:
        raise _bad_json(
            f"it is nested deeper than {limits.max_json_depth} levels, or brackets don't match"
        )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _integer(text: str) -> int:
    # The conversion of long numerals takes quadratic time.
    if len(text) > 40:
        raise ValueError("a number is too large")
    return int(text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@cache
def _decoder(max_names: int) -> json.JSONDecoder:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > max_names:
            raise ValueError(f"an object has more than {max_names} names")
        value = dict(pairs)
        if len(value) != len(pairs):
            twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
            raise ValueError(f"an object has the name {twice[:64]!r} twice")
        return value

    return json.JSONDecoder(
        object_pairs_hook=unique,
        parse_float=_finite,
        parse_int=_integer,
        parse_constant=_no_constant,
    )


def _bad_json(reason: str) -> BadRequest:
    return BadRequest(f"The body is not valid JSON: {reason}.", code="invalid_json")


class _JsonRequest(Request):
    """A request whose body has been read and parsed before FastAPI asks for it."""

    raw: bytes = b""
    parsed: Any = None

    async def body(self) -> bytes:
        return self.raw

    async def json(self) -> Any:
        return self.parsed


class JsonRoute(APIRoute):
    """A route that reads bodies by the rules of this module, within the limits of the settings."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, called with a request whose body is read and parsed."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def strict(request: Request) -> Response:
            settings: ApiSettings = request.app.state.settings
            _check_content_type(request)
            known = _JsonRequest(request.scope, request.receive)
            known.raw = await _read_body(request, settings)
            known.parsed = parse_json(known.raw, settings.limits)
            return await handler(known)

        return strict


def _check_content_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("Send the body as JSON, with Content-Type: application/json.")


async def _read_body(request: Request, settings: ApiSettings) -> bytes:
    """Return the whole body; raise an error at the size limit and at the read timeout."""
    limit = settings.limits.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(settings.read_timeout_s):
            return await _collect(request, limit)
    except TimeoutError:
        raise RequestTimeout("The body did not arrive in time.") from None
    except ClientDisconnect:
        raise ClientDisconnected from None


async def _collect(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than the limit of {limit} bytes.")
