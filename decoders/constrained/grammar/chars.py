"""Sets of Unicode characters as sorted ranges of code points. Surrogates are no characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache

from plait.decoders.constrained.grammar.nodes import MAX_CODE_POINT, Ranges

ANY: Ranges = ((0, 0xD7FF), (0xE000, MAX_CODE_POINT))

# ECMA-262's long names of Unicode's general categories.
_LONG = {
    "Letter": "L",
    "Uppercase_Letter": "Lu",
    "Lowercase_Letter": "Ll",
    "Titlecase_Letter": "Lt",
    "Cased_Letter": "LC",
    "Modifier_Letter": "Lm",
    "Other_Letter": "Lo",
    "Mark": "M",
    "Combining_Mark": "M",
    "Nonspacing_Mark": "Mn",
    "Spacing_Mark": "Mc",
    "Enclosing_Mark": "Me",
    "Number": "N",
    "Decimal_Number": "Nd",
    "digit": "Nd",
    "Letter_Number": "Nl",
    "Other_Number": "No",
    "Punctuation": "P",
    "punct": "P",
    "Symbol": "S",
    "Math_Symbol": "Sm",
    "Currency_Symbol": "Sc",
    "Modifier_Symbol": "Sk",
    "Other_Symbol": "So",
    "Separator": "Z",
    "Space_Separator": "Zs",
}
_INHABITED = ((0, 0x3FFFF), (0xE0000, 0xE0FFF))  # no other planes but the private ones


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


def category(name: str) -> Ranges | None:
    """Return the characters of a Unicode general category, by its short or long name, if it is one.

    As the standard library's Unicode version has it: what later versions assign is in none.
    """
    value = name.removeprefix("General_Category=").removeprefix("gc=")
    short = _LONG.get(value, value)
    members = ("Lu", "Ll", "Lt") if short == "LC" else (short,)
    found = [
        pair for key, ranges in _categories().items() if key.startswith(members) for pair in ranges
    ]
    return normalise(found) if found and 1 <= len(short) <= 2 else None


@cache
def assigned() -> Ranges:
    """Return the characters that Unicode has assigned."""
    return normalise(pair for ranges in _categories().values() for pair in ranges)


@cache
def _categories() -> dict[str, list[tuple[int, int]]]:
    """Return the assigned characters by their categories."""
    found: dict[str, list[tuple[int, int]]] = {}
    for first, last in _INHABITED:
        for code in range(first, last + 1):
            name = unicodedata.category(chr(code))
            ranges = found.setdefault(name, [])
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1] = (ranges[-1][0], code)
            else:
                ranges.append((code, code))
    for unassigned in ("Cn", "Cs", "Co"):
        found.pop(unassigned, None)
    return found
