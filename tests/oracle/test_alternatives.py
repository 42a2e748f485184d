"""The alternatives that searches choose among, against asking of every token by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from plait.decoders.autoregressive.alternatives import list_alternatives
from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.contract.decoder import Alternative, DecodeRequest, FinishReason, SearchNeeds
from plait.decoders.contract.text import Text
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

VOCAB = 6


def state_of(
    output: Sequence[int], max_tokens: int, *, words: Sequence[Sequence[int]] = (), **params: Any
) -> AutoregressiveState:
    constraint = WordConstraint(words, END) if words else None
    for token in output if constraint is not None else ():
        assert constraint is not None
        assert constraint.accept_token(token)
    request = DecodeRequest(
        text=Text([1, 2, 3], output=output),
        sampling=SamplingParams(**params),
        max_tokens=max_tokens,
        stop_token_ids=frozenset({END}),
        constraint=constraint,
    )
    return AutoregressiveDecoder(VOCAB).start(request)


def best(state: AutoregressiveState, logits: Tensor, count: int) -> list[Alternative]:
    request = replace(state.request, search=SearchNeeds(num_alternatives=count))
    return [*list_alternatives(replace(state, request=request), logits)]


def row_of(seed: int) -> Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def plain(state: AutoregressiveState, logits: Tensor) -> list[Alternative]:
    """Return all alternatives by the words of the contract."""
    logprobs = logits.double().log_softmax(1)[0].tolist()
    order = sorted(range(VOCAB), key=lambda token: -logprobs[token])
    asked = [ask(state, token, logprobs[token]) for token in order]
    return [each for each in asked if each is not None]


def ask(state: AutoregressiveState, token: int, logprob: float) -> Alternative | None:
    """Return what a token would do; None: it may not follow."""
    params, text = state.request.sampling, state.request.text
    left = state.request.max_tokens - text.num_output - 1
    banned = any([*text, token][-len(word) :] == list(word) for word in params.bad_words)
    banned |= bool(params.allowed_token_ids) and token not in params.allowed_token_ids
    if banned or (token == END and text.num_output < params.min_tokens):
        return None
    finish: FinishReason | None = "stop" if token == END else None if left else "length"
    if isinstance(state.constraint, WordConstraint):
        after = state.constraint.fork()
        if not after.accept_token(token) or (token != END and after.min_tokens() > left):
            return None
        if after.is_terminated() or (not left and after.is_accepting()):
            finish = "stop"
    return Alternative(token, logprob, finish, token == END)


def same(have: Sequence[Alternative], want: Sequence[Alternative]) -> bool:
    facts = [[(a.token_id, a.finish, a.is_stop) for a in each] for each in (have, want)]
    close = [abs(a.logprob - b.logprob) < 1e-5 for a, b in zip(have, want, strict=False)]
    return facts[0] == facts[1] and all(close)


@pytest.mark.parametrize("max_tokens", [1, 2, 4])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"min_tokens": 2},
        {"bad_words": ((4,), (3, 0), (1, 2))},
        {"allowed_token_ids": (0, 2, END)},
        {"temperature": 0.0, "repetition_penalty": 3.0, "top_k": 1},
    ],
    ids=str,
)
def test_plain_texts(max_tokens: int, params: dict[str, Any]) -> None:
    """Penalties, truncation and temperature change no alternative."""
    for seed in range(20):
        output = [random.Random(seed).randrange(END) for _ in range(seed % max_tokens)]
        state, logits = state_of(output, max_tokens, **params), row_of(seed)
        want = plain(state, logits)
        for count in (1, 3, VOCAB + 2):
            assert same(best(state, logits, count), want[:count])


def test_constrained_texts_can_be_completed_within_the_budget() -> None:
    """At every beginning of every word, with every budget that some word fits."""
    places = [(word, length) for word in LANGUAGE for length in range(len(word))]
    for (word, length), max_tokens in product(places, range(1, 8)):
        if max_tokens < len(word):
            continue
        state = state_of(word[:length], max_tokens, words=LANGUAGE)
        logits = row_of(100 * length + max_tokens)
        want = plain(state, logits)
        assert want, "some word goes on here"
        for count in (1, 2, VOCAB):
            assert same(best(state, logits, count), want[:count])
        assert isinstance(state.constraint, WordConstraint)
        assert state.constraint.text == tuple(word[:length])


def test_an_end_that_is_followed_has_one_alternative() -> None:
    state = state_of([4], 6, words=LANGUAGE)
    state.closing, state.closing_start = (4, 4, 4, 4), 1
    (only,) = best(state, row_of(0), 3)
    assert (only.token_id, only.finish) == (4, None)


def test_logprobs_are_those_that_are_reported() -> None:
    state, logits = state_of([], 5, logprobs=VOCAB), row_of(7)
    reported = state.sampler.report(logits, [state.sampling], [0])[0]
    assert reported is not None
    have = best(state, logits, VOCAB)
    assert [a.token_id for a in have] == [token for token, _ in reported.top]
    assert [a.logprob for a in have] == pytest.approx([logprob for _, logprob in reported.top])


def test_the_least_probable_token_is_found_if_no_other_fits_the_budget() -> None:
    words = [*((token,) * 3 for token in range(6, 30)), (30,)]
    state = state_of([], 1, words=words)
    (only,) = best(state, torch.arange(31.0, 0.0, -1.0)[None], 1)
    assert (only.token_id, only.finish) == (30, "stop")
