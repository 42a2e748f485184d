"""Rotary tables: the cosines and sines of every position and frequency.

Computed in float64 and rounded once to float32, so that late positions keep their phase.
Sources: Su et al. 2021, arXiv:2104.09864; interpolation, Chen et al. 2023, arXiv:2306.15595;
YaRN, Peng et al. 2023, arXiv:2309.00071; llama3, the Llama 3.1 model card.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plait.server.models.spec import RopeSpec


def frequencies(rope: RopeSpec) -> Tensor:
    """Return the angle by which each pair of dimensions turns per position, [dim / 2] float64."""
    exponent = torch.arange(0, rope.dim, 2, dtype=torch.float64) / rope.dim
    plain = rope.theta**-exponent
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "factors":
        return plain / torch.tensor(rope.factors, dtype=torch.float64)
    keep = _llama3_share(rope, plain) if rope.kind == "llama3" else _yarn_share(rope)
    return keep * plain + (1 - keep) * plain / rope.factor


def tables(rope: RopeSpec, length: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of positions 0..length-1, each [length, dim / 2] float32."""
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies(rope))
    scale = rope.attention_factor
    return (angles.cos() * scale).float(), (angles.sin() * scale).float()


def _llama3_share(rope: RopeSpec, plain: Tensor) -> Tensor:
    """Return how far each frequency stays as it is (1) rather than being divided (0).

    It stays when it turns more than high_freq_factor times over the original context.
    """
    turns = rope.original_positions * plain / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    return ((turns - rope.low_freq_factor) / span).clamp(0, 1)


def _yarn_share(rope: RopeSpec) -> Tensor:
    """Return the same for YaRN, whose ramp is linear in the dimension, not in the frequency."""

    def pair_with(turns: float) -> float:
        ratio = rope.original_positions / (turns * 2 * math.pi)
        return rope.dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    # The thousandth keeps a ramp of no width from dividing by zero, as the paper's code does.
    width = (high - low) or 1e-3
    ramp = (torch.arange(rope.dim // 2, dtype=torch.float64) - low) / width
    return 1 - ramp.clamp(0, 1)
