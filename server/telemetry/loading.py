"""What the operator sees while models load: a line that moves, or where nobody looks a log line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import NoReturn

import structlog

from plait.server.telemetry.streams import is_terminal

MOVE_S = 0.2  # between two looks, on a terminal
SAY_S = 5.0  # between two lines, elsewhere

log = structlog.stdlib.get_logger(__name__)


async def show_loading(stage: Callable[[], str], *, say_s: float = SAY_S) -> NoReturn:
    """Show how far loading is until cancelled.

    Args:
        stage: Returns it in words; empty when there is nothing to tell.
        say_s: Seconds between two lines where standard error is no terminal.
    """
    if is_terminal(sys.stderr):
        await _move(stage)
    while True:
        await asyncio.sleep(say_s)
        if now := stage():
            log.info("loading", stage=now)


async def _move(stage: Callable[[], str]) -> NoReturn:
    from rich.console import Console  # noqa: PLC0415, only a terminal needs it
    from rich.markup import escape  # noqa: PLC0415

    with Console(file=sys.stderr).status("loading") as status:
        while True:
            status.update(escape(stage() or "loading"))
            await asyncio.sleep(MOVE_S)
