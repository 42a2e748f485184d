"""Groups of int4 whose scales and minima are whole multiples of a step of their column (int4fixed).

A weight is then W * step with W = factor * q + offset of some 15 bits, the step a power of two, so
every sum of products with whole inputs is exact in 32 bits: whatever the order, the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
_MOST_WEIGHT = 2**14
_MOST_SUM = 2**25  # of the magnitudes of W over k: times an input's part of at most 64, below 2**31
_MARGIN = 16  # rounding a factor and an offset moves W by 8 at most
_LEAST_EXPONENT = -100


def column_steps(scale: Tensor, minimum: Tensor, margin: int = 0) -> Tensor:
    """Return the least powers of two [n] fp32 with which all W of a column fit.

    Args:
        scale: [n, groups] fp32.
        minimum: likewise.
        margin: how much smaller W shall be.
    """
    most = min(_MOST_WEIGHT, _MOST_SUM // (GROUP * scale.shape[1])) - 1 - margin
    bound = torch.maximum(minimum.abs(), (minimum + 15 * scale).abs()).amax(-1)
    exponent = torch.frexp(bound / most).exponent.clamp(min=_LEAST_EXPONENT)
    return torch.ldexp(torch.ones_like(bound), exponent)


def round_to_steps(scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and minimum [n, groups] as multiples of their column's step, fp32."""
    scale, minimum = scale.float(), minimum.float()
    step = column_steps(scale, minimum, _MARGIN).unsqueeze(-1)
    return (scale / step).round_() * step, (minimum / step).round_() * step
