"""Matrix products with weights of four modes: fp32, bf16, int8 and int4 (groups of 32).

x [m, k] fp32, weight [n, k] -> [m, n] fp32. For bf16 weights x is rounded to bf16, for int8 weights
to 16-bit integers, for int4 weights to 8-bit ones (see reference.rounded and ADR 0007); a group's
products of integers are summed exactly, groups in fp32. Law: on the compiled path a row of the
result has the same bits whatever the other rows are and however many.
"""

from __future__ import annotations

from torch import Tensor

from plait.kernels import extension
from plait.kernels.linear import reference as _naive
from plait.kernels.linear.weight import GROUP, Mode, Weight, dense, from_dense, from_groups

__all__ = ["GROUP", "Mode", "Weight", "dense", "from_dense", "from_groups", "linear"]


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, *, naive: bool = False) -> Tensor:
    """Return x [m, k] @ weight.T + bias, [m, n] fp32."""
    if naive or weight.layout == "rows":
        return _naive.linear(x, weight, bias)
    result: Tensor = extension.extension().linear(x, weight.mode, weight.n, weight.values, bias)
    return result
