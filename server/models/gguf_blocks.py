"""GGUF tensors as torch tensors: quantised blocks of 32 stay exactly what they are.

Q4_0, Q4_1 and Q4_K become int4 groups, Q5_0 and Q8_0 int8 groups, value for value. Every other type
goes through the `gguf` package's dequantiser. Q4_K's scales need more than 16 bits (they are
products of 11 bits and 6); the kernels' mode int4wide holds them.
Source: the block layouts of the GGUF specification.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants
from torch import Tensor

from plait.server.models.catalog import BadModel
from plait.server.models.checkpoint import GROUP, DenseTensor, QuantizedTensor

Bytes = npt.NDArray[np.uint8]


def unpack(rows: npt.NDArray[np.generic], kind: Type) -> DenseTensor | QuantizedTensor:
    """Return the tensor whose rows are given as stored.

    Args:
        rows: [..., row bytes] uint8, or numbers where the type is a plain one; copied.
        kind: how the bytes are to be read.
    Raises:
        BadModel: the type has no dequantiser.
    """
    if kind in _PLAIN:
        return DenseTensor(_copy(rows).view(_PLAIN[kind]), "bf16")
    if kind in _GROUPED:
        return _GROUPED[kind](np.ascontiguousarray(rows, dtype=np.uint8))
    try:
        return DenseTensor(_copy(quants.dequantize(rows, kind)), "int8")
    except NotImplementedError as error:
        raise BadModel(f"tensors of GGUF type {kind.name} are not supported") from error


def _copy(values: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.array(values))


def _blocks(rows: Bytes, size: int) -> Bytes:
    return rows.reshape(rows.shape[0], -1, size)


def _halves(blocks: Bytes, at: int) -> Tensor:
    """Return the float16 number at byte `at` of every block, [n, blocks] float32."""
    return _copy(blocks[:, :, at : at + 2]).view(torch.float16)[:, :, 0].float()


def _nibbles(packed: Bytes) -> Tensor:
    """Return [..., 2m] of [..., m] bytes: all low halves, then all high halves."""
    low = torch.from_numpy(packed & 15)
    return torch.cat((low, torch.from_numpy(packed >> 4)), dim=-1)


def _q4_0(rows: Bytes) -> QuantizedTensor:
    blocks = _blocks(rows, 18)
    scale = _halves(blocks, 0)
    return QuantizedTensor(_nibbles(blocks[:, :, 2:]).flatten(1), scale, -8 * scale, "int4")


def _q4_1(rows: Bytes) -> QuantizedTensor:
    blocks = _blocks(rows, 20)
    q = _nibbles(blocks[:, :, 4:]).flatten(1)
    return QuantizedTensor(q, _halves(blocks, 0), _halves(blocks, 2), "int4")


def _q5_0(rows: Bytes) -> QuantizedTensor:
    blocks = _blocks(rows, 22)
    high = _copy(np.unpackbits(blocks[:, :, 2:6], axis=-1, bitorder="little"))
    q = (_nibbles(blocks[:, :, 6:]) | high << 4).to(torch.int8) - 16
    return QuantizedTensor(q.flatten(1), _halves(blocks, 0), None, "int8")


def _q8_0(rows: Bytes) -> QuantizedTensor:
    blocks = _blocks(rows, 34)
    q = _copy(blocks[:, :, 2:]).view(torch.int8)
    return QuantizedTensor(q.flatten(1), _halves(blocks, 0), None, "int8")


def _q4_k(rows: Bytes) -> QuantizedTensor:
    """256 values share two halves; each group of 32 has a 6-bit scale and a 6-bit minimum."""
    blocks = _blocks(rows, 144)
    scale, minimum = _six_bits(_copy(blocks[:, :, 4:16]))
    scale = _halves(blocks, 0)[:, :, None] * scale
    minimum = -_halves(blocks, 2)[:, :, None] * minimum
    n, count = blocks.shape[:2]
    q = _nibbles(blocks[:, :, 16:].reshape(n, count, 4, GROUP))
    return QuantizedTensor(q.flatten(1), scale.flatten(1), minimum.flatten(1), "int4")


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return 8 scales and 8 minima of [..., 12] bytes, each [..., 8] float32.

    The first four of each have a byte of their own; its spare top bits complete the last four.
    """
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = torch.cat((first & 63, (third & 15) | (first >> 6 << 4)), dim=-1)
    minimum = torch.cat((second & 63, (third >> 4) | (second >> 6 << 4)), dim=-1)
    return scale.float(), minimum.float()


_PLAIN = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}
_GROUPED: dict[Type, Callable[[Bytes], QuantizedTensor]] = {
    Type.Q4_0: _q4_0,
    Type.Q4_1: _q4_1,
    Type.Q5_0: _q5_0,
    Type.Q8_0: _q8_0,
    Type.Q4_K: _q4_k,
}
