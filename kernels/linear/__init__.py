"""Matrix products with weights of six modes: fp32, bf16, int8, int4, int4wide and int4fixed.

x [m, k] fp32, weight [n, k] -> [m, n] fp32. For bf16 weights x is rounded to bf16, for int8 weights
to 16-bit integers, for int4 weights to 8-bit ones (see reference.rounded and ADR 0007); products of
integers are summed exactly in groups of 32, groups in fp32. With int4fixed weights (fixed.py, ADR
0012) x is rounded to 14-bit integers, and sums over all k are exact. Law: on the compiled path a
row of the result has the same bits whatever the other rows are and however many.
"""

from __future__ import annotations

from plait.kernels.linear.weight import (
    GROUP_SIZE,
    Mode,
    Weight,
    as_fixed,
    dequantize,
    from_dense,
    from_quantized,
    take_rows,
)

__all__ = [
    "GROUP_SIZE",
    "Mode",
    "Weight",
    "as_fixed",
    "dequantize",
    "from_dense",
    "from_quantized",
    "take_rows",
]
