"""The weights of a routed feed-forward, and how its experts are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from plait.kernels.linear import Weight


@dataclass(frozen=True, slots=True)
class ExpertRouting:
    """Which experts a row takes; experts stand in equal groups, one after the other."""

    chosen: int  # experts per row
    groups: int = 1
    kept_groups: int = 1  # those whose two best experts have the largest sum of scores
    normalised: bool = True  # the shares of the chosen sum to 1 before they are scaled
    scale: float = 1.0  # of all shares


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """A router and its experts, each a SwiGLU."""

    routing: ExpertRouting
    router: Weight  # [experts, hidden], fp32
    bias: Tensor | None  # [experts] fp32, part of the choice but not of the share
    gate: Sequence[Weight]  # of each expert, [ffn, hidden]
    up: Sequence[Weight]
    down: Sequence[Weight]  # [hidden, ffn]
