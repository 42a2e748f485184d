"""Reference routed experts: every expert on every row, most of them times zero."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.kernels.elementwise.reference import silu_mul
from plait.kernels.linear.reference import linear
from plait.kernels.moe.weights import ExpertRouting, ExpertWeights


def routed_experts(x: Tensor, weights: ExpertWeights) -> Tensor:
    """Return the sum of the chosen experts' outputs times their shares, [rows, hidden] fp32."""
    shares = _shares(linear(x, weights.router).sigmoid(), weights.bias, weights.routing)
    total = torch.zeros_like(x)
    for index, parts in enumerate(zip(weights.gate, weights.up, weights.down, strict=True)):
        gate, up, down = parts
        answer = linear(silu_mul(linear(x, gate), linear(x, up)), down)
        total += answer * shares[:, index : index + 1]
    return total


def _shares(scores: Tensor, bias: Tensor | None, routing: ExpertRouting) -> Tensor:
    """Return each expert's share of each row, [rows, experts], zero for those not chosen."""
    wanted = scores if bias is None else scores + bias
    grouped = wanted.view(wanted.shape[0], routing.groups, -1)
    best = grouped.topk(min(2, grouped.shape[2]), dim=2).values.sum(2)
    kept = torch.zeros_like(best).scatter(1, best.topk(routing.kept_groups, dim=1).indices, 1.0)
    allowed = grouped.masked_fill(kept.unsqueeze(2) == 0, -torch.inf).flatten(1)
    chosen = allowed.topk(routing.chosen, dim=1).indices
    shares = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
    if routing.normalised:
        shares /= shares.sum(1, keepdim=True)
    return shares * routing.scale
