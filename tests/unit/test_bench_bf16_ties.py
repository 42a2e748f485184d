"""What counts as a near tie of two workers, and what does not."""

from __future__ import annotations

from math import log

import pytest
import torch

from benchmarks.bf16_ties import (
    APART,
    Asked,
    Difference,
    Reading,
    first_difference,
    mass_before,
    noise_of,
    requests_of,
)
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.sampler import OrdinarySampler
from tests.fixtures.sampling_states import sampling_state

Pair = tuple[float, float]
NO_NOISE = (0.0, 0.0)


def difference(
    native: Pair, vllm: Pair, *, noise: Pair = NO_NOISE, temperature: float = 0.0
) -> Difference:
    """Return a difference; each worker's own token stands first."""
    asked = Asked("r", "mix", {"temperature": temperature, "seed": 3})
    return Difference(asked, 5, (7, 8), noise, (Reading(native), Reading(vllm)))


def cut(here: float, there: float) -> Difference:
    """Return a difference under top_p 0.9, with the native token's masses in vLLM and at home."""
    asked = Asked("r", "top_p", {"temperature": 1.0, "top_p": 0.9, "seed": 3})
    native = Reading((-3.0, -1.0), (there, 0.1))
    vllm = Reading((-1.0, -3.0), (0.1, here))
    return Difference(asked, 5, (7, 8), NO_NOISE, (native, vllm))


def test_each_workers_own_scores_choose_its_own_token() -> None:
    tie = difference((-1.0, -1.02), (-1.0, -1.05))
    assert tie.gaps == pytest.approx((0.02, 0.05))
    assert tie.apart == pytest.approx(0.07)
    assert tie.is_near_tie()


def test_noise_and_temperature_are_parts_of_the_score() -> None:
    """Noise favours the native worker's token by 0.5; at a temperature of 2 that is a nat."""
    tie = difference((-2.0, -1.05), (-1.0, -2.05), noise=(1.5, 1.0), temperature=2.0)
    assert tie.gaps == pytest.approx((0.05, 0.05))
    assert tie.is_near_tie()
    assert not difference((-2.0, -1.05), (-1.0, -2.05)).is_near_tie()


def test_what_both_would_have_chosen_is_no_tie() -> None:
    assert not difference((-1.0, -2.0), (-2.0, -1.0)).is_near_tie(), "vLLM's choice is a mistake"
    assert difference((-1.0, -1.05), (-1.05, -1.0)).is_near_tie(), "read again it rounds otherwise"


def test_workers_that_are_far_apart_agree_by_no_rounding() -> None:
    near, far = APART / 2 - 0.01, APART / 2 + 0.01
    assert difference((-1.0, -1.0 - near), (-1.0, -1.0 - near)).is_near_tie()
    assert not difference((-1.0, -1.0 - far), (-1.0, -1.0 - far)).is_near_tie()


@pytest.mark.parametrize(
    ("here", "there", "is_tie"),
    [(0.91, 0.89, True), (0.903, 0.902, True), (0.93, 0.92, False), (0.95, 0.87, False)],
)
def test_a_token_that_one_leaves_out_is_near_the_bound(
    here: float, there: float, is_tie: bool
) -> None:
    found = cut(here, there)
    assert found.cut == 1
    assert found.is_near_tie() == is_tie


def test_outputs_part_at_their_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 4, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_a_mass_is_that_of_likelier_tokens_at_a_temperature() -> None:
    row = [log(0.5), log(0.3), log(0.2)]
    assert mass_before(row, log(0.5), 1.0) == 0.0
    assert mass_before(row, log(0.2), 1.0) == pytest.approx(0.8)
    assert mass_before(row, log(0.3), 0.5) == pytest.approx(0.25 / 0.38)


def test_the_noise_is_that_of_a_draw() -> None:
    """Scores that take the noise back leave two tokens at a tie."""
    asked = Asked("r", "temperature", {"temperature": 1.0, "seed": 2**40 + 3})
    prompt, size = [1, 2, 3], 64
    noise = noise_of(asked, len(prompt), (5, 9), size)
    state = sampling_state(SamplingParams(seed=2**40 + 3), prompt)
    for favoured in (5, 9):
        row = torch.full((1, size), -100.0)
        row[0, 5], row[0, 9] = -noise[0], -noise[1]
        row[0, favoured] += 1e-3
        assert OrdinarySampler().sample(row, [state]).token_ids == [favoured]
    greedy = Asked("r", "greedy", {"temperature": 0.0, "seed": 3})
    assert noise_of(greedy, len(prompt), (5, 9), size) == NO_NOISE


def test_the_mixture_is_seeded() -> None:
    made = requests_of(8, 1)
    assert [each.mix for each in made] == ["greedy", "temperature", "top_p", "schema"] * 2
    assert made == requests_of(8, 1) != requests_of(8, 2)
