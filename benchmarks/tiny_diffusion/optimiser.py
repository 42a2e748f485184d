"""Muon for the stacked matrices, AdamW for embeddings and norms, and a running mean of both.

Source of Muon: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from benchmarks.tiny_diffusion.network import Network

MUON_RATE = 0.02
ADAM_RATE = 1.5e-3
MOMENTUM = 0.95
DECAY = 0.1  # of weights, times the learning rate
MATRICES = {"qkv": 3, "o": 1, "gate_up": 2, "down": 1}  # how many are stored as one
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Optimiser:
    """Both optimisers behind one step; `scale` is the schedule's share of the full rates."""

    def __init__(self, network: Network, *, muon: bool = True) -> None:
        named = dict(network.named_parameters())
        self._matrices = [named.pop(name) for name in MATRICES] if muon else []
        self._momenta = [torch.zeros_like(matrix) for matrix in self._matrices]
        plain = [value for value in named.values() if value.dim() < 3]
        heavy = [value for value in named.values() if value.dim() == 3]
        groups = [{"params": plain, "weight_decay": 0.0}]
        if heavy:
            groups.append({"params": heavy, "weight_decay": DECAY})
        self._adam = AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.95), fused=True)
        self._all = list(network.parameters())

    def step(self, scale: float) -> float:
        """Update the weights and forget the gradients; return the gradients' norm."""
        norm = torch.nn.utils.clip_grad_norm_(self._all, 1.0)
        for i, parts in enumerate(MATRICES.values() if self._matrices else ()):
            self._turn(self._matrices[i], self._momenta[i], parts, MUON_RATE * scale)
        for group in self._adam.param_groups:
            group["lr"] = ADAM_RATE * scale
        self._adam.step()
        for value in self._all:
            value.grad = None
        return float(norm)

    @torch.no_grad()
    def _turn(self, matrix: Tensor, momentum: Tensor, parts: int, rate: float) -> None:
        assert matrix.grad is not None
        momentum.lerp_(matrix.grad, 1 - MOMENTUM)
        update = matrix.grad.lerp(momentum, MOMENTUM)
        single = update.view(-1, matrix.shape[1] // parts, matrix.shape[2])
        stretch = max(1.0, single.shape[1] / single.shape[2]) ** 0.5
        matrix.mul_(1 - rate * DECAY)
        matrix.add_(orthogonal(single).view_as(matrix), alpha=-rate * stretch)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"adam": self._adam.state_dict(), "momenta": self._momenta}

    def load(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self._adam.load_state_dict(state["adam"])
        for momentum, saved in zip(self._momenta, state["momenta"], strict=True):
            momentum.copy_(saved)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return nearly the nearest orthogonal matrices, [n, rows, columns], by Newton-Schulz."""
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
