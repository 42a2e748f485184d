"""Sets of Unicode characters as sorted ranges of code points. Surrogates are no characters."""

from __future__ import annotations

from collections.abc import Iterable

from plait.decoders.constrained.grammar.nodes import MAX_CODE_POINT, Ranges

ANY: Ranges = ((0, 0xD7FF), (0xE000, MAX_CODE_POINT))


def normalise(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Return the union of inclusive ranges: sorted, merged, without surrogates."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(pairs):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return intersect(tuple(merged), ANY)


def of(text: str) -> Ranges:
    """Return the set of the text's characters."""
    return normalise((ord(c), ord(c)) for c in text)


def complement(ranges: Ranges) -> Ranges:
    """Return all characters outside the set."""
    gaps, start = [], 0
    for first, last in ranges:
        if start < first:
            gaps.append((start, first - 1))
        start = last + 1
    if start <= MAX_CODE_POINT:
        gaps.append((start, MAX_CODE_POINT))
    return intersect(tuple(gaps), ANY)


def intersect(left: Ranges, right: Ranges) -> Ranges:
    """Return the characters in both sets."""
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        first, last = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if first <= last:
            found.append((first, last))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def contains(ranges: Ranges, code: int) -> bool:
    """Tell whether the character is in the set."""
    return any(first <= code <= last for first, last in ranges)
