"""A log of token ids, if the operator asks for it: what `plait bench drafters` replays.

It holds what users wrote and what they were answered, as tokens; so it is off by default, and its
file can be read by its owner alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec


class TracedText(msgspec.Struct, frozen=True):
    """One sequence, as a line of JSON."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    namespace: str = ""  # whose it is: tenant and salt, hashed


class TokenTrace:
    """Appends a line a sequence. Workers of one machine may share the file."""

    def __init__(self, path: Path) -> None:
        """Raises: OSError, the file can't be written."""
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, prompt: Sequence[int], output: Sequence[int], namespace: str) -> None:
        """Append one sequence; a single write, so lines of several workers never mix."""
        line = msgspec.json.encode(TracedText(list(prompt), list(output), namespace))
        os.write(self._file, line + b"\n")

    def close(self) -> None:
        """Close the file."""
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
