"""UTF-8: converts ranges of code points to sequences of byte ranges."""

from __future__ import annotations

from collections.abc import Iterator

_BOUNDS = ((0x0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))


def utf8_rows(first: int, last: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield rows of byte ranges whose products are exactly the encodings of first..last."""
    for low, high in _BOUNDS:
        if first <= high and last >= low:
            yield from _split(
                chr(max(first, low)).encode("utf-8", "surrogatepass"),
                chr(min(last, high)).encode("utf-8", "surrogatepass"),
            )


def _split(low: bytes, high: bytes) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield the rows between two encodings of the same length."""
    if len(low) == 1:
        yield ((low[0], high[0]),)
        return
    least, most = b"\x80" * (len(low) - 1), b"\xbf" * (len(low) - 1)
    if low[0] == high[0]:
        for row in _split(low[1:], high[1:]):
            yield ((low[0], low[0]), *row)
        return
    first, last = low[0], high[0]
    if low[1:] != least:
        for row in _split(low[1:], most):
            yield ((first, first), *row)
        first += 1
    tail_cut = high[1:] != most
    if first <= last - tail_cut:
        yield ((first, last - tail_cut), *((0x80, 0xBF) for _ in least))
    if tail_cut:
        for row in _split(least, high[1:]):
            yield ((last, last), *row)
