"""Routed experts on the compiled products: an expert sees the rows that chose it, together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plait.kernels.linear import Weight
from plait.kernels.moe.weights import ExpertRouting, ExpertWeights
from plait.kernels.noise.elementary import exp

Linear = Callable[[Tensor, Weight], Tensor]


def routed_experts(x: Tensor, weights: ExpertWeights, linear: Linear) -> Tensor:
    """Return the sum of the chosen experts' outputs times their shares, [rows, hidden] fp32.

    Shares are added in the order of the experts, whatever the other rows chose.
    """
    chosen, shares = _choose(_sigmoid(linear(x, weights.router)), weights.bias, weights.routing)
    total = torch.zeros_like(x)
    for index in sorted(set(chosen.flatten().tolist())):
        rows, slot = (chosen == index).nonzero(as_tuple=True)
        answer = _expert(x[rows], weights, index, linear)
        total[rows] += answer * shares[rows, slot].unsqueeze(1)
    return total


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up; torch's own rounds an element by where it stands in memory."""
    return gate * _sigmoid(gate) * up


def _expert(x: Tensor, weights: ExpertWeights, index: int, linear: Linear) -> Tensor:
    gate, up = linear(x, weights.gate[index]), linear(x, weights.up[index])
    return linear(silu_mul(gate, up), weights.down[index])


def _choose(scores: Tensor, bias: Tensor | None, routing: ExpertRouting) -> tuple[Tensor, Tensor]:
    """Return the chosen experts of each row and their shares, both [rows, chosen]."""
    wanted = scores if bias is None else scores + bias
    if routing.kept_groups < routing.groups:
        wanted = _within_groups(wanted, routing)
    chosen = _best(wanted, routing.chosen)[1]
    shares = scores.gather(1, chosen)
    if routing.normalised:
        shares = shares / _sum(shares).unsqueeze(1)
    return chosen, shares * routing.scale


def _within_groups(wanted: Tensor, routing: ExpertRouting) -> Tensor:
    rows, size = wanted.shape[0], wanted.shape[1] // routing.groups
    best = _best(wanted.view(-1, size), 2)[0]
    kept = _best(_sum(best).view(rows, routing.groups), routing.kept_groups)[1]
    dropped = torch.ones(rows, routing.groups, dtype=torch.bool, device=wanted.device)
    dropped.scatter_(1, kept, False)
    return wanted.masked_fill(dropped.repeat_interleave(size, dim=1), -torch.inf)


def _best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest values of each row, and where they stand; of equals, the first."""
    ordered = values.sort(dim=1, descending=True, stable=True)
    return ordered.values[:, :count], ordered.indices[:, :count]


def _sum(values: Tensor) -> Tensor:
    """Return the sum of each row, from left to right."""
    total = values[:, 0]
    for column in values.T[1:]:
        total = total + column
    return total


def _sigmoid(x: Tensor) -> Tensor:
    small = exp(-x.abs())
    return torch.where(x < 0, small, 1.0) / (1.0 + small)
