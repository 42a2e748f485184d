"""Traces through the OpenTelemetry SDK; imported only when an endpoint is set (extra `otel`)."""

from __future__ import annotations

import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from plait.server.telemetry.tracing import App, Generation, Message, Receive, Scope, Send, Tracing


def open_otlp(endpoint: str) -> Tracing:
    """Return tracing to an OTLP/HTTP endpoint, the server being the service "plait"."""
    provider = TracerProvider(
        resource=Resource.create({"service.name": "plait"}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return OpenTelemetry(provider)


class OpenTelemetry(Tracing):
    """Traces through the SDK's batching processor, whose own thread does the sending."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("plait")

    def wrap(self, app: App) -> App:
        """Return the ASGI application inside a server span; the span ends with the last byte."""
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
