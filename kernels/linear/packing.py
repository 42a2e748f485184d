"""Weights in the order in which the C++ kernels read them.

A panel is 32 columns of the product (rows of the weight); a block is one panel times one group of
32 along k. Blocks are stored panel by panel, group by group, so that a thread reads one stream.
The 32 columns of a block are two vectors of 16; the 32 k are 16 pairs (products of 16-bit numbers
take two k at a time):

    fp32   [pair 16][vector 2][k of pair 2][column 16] fp32                            4096 bytes
    bf16   [pair 16][vector 2][column 16][k of pair 2] bf16                            2048 bytes
    int8   scale [32] fp16, [pair 16][vector 2][column 16][k of pair 2] int8           1088 bytes
    int4   scale [32] fp16, minimum [32] fp16, [k / 8][vector 2][column 16] 32 bits     640 bytes
    int4wide   the same, scale and minimum fp32                                         768 bytes
    int4fixed  [column 32] (factor, offset) int16, quants as those of int4              640 bytes

The 32 bits of int4 hold 8 k of one column: byte i holds k i in its low half, k 4 + i in its high
one. Scale and minimum of int4fixed are a factor and an offset times the column's step; its panels
have one block more, the first, which begins with the steps [32] fp32.
Columns beyond n and k beyond the weight's are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from plait.kernels.linear.fixed import column_steps

PANEL = 32
GROUP = 32


def pack_weight(mode: str, values: Tensor, scale: Tensor | None, minimum: Tensor | None) -> Tensor:
    """Return [panels, groups, bytes of a block] uint8 for values [n, k] of layout "rows"."""
    n, k = values.shape
    values = pad(values, (0, -k % GROUP, 0, -n % PANEL))
    if mode == "int4fixed" and scale is not None and minimum is not None:
        return _pack_fixed(values, scale, minimum)
    parts = [_group_columns(part) for part in (scale, minimum) if part is not None]
    parts.append(_PACK[mode](values))
    return torch.cat([part.view(torch.uint8).flatten(2) for part in parts], -1).contiguous()


def unpack_weight(mode: str, packed: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Undo pack_panels; the padding stays: values [n + pad, k + pad], scale and minimum [.., g]."""
    if mode == "int4fixed":
        return _unpack_fixed(packed)
    scale = minimum = None
    kind = torch.float32 if mode == "int4wide" else torch.float16
    if mode in ("int8", "int4", "int4wide"):
        scale, packed = _split_groups(packed, kind)
    if mode in ("int4", "int4wide"):
        minimum, packed = _split_groups(packed, kind)
    return _UNPACK[mode](packed.contiguous()), scale, minimum


def unpack_rows(
    mode: str, packed: Tensor, ids: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what unpack_weight would, of the rows `ids` [m] int64 alone: [m, k + pad]."""
    panel, column = ids // PANEL, ids % PANEL
    if mode == "int4fixed":  # by whole panels
        at = torch.arange(len(ids)) * PANEL + column
        whole = _unpack_fixed(packed[panel])
        return whole[0][at], whole[1][at], whole[2][at]
    scale = minimum = None
    kind = torch.float32 if mode == "int4wide" else torch.float16
    size = kind.itemsize * PANEL
    if mode in ("int8", "int4", "int4wide"):
        scale, packed = packed[..., :size].view(kind)[panel, :, column], packed[..., size:]
    if mode in ("int4", "int4wide"):
        minimum, packed = packed[..., :size].view(kind)[panel, :, column], packed[..., size:]
    vector, column = column // 16, column % 16
    if mode == "fp32":
        split = packed.view(torch.float32).view(*packed.shape[:2], 16, 2, 2, 16)
        values = split[panel, :, :, vector, :, column]
    elif mode in ("bf16", "int8"):
        dtype = torch.int8 if mode == "int8" else torch.bfloat16
        split = packed.view(dtype).view(*packed.shape[:2], 16, 2, 16, 2)
        values = split[panel, :, :, vector, column]
    else:
        eights = packed.view(*packed.shape[:2], 4, 2, 16, 4)[panel, :, :, vector, column]
        values = torch.stack([eights & 15, eights >> 4], -2)
    return values.reshape(len(ids), packed.shape[1] * GROUP), scale, minimum


def _pack_fixed(values: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    steps = column_steps(scale, minimum)
    pairs = torch.stack([part / steps.unsqueeze(-1) for part in (scale, minimum)], -1)
    columns = pad(pairs.to(torch.int16), (0, 0, 0, 0, 0, -len(pairs) % PANEL))
    columns = columns.view(-1, PANEL, *pairs.shape[1:]).transpose(1, 2).contiguous()
    parts = [columns.view(torch.uint8).flatten(2), _pack_nibbles(values).flatten(2)]
    blocks = torch.cat(parts, -1)
    lead = torch.zeros_like(blocks[:, :1])
    lead[:, 0, : 4 * PANEL] = pad(steps, (0, -len(steps) % PANEL)).view(-1, PANEL).view(torch.uint8)
    return torch.cat([lead, blocks], 1).contiguous()


def _unpack_fixed(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = 4 * PANEL
    steps = packed[:, 0, :size].contiguous().view(torch.float32)  # [panels, 32]
    blocks = packed[:, 1:]
    pairs = blocks[..., :size].contiguous().view(torch.int16).view(*blocks.shape[:2], PANEL, 2)
    parts = pairs.float() * steps[:, None, :, None]  # [panels, groups, 32, 2]
    scale, minimum = parts.transpose(1, 2).flatten(0, 1).unbind(-1)
    return _unpack_nibbles(blocks[..., size:].contiguous()), scale, minimum


def _group_columns(numbers: Tensor) -> Tensor:
    """[n, groups] -> [panels, groups, 32]."""
    numbers = pad(numbers, (0, 0, 0, -numbers.shape[0] % PANEL))
    return numbers.view(-1, PANEL, numbers.shape[1]).transpose(1, 2).contiguous()


def _split_groups(packed: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    size = kind.itemsize * PANEL
    numbers = packed[..., :size].contiguous().view(kind)  # [panels, groups, 32]
    return numbers.transpose(1, 2).reshape(-1, packed.shape[1]), packed[..., size:]


def _pack_planes(values: Tensor) -> Tensor:
    """[n, k] -> [panel, group, pair, vector, k of pair, column]."""
    split = values.view(values.shape[0] // PANEL, 2, 16, -1, 16, 2)  # [panel, v, c, group, pair, h]
    return split.permute(0, 3, 4, 1, 5, 2).contiguous()


def _pack_pairs(values: Tensor) -> Tensor:
    """[n, k] -> [panel, group, pair, vector, column, k of pair]."""
    split = values.view(values.shape[0] // PANEL, 2, 16, -1, 16, 2)
    return split.permute(0, 3, 4, 1, 2, 5).contiguous()


def _pack_nibbles(values: Tensor) -> Tensor:
    """[n, k] of 0..15 -> [panel, group, k / 8, vector, column, byte of 32 bits]."""
    panels = values.shape[0] // PANEL
    split = values.view(panels, 2, 16, -1, 4, 2, 4)  # [panel, v, c, group, eight, half, byte]
    packed = split[..., 0, :] | (split[..., 1, :] << 4)
    return packed.permute(0, 3, 4, 1, 2, 5).contiguous()


def _unpack_planes(packed: Tensor) -> Tensor:
    panels, groups, _ = packed.shape
    split = packed.view(torch.float32).view(panels, groups, 16, 2, 2, 16)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(panels * PANEL, groups * GROUP)


def _unpack_pairs(dtype: torch.dtype, packed: Tensor) -> Tensor:
    panels, groups, _ = packed.shape
    split = packed.view(dtype).view(panels, groups, 16, 2, 16, 2)
    return split.permute(0, 3, 4, 1, 2, 5).reshape(panels * PANEL, groups * GROUP)


def _unpack_nibbles(packed: Tensor) -> Tensor:
    panels, groups, _ = packed.shape
    split = packed.view(panels, groups, 4, 2, 16, 4).permute(0, 3, 4, 1, 2, 5)
    return torch.stack([split & 15, split >> 4], -2).reshape(panels * PANEL, groups * GROUP)


_PACK = {
    "fp32": _pack_planes,
    "bf16": _pack_pairs,
    "int8": _pack_pairs,
    "int4": _pack_nibbles,
    "int4wide": _pack_nibbles,
}
_UNPACK = {
    "fp32": _unpack_planes,
    "bf16": lambda packed: _unpack_pairs(torch.bfloat16, packed),
    "int8": lambda packed: _unpack_pairs(torch.int8, packed),
    "int4": _unpack_nibbles,
    "int4wide": _unpack_nibbles,
}
