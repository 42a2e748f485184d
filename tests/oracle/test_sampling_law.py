"""The sampler's law against its definitions, and what a draw may depend on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import exp, inf, log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from plait.decoders.sampling.order import draw_order
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.sampler import OrdinarySampler
from plait.decoders.sampling.state import SamplingState
from plait.kernels import extension
from tests.fixtures.backends import REFERENCE, KernelBackend, both_backends
from tests.fixtures.sampling_law import Situation, base_law, law, scores
from tests.fixtures.sampling_states import grow, sampling_state

# all numbers below are short binary fractions, so float32 makes no rounding error in the scores
TABLES = [
    [Fraction(x) for x in row]
    for row in (
        [1.5, -0.75, 2.25, 0.0, -3.0, 1.25],
        [0.5, 0.5, 2.0, 0.5, 2.0, -1.0],
        [-1.0, -2.0, -0.5, -4.0, -0.25, -8.0],
    )
]
PENALTIES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 2.0},
    {"presence_penalty": 0.5, "frequency_penalty": 0.25},
    {"repetition_penalty": 0.5, "presence_penalty": -1.0, "frequency_penalty": 0.75},
]
BANS: list[dict[str, Any]] = [
    {},
    {"logit_bias": {0: 4.0, 2: -100.0}},
    {"allowed_token_ids": (0, 1, 3, 5)},
    {"bad_words": ((1,), (4, 3, 2), (2, 3, 0)), "min_tokens": 4},
]
SHAPES: list[dict[str, Any]] = [
    {"temperature": 0.0, "top_k": 2},
    {"temperature": 0.5, "top_k": 3},
    {"temperature": 2.0, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.13, "top_k": 4, "top_p": 0.85},
]
CONSTRAINTS = [None, (0, 2, 3, 5)]
VOCAB = 6
TEXT: dict[str, tuple[int, ...]] = {"prompt": (5, 4, 4), "output": (2, 4, 3), "stop": (5,)}


def situations() -> list[Situation]:
    return [
        Situation(SamplingParams(**penalty, **ban, **shape), legal=legal, banned=banned, **TEXT)
        for penalty, ban, shape, legal, banned in product(
            PENALTIES, BANS, SHAPES, CONSTRAINTS, [(), (3,)]
        )
    ]


def state(now: Situation, sequence_index: int = 0) -> SamplingState:
    made = sampling_state(now.params, now.prompt, stop_token_ids=now.stop, stream=sequence_index)
    for token in now.output:
        grow(made, token)
    return made


def bitmask(situations: list[Situation]) -> Tensor:
    words = [-1 if now.legal is None else sum(1 << t for t in now.legal) for now in situations]
    return torch.tensor(words, dtype=torch.int32)[:, None]


def within(have: Counter[int], want: list[float], draws: int) -> None:
    """Compare frequencies with a law: nothing outside the support, 4 standard errors inside."""
    for token, mass in enumerate(want):
        if mass == 0.0:
            assert have[token] == 0
        else:
            error = sqrt(mass * (1.0 - mass) / draws)
            assert abs(have[token] / draws - mass) <= 4.0 * error + 1e-12


@both_backends
@pytest.mark.parametrize("table", TABLES)
def test_scores_are_the_definitions(table: list[Fraction], backend: KernelBackend) -> None:
    grid = situations()
    logits = torch.tensor([float(x) for x in table]).expand(len(grid), -1)
    have = OrdinarySampler(backend).scores(
        logits, [state(now) for now in grid], bitmask(grid), [now.banned for now in grid]
    )
    for now, row in zip(grid, have.tolist(), strict=True):
        want = [-inf if score is None else float(score) for score in scores(table, now)]
        assert row == want, now


@both_backends
@pytest.mark.parametrize("now", situations()[::17])
def test_frequencies_are_the_law(now: Situation, backend: KernelBackend) -> None:
    draws = 1000
    states = [state(now, sequence_index) for sequence_index in range(draws)]
    table = TABLES[0]
    logits = torch.tensor([float(x) for x in table]).expand(draws, -1)
    have = OrdinarySampler(backend).sample(
        logits, states, bitmask([now] * draws), [now.banned] * draws
    )
    within(Counter(have.token_ids), law(table, now), draws)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_over_positions(temperature: float) -> None:
    draws = 5000
    now = Situation(SamplingParams(temperature=temperature, seed=3))
    states = [sampling_state(now.params, range(length)) for length in range(draws)]
    logits = torch.tensor([float(x) for x in TABLES[1]]).expand(draws, -1)
    have = OrdinarySampler().sample(logits, states)
    within(Counter(have.token_ids), law(TABLES[1], now), draws)


@pytest.mark.parametrize(
    "other", [{"seed": 8}, {"seed": 7 + 2**32}, {"sequence_index": 1}, {"prompt": range(9999)}]
)
def test_other_keys_are_independent(other: dict[str, Any]) -> None:
    """Seed (either half), sequence and position each give draws that know nothing of the others."""
    draws = 4000
    sampler = OrdinarySampler()
    logits = torch.zeros(draws, 3)

    def tokens(seed: int = 7, sequence_index: int = 0, prompt: range = range(0)) -> list[int]:
        params = SamplingParams(seed=seed)
        states = [
            sampling_state(params, range(len(prompt) + i), stream=sequence_index)
            for i in range(draws)
        ]
        return sampler.sample(logits, states).token_ids

    pairs = Counter(zip(tokens(), tokens(**other), strict=True))
    joint = Counter({3 * a + b: count for (a, b), count in pairs.items()})
    within(joint, [1 / 9] * 9, draws)


def mixed_batch(rows: int = 16, vocab: int = 700) -> tuple[Tensor, list[SamplingState], Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(rows, vocab, generator=generator) * 3.0
    kinds = [
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.2, top_p=0.9, min_p=0.01),
        SamplingParams(temperature=0.9, repetition_penalty=1.3, top_k=40, logprobs=2),
        SamplingParams(frequency_penalty=0.4, logit_bias={3: 5.0}, bad_words=((1,),)),
    ]
    states = [sampling_state(kinds[i % 5], range(i + 1), stream=i % 3) for i in range(rows)]
    words = torch.full((rows, -(-vocab // 32)), -1, dtype=torch.int32)
    words[::4] = torch.randint(
        -(2**31), 2**31, (len(words[::4]), words.shape[1]), generator=generator
    ).to(torch.int32)
    return logits, states, words


@both_backends
def test_a_draw_ignores_the_batch(backend: KernelBackend) -> None:
    logits, states, words = mixed_batch()
    sampler = OrdinarySampler(backend)
    together = sampler.sample(logits, states, words)
    for row, single in enumerate(states):
        alone = sampler.sample(logits[row : row + 1], [single], words[row : row + 1])
        assert alone.token_ids == [together.token_ids[row]]
        assert alone.log_mass == [together.log_mass[row]]
        assert alone.logprobs == [together.logprobs[row]]
    order = [(7 * i + 3) % len(states) for i in range(len(states))]
    shuffled = sampler.sample(logits[order], [states[i] for i in order], words[order])
    assert shuffled.token_ids == [together.token_ids[i] for i in order]


def test_an_unconstrained_row_ignores_a_narrow_bitmask() -> None:
    """Tokens beyond the bitmask stay legal in its rows of ones, whatever the other rows are."""
    logits = torch.zeros(2, 40)
    logits[:, 39] = 50.0
    states = [sampling_state(SamplingParams(top_p=0.9), ())] * 2
    words = torch.tensor([[-1], [0b110]], dtype=torch.int32)
    have = OrdinarySampler().sample(logits, states, words).token_ids
    assert have[0] == 39
    assert have[1] in (1, 2)


@both_backends
def test_plain_and_edited_rows_agree(backend: KernelBackend) -> None:
    """The path for rows that need nothing but a temperature is only a shorter way to the same."""
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(30, 3000, generator=generator) * 5.0
    for temperature in (0.0, 0.3, 1.0, 1.7):
        plain = SamplingParams(temperature=temperature, seed=11)
        edits = SamplingParams(temperature=temperature, seed=11, logit_bias={0: 0.0})
        have = [
            OrdinarySampler(backend)
            .sample(logits, [sampling_state(params, range(i)) for i in range(30)])
            .token_ids
            for params in (plain, edits)
        ]
        assert have[0] == have[1]


@pytest.mark.skipif(not extension.is_available(), reason="no compiled kernels")
def test_compiled_draws_are_the_oracles() -> None:
    logits, states, words = mixed_batch(vocab=5001)
    have = OrdinarySampler().sample(logits, states, words)
    want = OrdinarySampler(REFERENCE).sample(logits, states, words)
    assert have.token_ids == want.token_ids
    assert have.log_mass == pytest.approx(want.log_mass, abs=1e-5)


@both_backends
def test_the_log_mass_is_the_legal_share_of_the_truncated_law(backend: KernelBackend) -> None:
    """exp(log_mass) == sum of p(v) over the legal v; it holds in all rows of a batch."""
    hot = [now for now in situations() if now.params.temperature > 0]
    grid = [*hot, *(replace(now, legal=(1, 4)) for now in hot)]
    logits = torch.tensor([float(x) for x in TABLES[0]]).expand(len(grid), -1)
    have = OrdinarySampler(backend).sample(
        logits, [state(now) for now in grid], bitmask(grid), [now.banned for now in grid]
    )
    num_outside = 0
    for now, value in zip(grid, have.log_mass, strict=True):
        legal = set(range(VOCAB) if now.legal is None else now.legal) - set(now.banned)
        want = sum(mass for token, mass in enumerate(base_law(TABLES[0], now)) if token in legal)
        if now.legal is None and not now.banned:
            assert value == 0.0, now
        assert exp(value) == pytest.approx(want, abs=1e-6), now
        num_outside += value == -inf
    assert num_outside > 0


@both_backends
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("legal", [(0, 2, 3, 5), (1, 3, 4), (4,)])
def test_draws_are_properly_weighted(
    legal: tuple[int, ...], shape: dict[str, Any], backend: KernelBackend
) -> None:
    """E[exp(log_mass) 1[token = v]] == p(v) 1[v is legal], by frequencies: 4 standard errors."""
    draws, now = 1000, Situation(SamplingParams(**shape), legal=legal)
    states = [state(now, stream) for stream in range(draws)]
    logits = torch.tensor([float(x) for x in TABLES[0]]).expand(draws, -1)
    have = OrdinarySampler(backend).sample(logits, states, bitmask([now] * draws))
    weight = exp(have.log_mass[0])
    assert set(have.log_mass) == {have.log_mass[0]}
    assert set(have.token_ids) <= set(legal)
    counts = Counter(have.token_ids)
    for token, mass in enumerate(base_law(TABLES[0], now)):
        share = mass / weight if weight and token in legal else 0.0
        error = weight * sqrt(share * (1.0 - share) / draws)
        want = mass if token in legal else 0.0
        assert abs(weight * counts[token] / draws - want) <= 4.0 * error + 1e-6


@both_backends
def test_what_truncation_leaves_no_legal_token_of_is_drawn_from_the_best(
    backend: KernelBackend,
) -> None:
    """Legal always, of probability 0 under the request's own law, and said so."""
    now = Situation(SamplingParams(temperature=0.5, top_k=2), legal=(1, 3, 4))
    draws = 500
    logits = torch.tensor([float(x) for x in TABLES[0]]).expand(draws, -1)
    states = [state(now, stream) for stream in range(draws)]
    have = OrdinarySampler(backend).sample(logits, states, bitmask([now] * draws))
    assert set(have.log_mass) == {-inf}
    assert set(have.token_ids) == {1, 3}
    within(Counter(have.token_ids), law(TABLES[0], now), draws)


@both_backends
@pytest.mark.parametrize("now", situations()[::5])
def test_the_order_is_that_of_draws_under_bans(now: Situation, backend: KernelBackend) -> None:
    """Each token is what is drawn if those before it are banned, as long as one is legal."""
    sampler, table = OrdinarySampler(backend), TABLES[0]
    logits = torch.tensor([[float(x) for x in table]])
    mask = None if now.legal is None else bitmask([now])
    for stream in range(10):
        order = list(sampler.order(logits, state(now, stream), mask))
        legal = set(range(VOCAB) if now.legal is None else now.legal)
        assert len(order) == len(set(order))
        allowed = {token for token, score in enumerate(scores(table, now)) if score is not None}
        assert set(order) >= allowed - set(now.banned)
        assert set(order) <= legal
        for i, token in enumerate(order):
            banned = order[:i]
            if not any(base_law(table, now)[t] > 0 for t in legal - set(banned)):
                break
            have = sampler.sample(logits, [state(now, stream)], mask, [banned])
            assert have.token_ids == [token]


def test_the_order_of_a_wide_row_is_a_sort() -> None:
    values = torch.randint(0, 40, (5000,), generator=torch.Generator().manual_seed(1)).float()
    values[::7] = -inf
    values[3] = float("nan")
    want = sorted(
        (i for i in range(5000) if values[i] > -inf), key=lambda i: (-float(values[i]), i)
    )
    assert list(draw_order(values, None)) == want


@both_backends
@pytest.mark.parametrize("now", situations()[8::9])
def test_the_base_law_is_told_of_any_token(now: Situation, backend: KernelBackend) -> None:
    """Before the constraint, the caller's bans and factors; greedy counts as temperature 1."""
    hot = now if now.params.temperature else replace(now, params=replace(now.params, temperature=1))
    hot = replace(hot, params=replace(hot.params, top_k=0)) if hot is not now else hot
    logits = torch.tensor([[float(x) for x in TABLES[0]]])
    scaled = state(now)
    scaled.log_factors = {0: -3.0}
    have = OrdinarySampler(backend).base_logprobs(logits, scaled, range(VOCAB))
    assert [exp(each) for each in have] == pytest.approx(base_law(TABLES[0], hot), abs=1e-6)


@both_backends
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("legal", [None, (0, 2, 3, 5)])
def test_factors_scale_a_draw_and_its_mass(
    legal: tuple[int, ...] | None, shape: dict[str, Any], backend: KernelBackend
) -> None:
    """v is drawn in proportion to p(v) f(v) over the legal; exp(log_mass) is their sum."""
    draws, now = 1000, Situation(SamplingParams(**shape), legal=legal)
    factors = {0: 0.5, 2: 0.125, 4: 0.25, 5: 0.0}
    states = [state(now, stream) for stream in range(draws)]
    for each in states:
        each.log_factors = {token: log(f) if f else -inf for token, f in factors.items()}
    logits = torch.tensor([float(x) for x in TABLES[0]]).expand(draws, -1)
    mask = bitmask([now] * draws) if legal else None
    have = OrdinarySampler(backend).sample(logits, states, mask)
    masses = [
        mass * factors.get(token, 1.0) * (legal is None or token in legal)
        for token, mass in enumerate(base_law(TABLES[0], now))
    ]
    assert exp(have.log_mass[0]) == pytest.approx(sum(masses), abs=1e-6)
    within(Counter(have.token_ids), [mass / sum(masses) for mass in masses], draws)
    grown = [each.ahead(1) for each in states[:1]]
    grow(states[0], 1)
    assert not states[0].log_factors
    assert not grown[0].log_factors
