"""Resampling: how many copies each of some weighted particles gets. No torch.

Law, for each scheme: particle i gets num * weight_i copies on average, `num` in all. Systematic
copies differ from num * weight_i by less than one, residual ones are at least its floor, and all
but the multinomial scheme have no larger variance than it has.
Source: Douc, Cappe and Moulines 2005, "Comparison of resampling schemes for particle filtering".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import exp, floor, inf, log
from random import Random
from typing import Literal

Scheme = Literal["stratified", "systematic", "multinomial", "residual"]


def log_sum_exp(values: Sequence[float]) -> float:
    """Return the log of the sum of exp(value); -inf for nothing."""
    best = max(values, default=-inf)
    return best + log(sum(exp(value - best) for value in values)) if best > -inf else -inf


def normalised(log_weights: Sequence[float]) -> list[float]:
    """Return the weights with sum 1; equal ones if all of them are nothing."""
    total = log_sum_exp(log_weights)
    if total == -inf:
        return [1.0 / len(log_weights)] * len(log_weights)
    return [exp(value - total) for value in log_weights]


def effective_size(weights: Sequence[float]) -> float:
    """Return the effective sample size, 1 / the sum of squares of normalised weights."""
    return 1.0 / sum(weight * weight for weight in weights)


def resample(scheme: Scheme, weights: Sequence[float], num: int, rng: Random) -> list[int]:
    """Return how many of `num` copies each particle gets; the weights are normalised."""
    return SCHEMES[scheme](weights, num, rng)


def _multinomial(weights: Sequence[float], num: int, rng: Random) -> list[int]:
    return _at([rng.random() for _ in range(num)], weights)


def _stratified(weights: Sequence[float], num: int, rng: Random) -> list[int]:
    return _at([(i + rng.random()) / num for i in range(num)], weights)


def _systematic(weights: Sequence[float], num: int, rng: Random) -> list[int]:
    shift = rng.random()
    return _at([(i + shift) / num for i in range(num)], weights)


def _residual(weights: Sequence[float], num: int, rng: Random) -> list[int]:
    """Give everyone the whole part of its share; the rest is drawn by what is left of each."""
    sure = [floor(num * weight) for weight in weights]
    rest = num - sum(sure)
    if rest <= 0:
        return sure
    left = [num * weight - whole for weight, whole in zip(weights, sure, strict=True)]
    drawn = _multinomial([each / sum(left) for each in left], rest, rng)
    return [a + b for a, b in zip(sure, drawn, strict=True)]


def _at(places: Sequence[float], weights: Sequence[float]) -> list[int]:
    """Return how many places in [0, 1) fall on each particle's part of the line."""
    ends, counts = list(accumulate(weights)), [0] * len(weights)
    last = max(i for i, weight in enumerate(weights) if weight > 0)
    for place in places:
        counts[min(bisect_left(ends, place * ends[-1]), last)] += 1
    return counts


SCHEMES: Mapping[Scheme, Callable[[Sequence[float], int, Random], list[int]]] = {
    "stratified": _stratified,
    "systematic": _systematic,
    "multinomial": _multinomial,
    "residual": _residual,
}
