"""HTML pages: an overview and the API reference. They load nothing from other hosts."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from jinja2 import DictLoader, Environment, StrictUndefined

from plait.server.api.app_state import pool_of
from plait.server.api.reference import objects, operations

router = APIRouter(include_in_schema=False)
HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
PAGES = ("index.html", "reference.html", "style.html")


class ServerIndex(msgspec.Struct, frozen=True):
    """The overview as JSON."""

    name: str
    version: str
    description: str
    models: list[str]
    docs: str = "/docs"
    openapi: str = "/openapi.json"


@router.get("/")
async def index(request: Request) -> Response:
    """Say what this is: as a page to browsers, as JSON to others."""
    models = [served.name for served in pool_of(request).models()]
    about = ServerIndex(
        "plait", version("plait"), "An OpenAI-compatible LLM inference server.", models
    )
    if "text/html" not in request.headers.get("accept", ""):
        return Response(msgspec.json.encode(about), media_type="application/json")
    return _page("index.html", about=about, base_url=str(request.base_url).rstrip("/"))


@router.get("/docs")
async def reference(request: Request) -> Response:
    """Return the reference: every route and field of the OpenAPI document."""
    document = request.app.openapi()
    routes = operations(document)
    return _page(
        "reference.html",
        version=version("plait"),
        operations=routes,
        objects=objects(document, but={route.body for route in routes}),
    )


def _page(name: str, **values: Any) -> Response:
    text = _templates().get_template(name).render(values)
    return Response(text, headers=HEADERS, media_type="text/html")


@cache
def _templates() -> Environment:
    folder = files("plait.server.api").joinpath("pages")
    sources = {name: folder.joinpath(name).read_text("utf-8") for name in PAGES}
    return Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
