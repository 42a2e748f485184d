"""Standard output and standard error: there even if they were closed, and no reason to end."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import structlog

log = structlog.stdlib.get_logger(__name__)


def open_standard_streams() -> None:
    """Put the null device in place of standard streams that were closed before the start.

    Otherwise the first files and sockets would get their numbers, and what a library writes to
    "standard error" would go into one of them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    # A closed one is None, whatever the library's types say.
    sys.stdout = sys.stdout or _null()
    sys.stderr = sys.stderr or _null()


def say(text: str) -> None:
    """Write to standard output; one that can't be written is told to the log, and left alone."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        log.warning("standard output can't be written", reason=str(error))
        sys.stdout = _null()


def _null() -> TextIO:
    return open(os.devnull, "w")


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a person looks at what is written."""
    return not stream.closed and stream.isatty()
