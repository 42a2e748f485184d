"""What stands between the matrix products of a layer: norm, rotary positions, KV write, SwiGLU.

On the compiled path decoder_stack runs the C++ of these (glue.h) inside its own loop; a caller
outside of the loop, such as the final norm, uses the functions here. All fp32.
"""

from __future__ import annotations

from torch import Tensor

from plait.kernels import extension
from plait.kernels.elementwise import reference as _naive
from plait.kernels.elementwise.reference import rope, silu_mul, write_kv

__all__ = ["rms_norm", "rope", "silu_mul", "write_kv"]


def rms_norm(x: Tensor, gain: Tensor, eps: float, *, naive: bool = False) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * gain for every row of x [rows, n], fp32."""
    if naive or not extension.is_supported(x.device):
        return _naive.rms_norm(x, gain, eps)
    out: Tensor = extension.extension().rms_norm(x, gain, eps)
    return out
