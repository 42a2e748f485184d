"""Incremental detokenization."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Decodes one sequence's tokens incrementally.

    A character is returned when its last byte has arrived; at most three bytes are withheld. Law:
    all returned texts, joined, equal decoding all bytes at once with errors="replace". Special
    tokens have no text. Cost: O(bytes of the token), independent of the text before it.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes  # ids beyond it are padding of the model's output
        self._decoder = _UTF8(errors="replace")

    def push(self, token_id: int) -> str:
        """Return the characters that this token completes."""
        known = token_id < len(self._token_bytes)
        return self._decoder.decode(self._token_bytes[token_id] if known else b"")

    @property
    def has_partial_character(self) -> bool:
        """Whether bytes of an incomplete character are withheld."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """Return U+FFFD if the text ends within a character, else nothing."""
        return self._decoder.decode(b"", final=True)
