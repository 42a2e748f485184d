"""Reference matrix products, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from plait.kernels.linear.weight import GROUP_SIZE, Mode, Weight, dequantize

_LEAST = 1e-30  # groups of smaller inputs are zero: their step has no finite inverse


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Return x [m, k] @ dequantize(weight).T + bias, [m, n] fp32.

    x is rounded first, see `rounded`. Cost: the dense weight is made anew every time.
    """
    y = rounded(x, weight.mode) @ dequantize(weight).T
    return y if bias is None else y + bias


def rounded(x: Tensor, mode: Mode) -> Tensor:
    """Return x [m, k] as products with weights of a mode take it, fp32.

    fp32 as it is, bf16 in bf16. For integer weights in groups of 32, each with a step: for int8
    whole steps from -32767 to 32767; for int4 and int4wide each 8 have a factor from 1 to 16, and
    are whole multiples, from -127 to 127, of factor * step. For int4fixed a row has one step,
    and is whole multiples of it from -8127 to 8127.
    """
    if mode == "fp32":
        return x
    if mode == "bf16":
        return x.bfloat16().float()
    if mode == "int4fixed":
        top = x.abs().amax(-1, keepdim=True)
        return torch.where(top < _LEAST, 0.0, (x * _over(8127, top)).round_() * (top / 8127))
    groups = pad(x, (0, -x.shape[1] % GROUP_SIZE)).view(x.shape[0], -1, 4, GROUP_SIZE // 4)
    top = groups.abs().amax((-1, -2), keepdim=True)
    most = 32767.0 if mode == "int8" else 127.0 * 16.0
    step, scale = top / most, _over(most, top)
    if mode in ("int4", "int4wide"):
        eights = groups.abs().amax(-1, keepdim=True)
        factor = (eights * scale * (1 / 127)).ceil_().clamp_(1, 16)
        step, scale = step * factor, scale * _over(1, factor)
    stepped = torch.where(top < _LEAST, 0.0, (groups * scale).round_() * step)
    return stepped.view(x.shape[0], -1)[:, : x.shape[1]]


def _over(number: float, x: Tensor) -> Tensor:
    """Return number / x, divided: torch multiplies with 1 / x for a plain number."""
    return torch.full_like(x, number) / x
