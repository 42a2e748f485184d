"""Routed experts: agreement with the oracle, and rows that do not know their neighbours."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plait.kernels import extension
from plait.kernels.linear import Mode, dequantize, from_dense
from plait.kernels.moe import ExpertRouting, ExpertWeights
from plait.kernels.moe.routed import silu_mul
from tests.fixtures.backends import COMPILED, REFERENCE, KernelBackend

HIDDEN, FFN, EXPERTS = 40, 24, 12
ROUTINGS = {
    "flat": ExpertRouting(chosen=3),
    "groups": ExpertRouting(chosen=3, groups=4, kept_groups=2, scale=2.5),
    "one of a group": ExpertRouting(chosen=2, groups=12, kept_groups=5),
    "as scored": ExpertRouting(chosen=4, normalised=False),
    "one expert": ExpertRouting(chosen=1, groups=3, kept_groups=1),
}


def make_weights(
    routing: ExpertRouting, mode: Mode = "fp32", backend: KernelBackend = COMPILED
) -> ExpertWeights:
    """Return random weights; the same ones for every backend."""
    generator = torch.Generator().manual_seed(5)

    def random(n: int, k: int) -> Tensor:
        return torch.randn(n, k, generator=generator) / math.sqrt(k)

    return ExpertWeights(
        routing=routing,
        router=backend.pack(from_dense(random(EXPERTS, HIDDEN), "fp32")),
        bias=random(1, EXPERTS)[0],
        gate=[backend.pack(from_dense(random(FFN, HIDDEN), mode)) for _ in range(EXPERTS)],
        up=[backend.pack(from_dense(random(FFN, HIDDEN), mode)) for _ in range(EXPERTS)],
        down=[backend.pack(from_dense(random(HIDDEN, FFN), mode)) for _ in range(EXPERTS)],
    )


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_agreement_with_the_oracle(name: str, mode: Mode) -> None:
    x = torch.randn(37, HIDDEN, generator=torch.Generator().manual_seed(1))
    want = REFERENCE.routed_experts(x, make_weights(ROUTINGS[name], mode, REFERENCE))
    have = COMPILED.routed_experts(x, make_weights(ROUTINGS[name], mode))
    tolerance = 1e-5 if mode == "fp32" else 2e-2
    torch.testing.assert_close(have, want, atol=tolerance, rtol=tolerance)


def test_the_bias_chooses_but_takes_no_share() -> None:
    weights = make_weights(ExpertRouting(chosen=1, scale=1.0))
    bias = torch.full((EXPERTS,), -5.0)
    bias[7] = 5.0
    only = replace(weights, bias=bias)
    x = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(2))
    gate, up, down = (dequantize(w[7]) for w in (only.gate, only.up, only.down))
    want = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(COMPILED.routed_experts(x, only), want, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not extension.is_available(), reason="no compiled kernels")
@pytest.mark.parametrize("mode", ["fp32", "bf16", "int8"])
def test_a_row_has_the_same_bits_in_every_batch(mode: Mode) -> None:
    weights = make_weights(ROUTINGS["groups"], mode)
    x = torch.randn(50, HIDDEN, generator=torch.Generator().manual_seed(3)) * 3
    whole = COMPILED.routed_experts(x, weights)
    for rows in ([0], [49, 3], list(range(7, 24)), list(range(49, -1, -1))):
        assert torch.equal(COMPILED.routed_experts(x[rows], weights), whole[rows])


def test_the_steady_silu_is_silu() -> None:
    gate, up = torch.linspace(-100, 100, 20001), torch.linspace(1, 2, 20001)
    want = torch.nn.functional.silu(gate.double()) * up.double()
    torch.testing.assert_close(silu_mul(gate, up).double(), want, atol=1e-30, rtol=1e-6)
