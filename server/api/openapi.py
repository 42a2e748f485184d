"""The OpenAPI document: FastAPI describes the requests; this adds the responses (msgspec)."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from plait.server.api.errors_http import ErrorBody

_REF = "#/components/schemas/{name}"
_described: dict[str, type] = {}  # by name, filled while the routes are declared


def _content(media_type: str, model: type) -> dict[str, Any]:
    _described[model.__name__] = model
    return {media_type: {"schema": {"$ref": _REF.format(name=model.__name__)}}}


_ERROR = _content("application/json", ErrorBody)
# With all of 4XX named, FastAPI does not add its own 422, which this server never sends.
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request must be changed, or sent later.", "content": _ERROR},
    "5XX": {"description": "The server can't do it now.", "content": _ERROR},
}


def response_docs(model: type, *, stream: type | None = None) -> dict[int | str, dict[str, Any]]:
    """Return a route's `responses`: the response object, the stream's events, and the errors."""
    content = _content("application/json", model)
    if stream is not None:
        _described[stream.__name__] = stream
        content["text/event-stream"] = {
            "schema": {"type": "string", "description": f"Events of {stream.__name__}."}
        }
    return {200: {"description": "Successful Response", "content": content}, **ERRORS}


def document(app: FastAPI, *, has_keys: bool) -> dict[str, Any]:
    """Return the OpenAPI document of the application; built once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, schemas = msgspec.json.schema_components(_described.values(), ref_template=_REF)
        components = made.setdefault("components", {})
        components["schemas"] = {**components.get("schemas", {}), **schemas}
        if has_keys:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"key": []}]
        app.openapi_schema = made
    return app.openapi_schema
