"""An optional log of token ids, which `python -m benchmarks.drafters` replays.

It holds prompts and answers as token ids, so it is off by default, and only the owner can read the
file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec
import structlog

log = structlog.stdlib.get_logger(__name__)


class TracedText(msgspec.Struct, frozen=True):
    """One sequence, as a line of JSON."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    namespace: str = ""  # hash of tenant and salt


class TokenTrace:
    """Appends one line per sequence. Several workers of one machine may share the file.

    A text that can't be written is counted and dropped: a diagnostic must not stop the service.
    """

    def __init__(self, path: Path) -> None:
        self.num_lost = 0  # texts
        self._path = path
        self._file: int | None = None
        self._is_failing = False
        self._try_append(b"")

    def write(self, prompt: Sequence[int], output: Sequence[int], namespace: str) -> None:
        """Append one sequence in a single write, so that lines of several workers never mix."""
        text = TracedText(list(prompt), list(output), namespace)
        if not self._try_append(msgspec.json.encode(text) + b"\n"):
            self.num_lost += 1

    def _try_append(self, line: bytes) -> bool:
        """Append a line; return whether that worked, and log when it begins or ceases to work."""
        try:
            if self._file is None:
                self._file = open_trace(self._path)
            _append(self._file, line)
        except OSError as error:
            if not self._is_failing:
                log.error("token trace not written", path=str(self._path), reason=str(error))
            self._is_failing = True
            return False
        if self._is_failing and line:
            log.info("token trace written again", path=str(self._path), texts_lost=self.num_lost)
            self._is_failing = False
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)

    def __enter__(self) -> TokenTrace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_trace(path: Path) -> int:
    """Return a file descriptor that appends; raise OSError if the file can't be written.

    Never blocks: neither for a pipe without a reader, nor for a full one.
    """
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)


def _append(file: int, line: bytes) -> None:
    """Write a whole line or nothing: an incomplete line would make the file unreadable."""
    written = os.write(file, line)
    if written == len(line):
        return
    end = os.lseek(file, 0, os.SEEK_CUR)
    if os.fstat(file).st_size == end:  # otherwise another worker has appended meanwhile
        os.ftruncate(file, end - written)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
