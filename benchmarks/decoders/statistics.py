"""Statistics of right and wrong answers: confidence intervals, paired differences, sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Z_95 = 1.959964  # of the normal law: 2.5 % lie above
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the 95 % interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a method: its speed and its accuracy."""

    speed: float  # tokens per forward pass
    accuracy: float  # 0..1


def wilson(right: int, cases: int) -> Interval:
    """Return the share of right answers with its score interval.

    Law: low and high are the shares p at which |right / cases - p| is Z_95 standard errors of p.
    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Raises:
        ValueError: there is no case.
    """
    if cases < 1:
        raise ValueError("a share needs at least one case")
    share, weight = right / cases, Z_95**2 / cases
    centre = (share + weight / 2) / (1 + weight)
    spread = Z_95 * math.sqrt(share * (1 - share) / cases + weight / cases / 4) / (1 + weight)
    return Interval(share, max(0.0, centre - spread), min(1.0, centre + spread))


def paired_difference(
    right: Sequence[bool], reference: Sequence[bool], groups: Sequence[str]
) -> Interval:
    """Return by how much one method's accuracy differs from another's on the same cases.

    The interval is a percentile bootstrap of the per-case differences, drawn anew within each
    group, so that every task keeps its share. The same arguments give the same interval.

    Args:
        right: Of the method, one per case.
        reference: Of the method compared with, in the same order.
        groups: The task of each case.
    """
    differences = np.asarray(right, np.float64) - np.asarray(reference, np.float64)
    rng = np.random.default_rng(0)
    sums = np.zeros(RESAMPLES)
    for group in sorted(set(groups)):
        members = differences[[name == group for name in groups]]
        drawn = rng.integers(len(members), size=(RESAMPLES, len(members)))
        sums += members[drawn].sum(axis=1)
    low, high = np.quantile(sums / len(differences), [0.025, 0.975])
    return Interval(float(differences.mean()), float(low), float(high))


def reach(sweep: Sequence[Point], accuracy: float) -> float:
    """Return PBx: the greatest speed at which a sweep's accuracy is at least x; 0 if it never is.

    Between neighbouring settings both are taken to change linearly.

    Args:
        sweep: The settings of one method, in the order of its parameter.
        accuracy: x, 0..1.
    Source: ParallelBench, arXiv:2510.04767, section 5.
    """
    speeds = [point.speed for point in sweep if point.accuracy >= accuracy]
    for one, other in pairwise(sweep):
        low, high = sorted((one, other), key=lambda point: point.accuracy)
        if low.accuracy < accuracy <= high.accuracy:
            share = (accuracy - low.accuracy) / (high.accuracy - low.accuracy)
            speeds.append(low.speed + share * (high.speed - low.speed))
    return max(speeds, default=0.0)
