"""Routes for operators: /health, /ready, /metrics, /version."""

from __future__ import annotations

from importlib.metadata import version
from typing import Literal

import msgspec
from fastapi import APIRouter, Request, Response

from plait.server.api.app_state import pool_of, telemetry_of
from plait.server.api.openapi import response_docs
from plait.server.errors import Unavailable

router = APIRouter(tags=["operations"])


class HealthStatus(msgspec.Struct, frozen=True):
    """The server works; `reason` says what is degraded."""

    status: Literal["ok"] = "ok"
    reason: str = ""


class ServerVersion(msgspec.Struct, frozen=True):
    """The server's version, and for each model which kernels serve its operations."""

    version: str
    kernels: dict[str, dict[str, str]] = {}


@router.get("/health", response_model=None, responses=response_docs(HealthStatus))
async def health(request: Request) -> Response:
    """Answer 200 while the server lives, loading and draining included: restart it otherwise."""
    if not pool_of(request).alive():
        raise Unavailable("The pool has stopped.")
    return _json(HealthStatus())


@router.get("/ready", response_model=None, responses=response_docs(HealthStatus))
async def ready(request: Request) -> Response:
    """Answer 200 while new work is welcome: send it elsewhere otherwise."""
    readiness = pool_of(request).ready()
    if not readiness.ok:
        raise Unavailable(readiness.reason)
    return _json(HealthStatus(reason=readiness.reason))


@router.get("/metrics", response_model=None, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format."""
    text, content_type = telemetry_of(request).metrics.render()
    return Response(text, headers={"content-type": content_type})


@router.get("/version", response_model=None, responses=response_docs(ServerVersion))
async def server_version(request: Request) -> Response:
    """Return the server's version, and the kernels of the models that are ready."""
    infos = [model.info for model in pool_of(request).models()]
    kernels = {info.model: info.kernels for info in infos if info and info.kernels}
    return _json(ServerVersion(version("plait"), kernels))


def _json(value: HealthStatus | ServerVersion) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
