"""Typed access to the application's state, which create_app sets."""

from __future__ import annotations

from fastapi import Request

from plait.server.api.classify.store import PrototypeStore
from plait.server.api.interfaces import PoolLike
from plait.server.api.requests.tokenization import TokenizationExecutor
from plait.server.settings import ApiSettings
from plait.server.telemetry.telemetry import Telemetry


def pool_of(request: Request) -> PoolLike:
    """Return the application's pool."""
    pool: PoolLike = request.app.state.pool
    return pool


def settings_of(request: Request) -> ApiSettings:
    """Return the application's settings."""
    settings: ApiSettings = request.app.state.settings
    return settings


def prototypes_of(request: Request) -> PrototypeStore:
    """Return the application's prototypes of classes."""
    store: PrototypeStore = request.app.state.prototypes
    return store


def tokenization_of(request: Request) -> TokenizationExecutor:
    """Return the application's executor of tokenization."""
    tokenization: TokenizationExecutor = request.app.state.tokenization
    return tokenization


def telemetry_of(request: Request) -> Telemetry:
    """Return the application's telemetry."""
    telemetry: Telemetry = request.app.state.telemetry
    return telemetry
