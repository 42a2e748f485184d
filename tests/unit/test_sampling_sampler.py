"""The sampler's edges: contradictory bans, logprobs, extreme parameters, what it leaves alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import isfinite, log

import pytest
import torch

from plait.decoders.sampling.logprobs import prompt_logprobs
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.sampler import OrdinarySampler
from tests.fixtures.backends import COMPILED
from tests.fixtures.sampling_states import sampling_state

VOCAB = 6
LOGITS = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def draw(
    params: SamplingParams,
    *,
    legal: Collection[int] | None = None,
    banned: Collection[int] = (),
    stop: Collection[int] = (),
    logits: Sequence[float] = LOGITS,
) -> tuple[int, float]:
    state = sampling_state(params, [0], stop_token_ids=stop)
    mask = None
    if legal is not None:
        mask = torch.tensor([[sum(1 << token for token in legal)]], dtype=torch.int32)
    draws = OrdinarySampler().sample(torch.tensor([list(logits)]), [state], mask, [banned])
    return draws.token_ids[0], draws.log_mass[0]


def test_the_constraint_wins_over_the_requests_bans() -> None:
    params = SamplingParams(allowed_token_ids=(0, 1), min_tokens=3)
    token, log_mass = draw(params, legal=[5], stop=[5])
    assert token == 5
    # of the law without the bans that were dropped
    assert log_mass == pytest.approx(5.0 - torch.tensor(LOGITS).logsumexp(0).item(), abs=1e-5)


def test_the_callers_bans_outlive_the_requests() -> None:
    params = SamplingParams(allowed_token_ids=(0, 1), temperature=0.0)
    assert draw(params, legal=[4, 5], banned=[5])[0] == 4


def test_the_constraint_outlives_the_callers_bans() -> None:
    assert draw(SamplingParams(), legal=[2], banned=[2])[0] == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_empty_constraint_still_gives_a_token(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, top_p=0.9)
    token, log_mass = draw(params, legal=[])
    assert 0 <= token < VOCAB
    assert log_mass == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_broken_logits_give_some_token(value: float, top_p: float) -> None:
    token, _ = draw(SamplingParams(top_p=top_p), logits=[value] * VOCAB)
    assert 0 <= token < VOCAB


def test_a_ban_is_not_a_bias() -> None:
    """-100 makes a token unlikely; if nothing else is legal it is drawn."""
    assert draw(SamplingParams(logit_bias={3: -100.0}), legal=[3])[0] == 3
    assert draw(SamplingParams(logit_bias={0: 100.0}))[0] == 0


@pytest.mark.parametrize("temperature", [1e-9, 1e-5, 1e-4])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert draw(SamplingParams(temperature=temperature))[0] == 5


def test_nothing_given_is_changed() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    mask = torch.full((4, 4), 0x55555555, dtype=torch.int32)
    want_logits, want_mask = logits.clone(), mask.clone()
    params = SamplingParams(
        top_k=5, repetition_penalty=1.5, logit_bias={1: 2.0}, bad_words=((1,),), logprobs=2
    )
    states = [sampling_state(params, [1, 2], stream=i) for i in range(4)]
    OrdinarySampler().sample(logits, states, mask, [[3]] * 4)
    assert torch.equal(logits, want_logits)
    assert torch.equal(mask, want_mask)
    assert all(state.text.output == [] for state in states)


def test_logprobs_are_of_the_untouched_row() -> None:
    params = SamplingParams(
        temperature=0.3, top_k=1, logit_bias={0: 100.0}, allowed_token_ids=(0, 1), logprobs=3
    )
    state = sampling_state(params, [0])
    (entry,) = OrdinarySampler().sample(torch.tensor([LOGITS]), [state]).logprobs
    assert entry is not None
    total = torch.tensor(LOGITS).logsumexp(0).item()
    assert entry.token_id == 0
    assert entry.logprob == pytest.approx(-total, abs=1e-5)
    assert [token for token, _ in entry.top] == [5, 4, 3]
    assert [value for _, value in entry.top] == pytest.approx(
        [5.0 - total, 4.0 - total, 3.0 - total], abs=1e-5
    )


def test_each_row_gets_the_logprobs_it_asked_for() -> None:
    asked = [None, 0, 4, None, 1]
    states = [sampling_state(SamplingParams(logprobs=k), [0]) for k in asked]
    entries = OrdinarySampler().sample(torch.zeros(5, VOCAB), states).logprobs
    assert [None if entry is None else len(entry.top) for entry in entries] == asked
    assert entries[2] is not None
    # equals by rising token
    assert [token for token, _ in entries[2].top] == [0, 1, 2, 3]


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    state = sampling_state(SamplingParams(logprobs=20), [0])
    (entry,) = OrdinarySampler().sample(torch.tensor([LOGITS]), [state]).logprobs
    assert entry is not None
    assert len(entry.top) == VOCAB


def test_a_report_may_be_had_of_any_token() -> None:
    state = sampling_state(SamplingParams(logprobs=0), [0])
    (entry,) = OrdinarySampler().report(torch.zeros(1, VOCAB), [state], [4])
    assert entry is not None
    assert (entry.token_id, entry.top) == (4, ())
    assert entry.logprob == pytest.approx(-log(VOCAB), abs=1e-6)


def test_prompt_logprobs_are_row_by_row() -> None:
    logits = torch.tensor([LOGITS, LOGITS[::-1]])
    have = prompt_logprobs(logits, [5, 5], 1, backend=COMPILED)
    total = torch.tensor(LOGITS).logsumexp(0).item()
    assert [entry.logprob for entry in have] == pytest.approx([5.0 - total, -total], abs=1e-5)
    assert [entry.top[0][0] for entry in have] == [5, 0]
    assert all(isfinite(entry.top[0][1]) for entry in have)
    assert prompt_logprobs(torch.zeros(0, VOCAB), [], 3, backend=COMPILED) == []


def test_an_empty_batch_is_nothing() -> None:
    draws = OrdinarySampler().sample(torch.zeros(0, VOCAB), [])
    assert (draws.token_ids, draws.logprobs, draws.log_mass) == ([], [], [])


def test_named_tokens_are_told_of_whatever_their_rank() -> None:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(5))
    law = torch.log_softmax(logits, dim=1)
    last = int(logits[0].argmin())
    params = [
        SamplingParams(logprobs=2, logprob_token_ids=(last, int(logits[0].argmax()))),
        SamplingParams(logprobs=0, logprob_token_ids=(3, 3)),
    ]
    states = [sampling_state(each, [0]) for each in params]
    first, second = OrdinarySampler().sample(logits, states).logprobs
    assert first is not None and second is not None
    assert [token for token, _ in first.top] == [*logits[0].topk(2).indices.tolist(), last]
    assert [token for token, _ in second.top] == [3]
    for row, entry in enumerate((first, second)):
        for token, logprob in entry.top:
            assert logprob == pytest.approx(float(law[row, token]), abs=1e-5)
