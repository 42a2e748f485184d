"""Reference of lexemes: DFAs over bytes with bounds on the number of characters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from plait.kernels.grammar import DEAD, DfaParts


class LexemeAutomaton:
    """The texts of an automaton with least..most characters (most -1: without end).

    States are those of the automaton, every one of which can reach an accepting one.
    """

    def __init__(self, parts: DfaParts, least: int, most: int) -> None:
        classes, num_classes, following, accepts, boundaries = parts
        self.least, self.most = least, most
        self._accepts, self._boundaries = accepts, boundaries
        table = np.frombuffer(following, np.int32).reshape(-1, num_classes)
        self._next: list[list[int]] = table[:, list(classes)].tolist()
        self._missing = cache(self._count_missing)

    def step(self, at: tuple[int, int], byte: int) -> tuple[int, int] | None:
        """Return (state, count) after a byte; None if no text continues with it."""
        state, count = self._move(at, byte)
        return (state, count) if state != DEAD and self.missing(state, count) >= 0 else None

    def ends(self, at: tuple[int, int]) -> bool:
        """Return whether a text may end here."""
        state, count = at
        fits = count >= self.least and (self.most < 0 or count <= self.most)
        return bool(self._accepts[state]) and fits

    def missing(self, state: int, count: int) -> int:
        """Return the number of characters that are missing at least; -1: no text fits."""
        found = self._missing(state, max(self.least - count, 0))
        return -1 if found < 0 or 0 <= self.most < count + found else found

    def _move(self, at: tuple[int, int], byte: int) -> tuple[int, int]:
        state = self._next[at[0]][byte]
        if state == DEAD:
            return DEAD, 0
        counted = self.least > 0 or self.most >= 0
        count = at[1] + self._boundaries[state] if counted else 0
        return state, min(count, self.least) if self.most < 0 else count

    def _count_missing(self, state: int, least: int) -> int:
        """Search breadth first over (state, characters), those beyond `least` told apart no more.

        A path of more than states x (least + 1) steps repeats one of them, so the search ends.
        """
        layer, seen = {(state, 0)}, {(state, 0)}
        depth = 0
        while layer:
            if any(self._accepts[s] and n >= least for s, n in layer):
                return depth
            found = {(t, min(n + 1, least)) for s, n in layer for t in self._characters_behind(s)}
            layer = found - seen
            seen |= layer
            depth += 1
        return -1

    def _characters_behind(self, state: int) -> set[int]:
        """Return the states that the next complete character leads to."""
        found, inside = set(), [state]
        while inside:
            for target in self._targets(inside.pop()):
                if self._boundaries[target]:
                    found.add(target)
                else:
                    inside.append(target)
        return found

    def _targets(self, state: int) -> Iterator[int]:
        return (target for target in set(self._next[state]) if target != DEAD)

    def cheapest(self, at: tuple[int, int], preferred: list[int]) -> bytes:
        """Return a text of the fewest characters, with the most preferred bytes."""
        spelled = bytearray()
        while (left := self.missing(*at)) > 0:
            for byte in preferred:
                state, count = self._move(at, byte)
                if state != DEAD and self.missing(state, count) == left - self._boundaries[state]:
                    spelled.append(byte)
                    at = (state, count)
                    break
        return bytes(spelled)
