"""Optional OpenTelemetry traces: a server span a request, one `gen_ai` span a generation.

Off (and free) unless an OTLP endpoint is set; needs the extra `otel`. A W3C `traceparent` of the
client becomes the parent. Attributes follow the GenAI semantic conventions; no text is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """What a span tells of one generation; instants in seconds of time.monotonic(), 0: never."""

    model: str
    request_id: str
    max_tokens: int
    n: int
    temperature: float
    top_p: float
    input_tokens: int
    output_tokens: int
    finish_reasons: Sequence[str]
    arrived: float
    started: float
    first_token: float
    ended: float


class Tracing:
    """The interface, and what stands for it when traces are off."""

    def wrap(self, app: App) -> App:
        """Return the ASGI application inside a server span."""
        return app

    def generation(self, generation: Generation) -> None:
        """Record a generation that has ended, as a child of the current span."""

    def close(self) -> None:
        """Send what is still unsent."""


class OpenTelemetry(Tracing):
    """Traces through the SDK's batching processor, whose own thread does the sending."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("plait")

    def wrap(self, app: App) -> App:
        """Return the ASGI application inside a server span; the span ends with the last byte."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

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
                scope["method"], context=propagator.extract(carrier), kind=SpanKind.SERVER
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

    def generation(self, generation: Generation) -> None:
        """Record a generation that has ended, as a child of the current span."""
        zero = time.time_ns() - int(time.monotonic() * 1e9)
        span = self._tracer.start_span(
            f"text_completion {generation.model}",
            attributes=_attributes(generation),
            start_time=zero + int(generation.arrived * 1e9),
        )
        span.end(zero + int(generation.ended * 1e9))

    def close(self) -> None:
        """Send what is still unsent."""
        self._provider.shutdown()


def _attributes(generation: Generation) -> dict[str, AttributeValue]:
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


def open_tracing(endpoint: str) -> Tracing:
    """Return tracing to an OTLP/HTTP endpoint ("http://collector:4318/v1/traces"), or none."""
    if not endpoint:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("traces are off: the extra is missing", install="pip install 'plait[otel]'")
        return Tracing()
    provider = TracerProvider(
        resource=Resource.create({"service.name": "plait"}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return OpenTelemetry(provider)
