"""The weight of a linear layer, in one of six modes and one of two layouts.

Layout "rows" is what torch code reads: values [n, k], and for the integer modes scale and minimum
[n, k / 32]. Layout "panels" is what the C++ kernels read, see packing.py. A quantized value is
`q * scale + minimum` with one scale and one minimum for 32 neighbours along k; both are fp16
numbers, as in GGUF, so that Q4_0, Q4_1 and Q8_0 are held exactly. int4wide holds them in fp32, for
groups that are quantised already and need it, as those of Q4_K (products of 11 bits and 6).
int4fixed rounds them to multiples of a step of their column, see fixed.py: 15 bits for the greatest
weight of a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from plait.kernels.linear.fixed import round_to_steps
from plait.kernels.linear.packing import unpack_rows, unpack_weight

Mode = Literal["fp32", "bf16", "int8", "int4", "int4wide", "int4fixed"]
GROUP_SIZE = 32


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix [n, k]; y = x @ dequantize(weight).T."""

    mode: Mode
    n: int
    k: int
    layout: Literal["rows", "panels"]
    values: Tensor  # rows: [n, k or k padded to 32]; panels: [panels, groups, bytes] uint8
    scale: Tensor | None = None  # rows of integer modes: [n, groups], int8 and int4 fp16, else fp32
    minimum: Tensor | None = None  # rows of int4, int4wide and int4fixed: like scale

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        parts = (self.values, self.scale, self.minimum)
        return sum(part.nbytes for part in parts if part is not None)


def from_dense(dense: Tensor, mode: Mode) -> Weight:
    """Return a dense matrix [n, k] of any float type in layout "rows", rounded or quantized.

    int4 is asymmetric (minimum and maximum of a group are hit), int8 symmetric.
    """
    if mode == "int4fixed":
        return as_fixed(from_dense(dense, "int4wide"))
    n, k = dense.shape
    if mode == "fp32":
        return Weight(mode, n, k, "rows", dense.float().contiguous())
    if mode == "bf16":
        return Weight(mode, n, k, "rows", dense.bfloat16().contiguous())
    groups = pad(dense.float(), (0, -k % GROUP_SIZE)).view(n, -1, GROUP_SIZE)
    kind = torch.float32 if mode == "int4wide" else torch.float16
    q, scale, minimum = _quantize_int8(groups) if mode == "int8" else _quantize_int4(groups, kind)
    return Weight(mode, n, k, "rows", q.view(n, -1), scale, minimum)


def from_quantized(q: Tensor, scale: Tensor, minimum: Tensor | None) -> Weight:
    """Return groups that are quantized already in layout "rows"; exact.

    Args:
        q: [n, k], k a multiple of 32; uint8 of 0..15 (int4) or int8 (int8).
        scale: [n, k / 32] in any float type; fp16 numbers for int8. Where scale or minimum of
            int4 are no fp16 numbers the mode is int4wide.
        minimum: like scale for int4; None for int8.
    Raises:
        ValueError: the parts do not fit together, or scales of int8 are no fp16 numbers.
    """
    n, k = q.shape
    mode: Mode = "int8" if q.dtype == torch.int8 else "int4"
    if k % GROUP_SIZE or scale.shape != (n, k // GROUP_SIZE):
        raise ValueError(f"q {tuple(q.shape)} and scale {tuple(scale.shape)} are no groups of 32")
    if (minimum is None) != (mode == "int8"):
        raise ValueError(f"{mode} groups have {'no ' if mode == 'int8' else 'a '}minimum")
    if minimum is None:
        return Weight(mode, n, k, "rows", q.contiguous(), _as_half(scale))
    if not (_is_half(scale) and _is_half(minimum)):
        wide = scale.float().contiguous(), minimum.float().contiguous()
        return Weight("int4wide", n, k, "rows", q.contiguous(), *wide)
    halves = _as_half(scale), _as_half(minimum)
    return Weight(mode, n, k, "rows", q.contiguous(), *halves)


def as_fixed(weight: Weight) -> Weight:
    """Return a weight of mode int4 or int4wide, layout "rows", in mode int4fixed: rounded."""
    if weight.scale is None or weight.minimum is None:
        raise ValueError(f"weights of mode {weight.mode} have no minimum")
    scale, minimum = round_to_steps(weight.scale, weight.minimum)
    return Weight("int4fixed", weight.n, weight.k, "rows", weight.values, scale, minimum)


def dequantize(weight: Weight) -> Tensor:
    """Return the matrix [n, k] fp32 that the weight stands for."""
    if weight.layout == "panels":
        weight = _rows(weight)
    values = weight.values.float()
    if weight.scale is None:
        return values
    groups = values.view(*weight.scale.shape, GROUP_SIZE) * weight.scale.float().unsqueeze(-1)
    if weight.minimum is not None:
        groups += weight.minimum.float().unsqueeze(-1)
    return groups.flatten(1)[:, : weight.k]


def take_rows(weight: Weight, ids: Tensor) -> Tensor:
    """Return dequantize(weight)[ids], [m, k] fp32, without reading more of the weight.

    Args:
        ids: [m] int64, of 0..n-1.
    """
    if weight.layout == "panels":
        values, scale, minimum = unpack_rows(weight.mode, weight.values, ids)
    else:
        values = weight.values[ids]
        scale = None if weight.scale is None else weight.scale[ids]
        minimum = None if weight.minimum is None else weight.minimum[ids]
    rows = Weight(weight.mode, len(ids), weight.k, "rows", values, scale, minimum)
    return dequantize(rows)[:, : weight.k]


def _quantize_int8(groups: Tensor) -> tuple[Tensor, Tensor, None]:
    scale = (groups.abs().amax(-1) / 127).clamp(max=_HALF_MAX).half()
    q = (groups * _inverse(scale)).round_().clamp_(-127, 127).to(torch.int8)
    return q, scale, None


def _quantize_int4(groups: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.aminmax(groups, dim=-1)
    minimum = low.clamp(-_HALF_MAX, _HALF_MAX).to(kind)
    scale = ((high - minimum.float()) / 15).clamp(0, _HALF_MAX).to(kind)
    above = groups - minimum.float().unsqueeze(-1)
    q = (above * _inverse(scale)).round_().clamp_(0, 15).to(torch.uint8)
    return q, scale, minimum


_HALF_MAX = 65504.0


def _inverse(scale: Tensor) -> Tensor:
    wide = scale.float()
    return torch.where(wide > 0, 1 / wide, 0).unsqueeze(-1)


def _is_half(values: Tensor) -> bool:
    return torch.equal(values.half().float(), values.float())


def _as_half(values: Tensor) -> Tensor:
    if not _is_half(values):
        raise ValueError("scales of int8 groups must be fp16 numbers")
    return values.half().contiguous()


def _rows(weight: Weight) -> Weight:
    values, scale, minimum = unpack_weight(weight.mode, weight.values)
    values = values[: weight.n]
    if weight.scale is None and weight.mode in ("fp32", "bf16"):
        values = values[:, : weight.k]
    scale = None if scale is None else scale[: weight.n]
    minimum = None if minimum is None else minimum[: weight.n]
    return Weight(weight.mode, weight.n, weight.k, "rows", values, scale, minimum)
