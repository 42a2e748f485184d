"""What the sequences of one request make of their common prompt once, and then each for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Share(Generic[Made]):
    """Something made of a prompt, until the last sequence has taken it."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = prompt
        self.num_waiting = 0
        self.made: Made | None = None


class Siblings(Generic[Made]):
    """Gives every sequence of a prompt a copy of what is made of the prompt, the last one itself.

    The sequences of a request start one after the other, with the same prompt object.
    """

    def __init__(self, make: Callable[[Sequence[int]], Made], copy: Callable[[Made], Made]) -> None:
        self._make = make
        self._copy = copy
        self._latest: Share[Made] | None = None

    def join(self, prompt: Sequence[int]) -> Share[Made]:
        """Return the share of a sequence that starts."""
        share = self._latest
        if share is None or share.prompt is not prompt:
            share = self._latest = Share(prompt)
        share.num_waiting += 1
        return share

    def take(self, share: Share[Made]) -> Made:
        """Return what is made of the prompt, for the one sequence that asks; at most once each."""
        made = self._make(share.prompt) if share.made is None else share.made
        self.leave(share)
        share.made = made if share.num_waiting else None
        return self._copy(made) if share.num_waiting else made

    def leave(self, share: Share[Made]) -> None:
        """Give up a sequence's share."""
        share.num_waiting -= 1
        if not share.num_waiting:
            share.made = None
            if self._latest is share:
                self._latest = None
