"""What the sequences of one request make of their common prompt once, and then each for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Made = TypeVar("Made")


class PromptCacheEntry(Generic[Made]):
    """Something made of a prompt, until the last sequence has taken it."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = prompt
        self.num_waiting = 0
        self.made: Made | None = None


class PromptCache(Generic[Made]):
    """Gives every sequence of a prompt a copy of what is made of the prompt, the last one itself.

    The sequences of a request start one after the other, with the same prompt object.
    """

    def __init__(self, make: Callable[[Sequence[int]], Made], copy: Callable[[Made], Made]) -> None:
        self._make = make
        self._copy = copy
        self._latest: PromptCacheEntry[Made] | None = None

    def join(self, prompt: Sequence[int]) -> PromptCacheEntry[Made]:
        """Return the share of a sequence that starts."""
        entry = self._latest
        if entry is None or entry.prompt is not prompt:
            entry = self._latest = PromptCacheEntry(prompt)
        entry.num_waiting += 1
        return entry

    def take(self, entry: PromptCacheEntry[Made]) -> Made:
        """Return what is made of the prompt, for the one sequence that asks; at most once each."""
        made = self._make(entry.prompt) if entry.made is None else entry.made
        self.leave(entry)
        entry.made = made if entry.num_waiting else None
        return self._copy(made) if entry.num_waiting else made

    def leave(self, entry: PromptCacheEntry[Made]) -> None:
        """Give up a sequence's share."""
        entry.num_waiting -= 1
        if not entry.num_waiting:
            entry.made = None
            if self._latest is entry:
                self._latest = None
