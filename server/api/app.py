"""The ASGI application: routes and middleware."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from plait.server.api.access_log import AccessMiddleware
from plait.server.api.auth import AuthMiddleware
from plait.server.api.classify.store import PrototypeStore
from plait.server.api.errors_http import install_error_handlers
from plait.server.api.interfaces import PoolLike
from plait.server.api.openapi import document
from plait.server.api.paths import PathMiddleware
from plait.server.api.requests.tokenization import TokenizationExecutor
from plait.server.api.routes import (
    classify,
    draft_store,
    generate,
    models,
    operations,
    pages,
    tokens,
)
from plait.server.settings import ApiSettings
from plait.server.telemetry.telemetry import Telemetry


def create_app(settings: ApiSettings, pool: PoolLike, telemetry: Telemetry) -> FastAPI:
    """Return the ASGI application of a pool; the caller starts and closes the pool."""
    app = FastAPI(
        title="plait",
        version=version("plait"),
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
        middleware=_middleware(settings, telemetry),
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.pool = pool
    app.state.tokenization = TokenizationExecutor()
    app.state.telemetry = telemetry
    app.state.prototypes = PrototypeStore()
    for routes in (generate, classify, models, tokens, draft_store, operations, pages):
        app.include_router(routes.router)
    install_error_handlers(app)
    app.openapi = partial(document, app, has_keys=bool(settings.api_keys))  # type: ignore[method-assign]
    return app


def _middleware(settings: ApiSettings, telemetry: Telemetry) -> list[Middleware]:
    """Return the middleware, outermost first. CORS is before auth: preflights have no key."""
    middleware = [
        Middleware(AccessMiddleware, telemetry=telemetry),
        Middleware(PathMiddleware),
        Middleware(telemetry.tracing.wrap),
    ]
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "x-plait-seed", "x-plait-warning", "retry-after"],
            )
        )
    auth = Middleware(
        AuthMiddleware, api_keys=settings.api_keys, protect_metrics=settings.protect_metrics
    )
    return [*middleware, auth]
