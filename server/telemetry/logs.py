"""Structured logs: one line an event, JSON or console, every line with its request id.

Nothing that a client sent reaches a log unescaped, and prompts and answers reach it only when
`log_prompts` says so. stdlib loggers (uvicorn's, asyncio's, warnings) go through the same pipe.
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
_FOREIGN = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")


def configure_logging(settings: TelemetrySettings, stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's loggers to `stream` (default: stderr)."""
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
    _quieten_foreign_loggers()
    logging.captureWarnings(True)


class _Handler(logging.StreamHandler[TextIO]):
    """Counts the lines that can't be written; the library would add a traceback for each."""

    lost: Callable[[], None] | None = None

    def handleError(self, record: logging.LogRecord) -> None:
        """Count a line that the stream does not take; what else goes wrong is a fault to show."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError):  # ValueError: it is closed
            super().handleError(record)
        elif self.lost is not None:
            self.lost()


def count_lost_lines(lost: Callable[[], None]) -> None:
    """Have a function called for each line of the log that can't be written."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.lost = lost


def _renderers(is_json: bool, stream: TextIO | None) -> list[Processor]:
    if is_json:
        return [format_exc_info, JSONRenderer()]
    colors = (stream or sys.stderr).isatty()
    plain = structlog.dev.plain_traceback  # a rich one would print locals: prompts, keys
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]


def _quieten_foreign_loggers() -> None:
    for name in _FOREIGN:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True  # the server writes its own


def escape_controls(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Write control characters of all texts as escapes, so that no text can forge a line."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(
                char if char.isprintable() else char.encode("unicode_escape").decode()
                for char in value
            )
    return event


def request_scope(request_id: str) -> AbstractContextManager[None]:
    """Return a context in which every line of this task carries the request id."""
    return bound_contextvars(request_id=request_id)


def log_access(*, path: str, status: int, **facts: Any) -> None:
    """Write the access line of one answer; `path` without the query string.

    Answers to probes that find all well are of interest to nobody: they are debug lines.
    """
    is_noise = path in PROBES and status == 200
    (_access.debug if is_noise else _access.info)("request", path=path, status=status, **facts)


def log_prompt(settings: TelemetrySettings, request_id: str, prompt: str) -> None:
    """Write a prompt if the operator has asked for it, else nothing."""
    if settings.log_prompts:
        _prompts.info("prompt", request_id=request_id, prompt=prompt)


_access = structlog.stdlib.get_logger("plait.access")
_prompts = structlog.stdlib.get_logger("plait.prompts")
