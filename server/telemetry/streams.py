"""Standard output and error: usable even if they were closed, and never a reason to fail."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import structlog

log = structlog.stdlib.get_logger(__name__)


def open_standard_streams() -> None:
    """Replace standard streams that were closed before the start by the null device.

    Otherwise the first opened files would get their descriptors, and a library's output to standard
    error would be written into one of them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    # A closed stream is None, although the type annotations exclude it.
    sys.stdout = sys.stdout or _null()
    sys.stderr = sys.stderr or _null()


def write_stdout(text: str) -> None:
    """Write to standard output; if that fails, log a warning once and discard later output."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        log.warning("standard output can't be written", reason=str(error))
        sys.stdout = _null()


def _null() -> TextIO:
    return open(os.devnull, "w")


def is_terminal(stream: TextIO) -> bool:
    """Return whether the stream is an open terminal."""
    return not stream.closed and stream.isatty()
