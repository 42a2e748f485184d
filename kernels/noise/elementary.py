"""exp and log in fp32, operation by operation, so that all implementations agree bit for bit.

A library's log differs between libraries, versions and vector widths; noise made with it would tie
a seed's text to a machine. These use only additions, multiplications, comparisons and bit shifts,
each rounded once (IEEE 754, no fused multiply-add), in one order. elementary.h is the same in C++.

Source: reduction to a mantissa in [sqrt(1/2), sqrt(2)) and to |r| <= ln(2)/2, as in any elementary
function library; the coefficients are weighted minimax fits made for this project. Relative errors
are below 1.3e-7 (tests/oracle/test_sampling_noise.py measures them).
"""

from __future__ import annotations

import torch
from torch import Tensor

LN2_HIGH = 0.693359375  # few bits, so that k * LN2_HIGH is exact
LN2_LOW = -0.00021219444
INV_LN2 = 1.442695
ROUND = 12582912.0  # 1.5 * 2**23: adding and subtracting it rounds to an integer
SQRT_HALF_BITS = 0x3F3504F3
EXP_MIN = -87.0  # below, exp counts as 0: no subnormal results

# (log(1 + f) - f + f**2 / 2) / f**3 on [sqrt(1/2) - 1, sqrt(2) - 1], highest power first
LOG_POLY = (
    0.06915368, -0.11789808, 0.11872976, -0.12384348, 0.14218658,
    -0.16669251, 0.20002227, -0.24999987, 0.3333331,
)  # fmt: skip
# (exp(r) - 1 - r) / r**2 on |r| <= ln(2) / 2, highest power first
EXP_POLY = (0.0001991938, 0.0013947225, 0.008333263, 0.041666254, 0.16666667, 0.5)


def exp(x: Tensor) -> Tensor:
    """Return e**x of fp32 x <= 0; below -87 (and at -inf) it is 0."""
    y = x.clamp(min=EXP_MIN)
    k = (y * INV_LN2 + ROUND) - ROUND
    r = (y - k * LN2_HIGH) - k * LN2_LOW
    value = (_horner(EXP_POLY, r) * (r * r) + r) + 1.0
    scale = ((k.to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(x < EXP_MIN, torch.zeros_like(x), value * scale)


def log(x: Tensor) -> Tensor:
    """Return the natural logarithm of fp32 x, positive, normal and finite."""
    k, f = _split(x)
    return _log(k, f)


def log1m(v: Tensor) -> Tensor:
    """Return log(1 - v) of fp32 v, 0 < v < 1, with full relative precision for small v."""
    rest = 1.0 - v
    k, f = _split(rest)
    # add what the rounding of 1 - v lost: makes f = -v where k = 0, and matters nowhere else
    return _log(k, f + ((1.0 - rest) - v))


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return k and f with x = 2**k * (1 + f) and 1 + f in [sqrt(1/2), sqrt(2))."""
    bits = x.view(torch.int32)
    k = (bits - SQRT_HALF_BITS) >> 23
    mantissa = (bits - (k << 23)).view(torch.float32)
    return k.to(torch.float32), mantissa - 1.0


def _log(k: Tensor, f: Tensor) -> Tensor:
    """Return log(2**k * (1 + f)), smallest terms first."""
    square = f * f
    tail = (_horner(LOG_POLY, f) * f) * square
    return (((k * LN2_LOW + tail) - square * 0.5) + f) + k * LN2_HIGH


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total
