"""Shortest tokenisations of texts that must still be written (hash-consed suffixes).

A `Tail` is one byte and what follows it; equal tails are the same object, so that the fewest
tokens for a text are computed once for each of its suffixes, however many states share it.
Law: `Tail.tokens` is the length of the shortest segmentation into vocabulary tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plait.kernels.grammar import UNREACHABLE


@dataclass(slots=True, eq=False)
class Tail:
    """A text as a linked list of bytes, with its best first token."""

    byte: int  # -1: the end
    rest: Tail | None
    tokens: int
    token_id: int = -1  # first token of the shortest segmentation
    after: Tail | None = None  # what is left after that token

    @property
    def text(self) -> bytes:
        """The bytes up to the end."""
        found = bytearray()
        at: Tail | None = self
        while at is not None and at.rest is not None:
            found.append(at.byte)
            at = at.rest
        return bytes(found)


class Tails:
    """The suffixes seen so far, hash-consed: equal ones are one object."""

    def __init__(self, token_of: Mapping[bytes, int]) -> None:
        self.end = Tail(-1, None, 0)
        self._token_of = token_of
        self._lengths: dict[int, list[int]] = {}
        for spelling in sorted(token_of, key=len):
            lengths = self._lengths.setdefault(spelling[0], [])
            if len(spelling) not in lengths:
                lengths.append(len(spelling))
        self._known: dict[tuple[int, Tail], Tail] = {}

    def prepend(self, text: bytes, tail: Tail) -> Tail:
        """Return the tail that spells the text and then `tail`."""
        for byte in reversed(text):
            known = self._known.get((byte, tail))
            if known is None:
                known = self._known[byte, tail] = self._segment(byte, tail)
            tail = known
        return tail

    def _segment(self, byte: int, rest: Tail) -> Tail:
        """Choose the best first token of byte + rest; ties go to the longest token."""
        tail = Tail(byte, rest, UNREACHABLE)
        spelled = bytearray()
        at: Tail = tail
        for length in self._lengths.get(byte, ()):
            while len(spelled) < length and at.rest is not None:
                spelled.append(at.byte)
                at = at.rest
            if len(spelled) < length:
                break
            token_id = self._token_of.get(bytes(spelled))
            if token_id is not None and at.tokens + 1 <= tail.tokens:
                tail.tokens, tail.token_id, tail.after = at.tokens + 1, token_id, at
        return tail


def tokens_of(tail: Tail) -> list[int]:
    """Return the token ids of the shortest segmentation."""
    found = []
    while tail.after is not None:
        found.append(tail.token_id)
        tail = tail.after
    return found
