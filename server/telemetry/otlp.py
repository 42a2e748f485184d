"""Traces through the OpenTelemetry SDK; imported only when an endpoint is set (extra `otel`)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from plait.server.telemetry.tracing import (
    App,
    GenerationSpan,
    Message,
    Receive,
    Scope,
    Send,
    Tracing,
)

CLOSE_S = 3.0  # to send remaining spans when the server ends
# The SDK logs each failed attempt; we log once that sending fails.
_sdk_logger = logging.getLogger("opentelemetry")

log = structlog.stdlib.get_logger(__name__)


def open_otlp(endpoint: str, on_lost: Callable[[float], None]) -> Tracing:
    """Return tracing to an OTLP/HTTP endpoint, the server being the service "plait".

    on_lost: Is called with the number of spans that could not be sent.
    """
    exporter = CountingExporter(OTLPSpanExporter(endpoint=endpoint), on_lost)
    provider = TracerProvider(
        resource=Resource.create({"service.name": "plait"}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OpenTelemetry(provider)


class CountingExporter(SpanExporter):
    """Counts the spans that another exporter can't send; logs when failures begin and end."""

    def __init__(self, exporter: SpanExporter, on_lost: Callable[[float], None]) -> None:
        self._exporter = exporter
        self._on_lost = on_lost
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; called on the SDK's thread."""
        result = self._exporter.export(spans)
        is_lost = result is not SpanExportResult.SUCCESS
        if is_lost:
            self._on_lost(len(spans))
        if is_lost and not self._is_failing:
            log.error("traces can't be sent; they are counted in plait_diagnostics_lost_total")
        elif self._is_failing and not is_lost:
            log.info("traces are sent again")
        self._is_failing = is_lost
        _sdk_logger.setLevel(logging.CRITICAL if is_lost else logging.NOTSET)
        return result

    def shutdown(self) -> None:
        """Shut the wrapped exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the wrapped exporter."""
        return self._exporter.force_flush(timeout_millis)


class OpenTelemetry(Tracing):
    """Traces through the SDK's batch processor, which sends on its own thread."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("plait")

    def wrap(self, app: App) -> App:
        """Return the ASGI application in a server span, which ends with the last byte."""
        propagator = TraceContextTextMapPropagator()

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            carrier = {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in scope["headers"]
                if name in (b"traceparent", b"tracestate")
            }
            with self._tracer.start_as_current_span(
                scope["method"],
                context=propagator.extract(carrier, Context()),
                kind=SpanKind.SERVER,
            ) as span:
                span.set_attribute("http.request.method", scope["method"])

                async def observed(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                    await send(message)

                await app(scope, receive, observed)
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)

        return traced

    def generation(self, generation: GenerationSpan) -> None:
        """Record a finished generation as a child of the current span."""
        zero = time.time_ns() - int(time.monotonic() * 1e9)
        span = self._tracer.start_span(
            f"text_completion {generation.model}",
            attributes=_attributes(generation),
            start_time=zero + int(generation.arrived * 1e9),
        )
        span.end(zero + int(generation.ended * 1e9))

    def close(self) -> None:
        """Send the remaining spans, within CLOSE_S: the collector may be unreachable."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(CLOSE_S)


def _attributes(generation: GenerationSpan) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "plait",
        "gen_ai.request.id": generation.request_id,
        "gen_ai.request.model": generation.model,
        "gen_ai.request.max_tokens": generation.max_tokens,
        "gen_ai.request.choice.count": generation.n,
        "gen_ai.request.temperature": generation.temperature,
        "gen_ai.request.top_p": generation.top_p,
        "gen_ai.usage.input_tokens": generation.input_tokens,
        "gen_ai.usage.output_tokens": generation.output_tokens,
        "gen_ai.response.finish_reasons": tuple(generation.finish_reasons),
        "gen_ai.latency.e2e": generation.ended - generation.arrived,
    }
    if generation.started:
        attributes["gen_ai.latency.time_in_queue"] = generation.started - generation.arrived
    if generation.first_token:
        waited = generation.first_token - generation.arrived
        attributes["gen_ai.latency.time_to_first_token"] = waited
    return attributes
