"""What is computed from a prompt once, for all sequences of a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Made = TypeVar("Made")


class PromptCacheEntry(Generic[Made]):
    """One prompt's value; it is dropped when the last sequence has taken it."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = prompt
        self.num_waiting = 0  # sequences that have neither taken the value nor left
        self.made: Made | None = None


class PromptCache(Generic[Made]):
    """Computes a value of each prompt once; every sequence gets a copy, the last one the original.

    The sequences of a request start one after the other and share one prompt object, so it is
    enough to remember the latest prompt, by identity.
    """

    def __init__(self, make: Callable[[Sequence[int]], Made], copy: Callable[[Made], Made]) -> None:
        """Args: make computes the value of a prompt; copy returns an independent copy of it."""
        self._make = make
        self._copy = copy
        self._latest: PromptCacheEntry[Made] | None = None

    def join(self, prompt: Sequence[int]) -> PromptCacheEntry[Made]:
        """Return the entry for a sequence that starts."""
        entry = self._latest
        if entry is None or entry.prompt is not prompt:
            entry = self._latest = PromptCacheEntry(prompt)
        entry.num_waiting += 1
        return entry

    def take(self, entry: PromptCacheEntry[Made]) -> Made:
        """Return the value, for one sequence, which then leaves; at most once a sequence."""
        made = self._make(entry.prompt) if entry.made is None else entry.made
        self.leave(entry)
        entry.made = made if entry.num_waiting else None
        return self._copy(made) if entry.num_waiting else made

    def leave(self, entry: PromptCacheEntry[Made]) -> None:
        """Remove one sequence from those that wait for the value."""
        entry.num_waiting -= 1
        if not entry.num_waiting:
            entry.made = None
            if self._latest is entry:
                self._latest = None
