"""Structured logs: one line per event, JSON or console, each line with its request id.

Text from clients is escaped; prompts are logged only if `log_prompts` is set. Loggers of the
standard library (uvicorn's, asyncio's, warnings) use the same handler.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, TextIO

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.processors import JSONRenderer, TimeStamper, format_exc_info
from structlog.stdlib import ProcessorFormatter, add_log_level
from structlog.typing import Processor

from plait.server.settings import TelemetrySettings

PROBES = frozenset({"/health", "/ready", "/metrics"})
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_FOREIGN = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "httpx2")


def configure_logging(settings: TelemetrySettings, stream: TextIO | None = None) -> None:
    """Send the output of structlog and of the standard library to `stream` (default: stderr)."""
    is_json = settings.log_format == "json"
    stamp = TimeStamper(fmt="iso", utc=True) if is_json else TimeStamper(fmt="%H:%M:%S", utc=False)
    before: list[Processor] = [merge_contextvars, add_log_level, stamp, escape_controls]
    structlog.configure(
        processors=[*before, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.log_level]),
        cache_logger_on_first_use=False,
    )
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[ProcessorFormatter.remove_processors_meta, *_renderers(is_json, stream)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(LEVELS[settings.log_level], logging.INFO))
    _silence_library_loggers()
    logging.captureWarnings(True)


class _Handler(logging.StreamHandler[TextIO]):
    """Counts lines that can't be written, where the library would print a traceback for each."""

    on_lost: Callable[[], None] | None = None

    def handleError(self, record: logging.LogRecord) -> None:
        """Count a line that can't be written; other errors are shown, since they are bugs."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError):  # ValueError: it is closed
            super().handleError(record)
        elif self.on_lost is not None:
            self.on_lost()


def count_lost_lines(on_lost: Callable[[], None]) -> None:
    """Call a function for each log line that can't be written."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.on_lost = on_lost


def _renderers(is_json: bool, stream: TextIO | None) -> list[Processor]:
    if is_json:
        return [format_exc_info, JSONRenderer()]
    colors = (stream or sys.stderr).isatty()
    plain = structlog.dev.plain_traceback  # a rich one would print locals: prompts, keys
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]


def _silence_library_loggers() -> None:
    for name in _FOREIGN:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True  # the server writes its own


def escape_controls(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape control characters in all texts, so that no text can forge a log line."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(
                char if char.isprintable() else char.encode("unicode_escape").decode()
                for char in value
            )
    return event


def request_scope(request_id: str) -> AbstractContextManager[None]:
    """Return a context in which each log line of this task carries the request id."""
    return bound_contextvars(request_id=request_id)


def log_access(*, path: str, status: int, **facts: Any) -> None:
    """Write the access line of one response; `path` has no query string.

    Successful health checks and scrapes are logged at level debug.
    """
    is_noise = path in PROBES and status == 200
    (_access.debug if is_noise else _access.info)("request", path=path, status=status, **facts)


def log_prompt(settings: TelemetrySettings, request_id: str, prompt: str) -> None:
    """Log a prompt if the operator has enabled it."""
    if settings.log_prompts:
        _prompts.info("prompt", request_id=request_id, prompt=prompt)


_access = structlog.stdlib.get_logger("plait.access")
_prompts = structlog.stdlib.get_logger("plait.prompts")
