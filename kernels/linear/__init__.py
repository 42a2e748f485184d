"""Matrix products with weights of five modes: fp32, bf16, int8, int4 and int4wide (groups of 32).

x [m, k] fp32, weight [n, k] -> [m, n] fp32. For bf16 weights x is rounded to bf16, for int8 weights
to 16-bit integers, for int4 weights to 8-bit ones (see reference.rounded and ADR 0007); a group's
products of integers are summed exactly, groups in fp32. Law: on the compiled path a row of the
result has the same bits whatever the other rows are and however many.
"""

from __future__ import annotations

from plait.kernels.linear.weight import (
    GROUP_SIZE,
    Mode,
    Weight,
    dequantize,
    from_dense,
    from_quantized,
    take_rows,
)

__all__ = [
    "GROUP_SIZE",
    "Mode",
    "Weight",
    "dequantize",
    "from_dense",
    "from_quantized",
    "take_rows",
]
