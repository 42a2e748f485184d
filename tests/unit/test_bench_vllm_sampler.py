"""The gate before the times of two samplers: it passes right draws and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.vllm_sampler.gate import STANDARD_ERRORS, Surprise, greedy_fault

NUM_ROWS, VOCAB = 4000, 50


@pytest.fixture(scope="module")
def scores() -> Tensor:
    made = 2 * torch.randn(NUM_ROWS, VOCAB, generator=torch.Generator().manual_seed(1))
    return made.masked_fill(made < 0, -torch.inf)


def drawn(scores: Tensor) -> list[int]:
    generator = torch.Generator().manual_seed(2)
    tokens: list[int] = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0].tolist()
    return tokens


def added(scores: Tensor, tokens: list[int]) -> Surprise:
    found = Surprise()
    for first in range(0, NUM_ROWS, 1000):
        found.add(scores[first : first + 1000], tokens[first : first + 1000])
    return found


def test_draws_from_the_distribution_pass(scores: Tensor) -> None:
    found = added(scores, drawn(scores))
    assert abs(found.standard_errors) < STANDARD_ERRORS
    assert found.fault("x") == ""


@pytest.mark.parametrize("temperature", [0.9, 1.1])
def test_another_temperature_is_seen(scores: Tensor, temperature: float) -> None:
    found = added(scores, drawn(scores / temperature))
    assert (found.standard_errors > STANDARD_ERRORS) == (temperature > 1)
    assert "standard errors off" in found.fault("x")


def test_a_token_outside_is_seen(scores: Tensor) -> None:
    tokens = drawn(scores)
    tokens[5] = int(scores[5].argmin())
    assert added(scores, tokens).fault("x") == "x: 1 tokens lie outside of the distribution"


def test_few_greedy_tokens_may_differ() -> None:
    assert greedy_fault(1, 100) == greedy_fault(0, 10) == ""
    assert greedy_fault(2, 100) == "2 of 100 greedy tokens differ"
