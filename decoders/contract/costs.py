"""What a forward pass costs by its number of rows: measured at start, kept current.

Only ratios matter to whoever asks, so the curve is kept as a shape and a scale apart. The scale
follows every pass: when the whole machine turns slower, it moves at once. The shape learns from two
passes in a row of different sizes, which are equally slow on a machine that is slower for a while.
What is learnt of one size holds for all larger ones as well, whose own passes may be rare: or they
would seem to cost nothing more.

Law: seconds never fall with rows, whatever has been observed.
Source: the budget rule of docs/speculation.md; vLLM profiles the like at start.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
SCALE_RATE = 0.1  # how fast the scale follows what is observed
SHAPE_RATE = 0.05  # and the shape; two passes that differ by 10 % by chance move it by 0.5 %
OUTLIER = 1.5  # an observation counts as at most so many times what was expected
STALE = 32  # observations after which the table is made anew


class CostCurve:
    """Seconds of a step by its rows; one curve a model and worker. Cost: O(1) an observation."""

    def __init__(self, measured: Mapping[int, float] | None = None) -> None:
        """Begin with measured seconds by rows; without any, every row costs the same."""
        sizes = np.array(SIZES, dtype=np.float64)
        shape = sizes
        if measured:
            rows = np.array(sorted(measured), dtype=np.float64)
            seconds = np.array([measured[int(size)] for size in rows])
            beyond = np.maximum(sizes / rows[-1], 1.0)  # in proportion, beyond the largest
            shape = np.interp(sizes, rows, seconds) * beyond
        self._shape: list[float] = shape.tolist()
        self._scale = 1.0
        self._last = 1, 0.0  # rows of the pass before, and its seconds over what the shape says
        self._table = np.zeros(0)
        self._age = 0
        self.version = 0  # of the shape that is told: a change of scale is none

    def observe(self, rows: int, seconds: float) -> None:
        """Take note of one pass."""
        if rows <= 0 or seconds <= 0:
            return
        ratio = seconds / self._unscaled_at(rows)
        ratio = min(max(ratio, self._scale / OUTLIER), self._scale * OUTLIER)
        self._scale += SCALE_RATE * (ratio - self._scale)
        self._compare(rows, ratio)
        self._age += 1
        if self._age == STALE:
            self._age, self._table = 0, np.zeros(0)
            self.version += 1

    def _compare(self, rows: int, ratio: float) -> None:
        """Learn from a pass and the one before it how much slower the larger of the two is."""
        (rows_before, before), self._last = self._last, (rows, ratio)
        at, at_before = _nearest_size(rows), _nearest_size(rows_before)
        if at == at_before or not before:
            return
        slower = ratio / before if at > at_before else before / ratio
        factor = min(max(slower, 1 / OUTLIER), OUTLIER) ** SHAPE_RATE
        at = max(at, at_before)
        self._shape[at:] = [seconds * factor for seconds in self._shape[at:]]

    def seconds(self, limit: int) -> NDArray[np.float64]:
        """Return [limit + 1]: the seconds of a pass of 0..limit rows; index 0 is 0."""
        if len(self._table) <= limit:
            self._table = self._unscaled(np.arange(max(limit, 64) + 1, dtype=np.float64))
            self._table[0] = 0.0
        return self._table[: limit + 1] * self._scale

    def _unscaled_at(self, rows: int) -> float:
        """Return one entry of what `_unscaled` returns; every step asks, so without numpy."""
        above = bisect_left(SIZES, rows)
        if above == len(SIZES):
            return max(self._shape) * rows / SIZES[-1]
        high = max(self._shape[: above + 1])
        if rows == SIZES[above]:
            return high
        low = max(self._shape[:above])
        share = (rows - SIZES[above - 1]) / (SIZES[above] - SIZES[above - 1])
        return low + share * (high - low)

    def _unscaled(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        shape = np.interp(rows, SIZES, np.maximum.accumulate(self._shape))
        return shape * np.maximum(rows / SIZES[-1], 1.0)  # in proportion, beyond the largest


def _nearest_size(rows: int) -> int:
    """Return the index of the size that is nearest by ratio; the lower of two."""
    above = bisect_left(SIZES, rows)
    if above in (0, len(SIZES)):
        return min(above, len(SIZES) - 1)
    return above if rows * rows > SIZES[above - 1] * SIZES[above] else above - 1
