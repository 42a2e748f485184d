"""Optional OpenTelemetry traces: one server span per request, one `gen_ai` span per generation.

Off, at no cost, unless an OTLP endpoint is set; needs the extra `otel`. The client's W3C
`traceparent` becomes the parent. Attributes follow the GenAI semantic conventions; no text is
recorded.
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
    """The data of a generation's span; instants in seconds of time.monotonic(), 0: never."""

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
    """The interface, and the implementation that does nothing when traces are off."""

    def wrap(self, app: App) -> App:
        """Return the ASGI application in a server span."""
        return app

    def generation(self, generation: GenerationSpan) -> None:
        """Record a finished generation as a child of the current span."""

    def close(self) -> None:
        """Send the remaining spans."""


def open_tracing(endpoint: str, on_lost: Callable[[float], None] = lambda count: None) -> Tracing:
    """Return tracing to an OTLP/HTTP endpoint ("http://collector:4318/v1/traces"), or none.

    on_lost: Is called with the number of spans that could not be sent.
    """
    if not endpoint:
        return Tracing()
    if find_spec("opentelemetry") is None:
        log.warning("traces are off: the extra is missing", install="pip install 'plait[otel]'")
        return Tracing()
    from plait.server.telemetry.otlp import open_otlp  # noqa: PLC0415  an optional extra

    return open_otlp(endpoint, on_lost)
