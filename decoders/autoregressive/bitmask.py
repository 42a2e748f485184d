"""Bitmasks of what constraints allow, as the samplers take them."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.decoders.contract.constraint import Constraint


def allow_all_bitmask(rows: int, vocab_size: int) -> Tensor:
    """Return [rows, words] int32 that allows everything."""
    return torch.full((rows, -(-vocab_size // 32)), -1, dtype=torch.int32)


def next_bitmask(constraint: Constraint | None, vocab_size: int) -> Tensor | None:
    """Return [1, words] int32: what may follow where a constraint stands; None without one."""
    if constraint is None:
        return None
    bitmask = allow_all_bitmask(1, vocab_size)
    constraint.fill_bitmask(bitmask, 0)
    return bitmask
