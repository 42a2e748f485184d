"""The oracle of the linear kernels, and what serves on other devices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from plait.kernels.linear.weight import GROUP, Mode, Weight, dense

_MOST = 32767.0
_LEAST = 1e-30  # groups of smaller inputs are zero: their step has no finite inverse


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Return x [m, k] @ dense(weight).T + bias, [m, n] fp32.

    x is rounded first, see `rounded`. Cost: the dense weight is made anew every time.
    """
    y = rounded(x, weight.mode) @ dense(weight).T
    return y if bias is None else y + bias


def rounded(x: Tensor, mode: Mode) -> Tensor:
    """Return x [m, k] as products with weights of a mode take it, fp32.

    fp32 as it is, bf16 in bf16; for integer weights each group of 32 in 65535 equal steps whose
    outermost is its greatest magnitude.
    """
    if mode == "fp32":
        return x
    if mode == "bf16":
        return x.bfloat16().float()
    groups = pad(x, (0, -x.shape[1] % GROUP)).view(x.shape[0], -1, GROUP)
    top = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(top >= _LEAST, torch.full_like(top, _MOST) / top, 0.0)
    steps = (groups * inverse).round_() * (top / _MOST)
    return steps.view(x.shape[0], -1)[:, : x.shape[1]]
