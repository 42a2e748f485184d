"""The oracle of the linear kernels, and what serves on other devices."""

from __future__ import annotations

from torch import Tensor

from plait.kernels.linear.weight import Weight, dense


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Return x [m, k] @ dense(weight).T + bias, [m, n] fp32.

    Outside fp32 mode x is rounded to bf16 first. Cost: the dense weight is made anew every time.
    """
    if weight.mode != "fp32":
        x = x.bfloat16()
    y = x.float() @ dense(weight).T
    return y if bias is None else y + bias
