"""Progress while models load: a status line on a terminal, log lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import NoReturn

import structlog

from plait.server.telemetry.streams import is_terminal

REFRESH_S = 0.2  # between two updates, on a terminal
LOG_S = 5.0  # between two lines, elsewhere

log = structlog.stdlib.get_logger(__name__)


async def show_loading(stage: Callable[[], str], *, log_s: float = LOG_S) -> NoReturn:
    """Show the progress of loading until cancelled.

    Args:
        stage: Returns the progress in words; empty when there is none.
        log_s: Seconds between two lines where standard error is no terminal.
    """
    if is_terminal(sys.stderr):
        await _show_on_terminal(stage)
    while True:
        await asyncio.sleep(log_s)
        if now := stage():
            log.info("loading", stage=now)


async def _show_on_terminal(stage: Callable[[], str]) -> NoReturn:
    from rich.console import Console  # noqa: PLC0415, only a terminal needs it
    from rich.markup import escape  # noqa: PLC0415

    with Console(file=sys.stderr).status("loading") as status:
        while True:
            status.update(escape(stage() or "loading"))
            await asyncio.sleep(REFRESH_S)
