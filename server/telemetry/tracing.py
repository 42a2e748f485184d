"""Optional OpenTelemetry traces: a server span a request, one `gen_ai` span a generation.

Off (and free) unless an OTLP endpoint is set; needs the extra `otel`. A W3C `traceparent` of the
client becomes the parent. Attributes follow the GenAI semantic conventions; no text is recorded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import structlog

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GenerationSpan:
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

    def generation(self, generation: GenerationSpan) -> None:
        """Record a generation that has ended, as a child of the current span."""

    def close(self) -> None:
        """Send what is still unsent."""


def open_tracing(endpoint: str, lost: Callable[[float], None] = lambda count: None) -> Tracing:
    """Return tracing to an OTLP/HTTP endpoint ("http://collector:4318/v1/traces"), or none.

    lost: is told how many spans could not be sent.
    """
    if not endpoint:
        return Tracing()
    if find_spec("opentelemetry") is None:
        log.warning("traces are off: the extra is missing", install="pip install 'plait[otel]'")
        return Tracing()
    from plait.server.telemetry.otlp import open_otlp  # noqa: PLC0415  an optional extra

    return open_otlp(endpoint, lost)
