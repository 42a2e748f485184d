"""Metrics and traces of the server in one object."""

from __future__ import annotations

from dataclasses import dataclass, field

from plait.server.settings import TelemetrySettings
from plait.server.telemetry.logs import count_lost_lines
from plait.server.telemetry.metrics import Metrics
from plait.server.telemetry.tracing import Tracing, open_tracing


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Metrics and traces of one server; logs go through structlog (see logs.py)."""

    settings: TelemetrySettings = field(default_factory=TelemetrySettings)
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = field(default_factory=Tracing)


def build_telemetry(settings: TelemetrySettings) -> Telemetry:
    """Return the telemetry of a server; traces are off without an endpoint."""
    metrics = Metrics()
    count_lost_lines(metrics.diagnostics_lost.labels("log").inc)
    lost_spans = metrics.diagnostics_lost.labels("spans").inc
    return Telemetry(settings, metrics, open_tracing(settings.otlp_endpoint, lost_spans))
