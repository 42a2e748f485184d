"""What a forward pass costs by its number of rows: measured at start, kept current.

Only ratios matter to whoever asks, so the curve is kept as a shape and a scale apart: when the
whole machine turns slower, that moves the scale at once, and the shape learns slowly from the rest.
What is learnt of one size holds for all larger ones as well, whose own passes may be rare: or they
would seem to cost nothing more.

Law: seconds never fall with rows, whatever has been observed.
Source: the budget rule of docs/speculation.md; vLLM profiles the like at start.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
SCALE_RATE = 0.1  # how fast the scale follows what is observed
SHAPE_RATE = 0.02  # and the shape
OUTLIER = 1.5  # an observation counts as at most so many times what was expected
STALE = 32  # observations after which the table is made anew


class CostCurve:
    """Seconds of a step by its rows; one curve a model and worker. Cost: O(1) an observation."""

    def __init__(self, measured: Mapping[int, float] | None = None) -> None:
        """Begin with measured seconds by rows; without any, every row costs the same."""
        self._sizes = np.array(SIZES, dtype=np.float64)
        self._shape = self._sizes.copy()
        if measured:
            rows = np.array(sorted(measured), dtype=np.float64)
            seconds = np.array([measured[int(size)] for size in rows])
            beyond = np.maximum(self._sizes / rows[-1], 1.0)  # in proportion, beyond the largest
            self._shape = np.interp(self._sizes, rows, seconds) * beyond
        self._scale = 1.0
        self._table = np.zeros(0)
        self._age = 0
        self.version = 0  # of the shape that is told: a change of scale is none

    def observe(self, rows: int, seconds: float) -> None:
        """Take note of one pass."""
        if rows <= 0 or seconds <= 0:
            return
        ratio = seconds / float(self._unscaled(np.array(rows, dtype=np.float64)))
        ratio = min(max(ratio, self._scale / OUTLIER), self._scale * OUTLIER)
        self._scale += SCALE_RATE * (ratio - self._scale)
        at = int(np.abs(np.log(self._sizes / rows)).argmin())
        self._shape[at:] *= (ratio / self._scale) ** SHAPE_RATE
        self._age += 1
        if self._age == STALE:
            self._age, self._table = 0, np.zeros(0)
            self.version += 1

    def seconds(self, limit: int) -> NDArray[np.float64]:
        """Return [limit + 1]: the seconds of a pass of 0..limit rows; index 0 is 0."""
        if len(self._table) <= limit:
            self._table = self._unscaled(np.arange(max(limit, 64) + 1, dtype=np.float64))
            self._table[0] = 0.0
        return self._table[: limit + 1] * self._scale

    def _unscaled(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        shape = np.interp(rows, self._sizes, np.maximum.accumulate(self._shape))
        return shape * np.maximum(rows / SIZES[-1], 1.0)  # in proportion, beyond the largest
