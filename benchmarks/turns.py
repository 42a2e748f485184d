"""Servers measured in turns, and their speeds compared repetition by repetition.

A machine that others use changes its speed within minutes. What stands in one repetition was
measured within seconds, so its ratio holds whatever the machine did before; medians of all
repetitions, taken server by server, do not have that.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Measured = TypeVar("Measured")
SMALLER_IS_BETTER = frozenset({"s", "ms", "MiB"})


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some numbers, and the least and the greatest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g}-{self.high:.4g})"


def spread(values: Sequence[float]) -> Spread:
    """Return median and range of at least one number."""
    return Spread(statistics.median(values), min(values), max(values))


def turn_order(count: int, rep: int) -> list[int]:
    """Return who comes when in a repetition; each begins equally often."""
    return [(rep + i) % count for i in range(count)]


def paired_ratios(ours: Sequence[float], theirs: Sequence[float], unit: str) -> list[float]:
    """Return for each repetition how many times better we are; above 1: we are better.

    Raises:
        ValueError: one was measured more often than the other.
    """
    pairs = zip(ours, theirs, strict=True)
    return [their / our if unit in SMALLER_IS_BETTER else our / their for our, their in pairs]


async def in_turns(
    count: int, reps: int, measure: Callable[[int, int], Awaitable[Measured]], *, warm_ups: int = 1
) -> list[list[Measured]]:
    """Return what `measure(server, repetition)` gives for each of `count` servers, in turns.

    warm_ups: repetitions before the first, numbered below 0, that do not count.
    """
    found: list[list[Measured]] = [[] for _ in range(count)]
    for rep in range(-warm_ups, reps):
        for i in turn_order(count, rep):
            sample = await measure(i, rep)
            if rep >= 0:
                found[i].append(sample)
    return found
