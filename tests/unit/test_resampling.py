"""Resampling schemes: unbiased each, and none more variable than the multinomial one."""

from __future__ import annotations

from math import ceil, floor, inf, log, sqrt
from random import Random

import pytest

from plait.decoders.search.faithful.resampling import (
    SCHEMES,
    Scheme,
    effective_size,
    log_sum_exp,
    normalised,
    resample,
)

RUNS = 4000
WEIGHTS = [[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.02, 0.0], [0.3, 0.0, 0.35, 0.35]]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_everyone_gets_its_share_on_average(scheme: Scheme, weights: list[float]) -> None:
    rng, num = Random(3), 7
    runs = [resample(scheme, weights, num, rng) for _ in range(RUNS)]
    assert {sum(counts) for counts in runs} == {num}
    for i, weight in enumerate(weights):
        have = [counts[i] for counts in runs]
        mean = sum(have) / RUNS
        variance = sum((count - mean) ** 2 for count in have) / RUNS
        multinomial = num * weight * (1 - weight)
        assert abs(mean - num * weight) <= 4 * sqrt(multinomial / RUNS)
        error = 4 * multinomial * sqrt(3 / RUNS)  # of a variance, for a kurtosis of 3
        assert variance <= multinomial + error
        if scheme != "multinomial" and num * weight >= 1:
            assert variance < multinomial
        if scheme == "systematic":
            assert set(have) <= {floor(num * weight), ceil(num * weight)}
        if scheme == "residual":
            assert min(have) >= floor(num * weight)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_particle_without_weight_gets_no_copy(scheme: Scheme) -> None:
    rng = Random(1)
    for _ in range(200):
        assert resample(scheme, [0.0, 1.0, 0.0], 5, rng) == [0, 5, 0]


def test_weights_of_any_size() -> None:
    assert normalised([-2000.0, -2000.0 + log(3)]) == pytest.approx([0.25, 0.75])
    assert normalised([-inf, -inf]) == [0.5, 0.5]
    assert log_sum_exp([]) == -inf
    assert effective_size([0.25] * 4) == pytest.approx(4.0)
    assert effective_size([1.0, 0.0]) == 1.0
