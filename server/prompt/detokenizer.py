"""Token ids to text, piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Decodes one sequence's tokens as they come.

    A character is released once its last byte is there, and never split; at most three bytes
    are held. Law: the pieces and the last one of `finish`, joined, are what decoding all bytes
    together gives, with errors="replace". Special tokens add nothing.
    Cost: O(bytes of the token), whatever came before.
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
        """Whether bytes are held that may become a character; they will make at least one."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """Return what an unfinished character at the end comes to: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)
