"""A tokenizer with more tokens than the embedding has rows: no request costs another one anything.

Random requests over all parameters that hold or make token ids meet the real front end and engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait.decoders.autoregressive.bitmask import allow_all_bitmask
from plait.decoders.autoregressive.commit import commit_token
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.sampler import Draws, OrdinarySampler
from plait.decoders.sampling.state import SamplingState
from plait.server.api.requests.chat import lower_chat
from plait.server.api.requests.completions import lower_completion
from plait.server.api.requests.job import RequestContext
from plait.server.api.responses.chat import ChatResponseWriter
from plait.server.api.responses.completions import CompletionResponseWriter
from plait.server.api.responses.outputs import GenerationOutput
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest, ServerError
from plait.server.settings import LimitSettings
from tests.fixtures.engine_pool import ADDED, EnginePool, engine_pool, write_unresized_model
from tests.fixtures.sampling_states import sampling_state
from tests.fixtures.word_constraint import WordConstraint

ROWS = 300  # of the embedding; the tokenizer knows three ids more
LIMITS = LimitSettings()
IDS = st.sampled_from([0, 5, 70, 255, ROWS - 1, ROWS, ROWS + 2, ROWS + 3])
WORDS = st.sampled_from(["a", "the", " 7", *ADDED, f"x{ADDED[0]}", f"{ADDED[2]}s"])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "logit_bias": st.dictionaries(IDS.map(str), st.sampled_from([-100, 2.5, 100]), max_size=3),
    "allowed_token_ids": st.lists(IDS, min_size=1, max_size=3),
    "bad_words": st.lists(WORDS, max_size=2),
    "stop_token_ids": st.lists(IDS, max_size=2),
    "stop": WORDS,
    "logprob_token_ids": st.lists(IDS, min_size=1, max_size=2),
    "prompt_logprobs": st.integers(-1, 3),
    "return_token_ids": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "min_tokens": st.integers(0, 4),
    "ignore_eos": st.booleans(),
    "temperature": st.sampled_from([0, 0.7, 2]),
    "top_p": st.sampled_from([0.1, 1]),
    "top_k": st.sampled_from([-1, 1, 2**31 - 1]),
    "min_p": st.sampled_from([0, 1]),
    "repetition_penalty": st.sampled_from([0.01, 10]),
    "presence_penalty": st.sampled_from([-2, 2]),
    "frequency_penalty": st.sampled_from([-2, 2]),
    "n": st.integers(1, 3),
    "structured_outputs": st.sampled_from(
        [{"choice": [*ADDED]}, {"regex": "[a-z<>|]{1,5}"}, {"json": {"const": ADDED[2]}}]
    ),
    "decoding": st.sampled_from([{"drafter": "off"}, {"drafter": ["n-gram", "suffix"]}]),
}
PROMPTS = st.one_of(
    WORDS, st.lists(WORDS, min_size=1, max_size=2), st.lists(IDS, min_size=1, max_size=4)
)
COMPLETION = FIELDS | {
    "echo": st.booleans(),
    "logprobs": st.integers(0, 3),
    "suffix": WORDS,
}
CHAT = FIELDS | {
    "prediction": WORDS.map(lambda text: {"type": "content", "content": f"{text} {text}"}),
    "logprobs": st.just(True),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> EnginePool:
    folder = write_unresized_model(tmp_path_factory.mktemp("models") / "unresized")
    made = engine_pool(folder, kv_cache_bytes=2**22)
    assert made.tokenizer.vocab_size == ROWS + len(ADDED) > made.info.vocab_size == ROWS
    return made


async def _answer(pool: EnginePool, body: dict[str, Any]) -> bytes:
    body = {"model": "unresized", "max_tokens": 6, "seed": 3} | body
    caller = RequestContext("", time.monotonic())
    if "messages" in body:
        chat = ChatRequest.model_validate(body)
        job = await lower_chat(pool, LIMITS, chat, caller)
        return await ChatResponseWriter(job, chat, GenerationOutput(pool, job)).body()
    completion = CompletionRequest.model_validate(body)
    job = await lower_completion(pool, LIMITS, completion, caller)
    return await CompletionResponseWriter(job, completion, GenerationOutput(pool, job)).body()


def _text(answer: bytes) -> bytes:
    return answer[answer.index(b'"choices"') :]


async def _beside(pool: EnginePool, hostile: dict[str, Any]) -> None:
    """Run a request beside a plain one, whose text must be what it is alone."""
    plain = {"prompt": "the rain in", "temperature": 1, "max_tokens": 8}
    want = _text(await _answer(pool, plain))
    have, outcome = await asyncio.gather(
        _answer(pool, plain), _answer(pool, hostile), return_exceptions=True
    )
    assert isinstance(have, bytes) and _text(have) == want
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, ServerError) and outcome.status == 400, outcome
    pool.engine.check_integrity()
    assert not pool.engine.has_work


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({"prompt": PROMPTS}, optional=COMPLETION))
def test_no_completion_stops_the_engine(pool: EnginePool, body: dict[str, Any]) -> None:
    asyncio.run(_beside(pool, body))


@settings(max_examples=100, deadline=None)
@given(WORDS, st.fixed_dictionaries({}, optional=CHAT))
def test_no_chat_stops_the_engine(pool: EnginePool, text: str, body: dict[str, Any]) -> None:
    asyncio.run(_beside(pool, body | {"messages": [{"role": "user", "content": text}]}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"301": 100}}, "logit_bias"),
        ({"allowed_token_ids": [4, 300]}, "allowed_token_ids"),
        ({"bad_words": [f"x {ADDED[2]}"]}, "bad_words"),
        ({"stop_token_ids": [302]}, "stop_token_ids"),
        ({"logprob_token_ids": [9, 302], "logprobs": 0}, "logprob_token_ids"),
        ({"prompt": [4, 300]}, "prompt"),
        ({"prompt": f"the {ADDED[0]}"}, "prompt"),
    ],
)
def test_what_the_model_has_no_row_for_is_named(
    pool: EnginePool, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        asyncio.run(_answer(pool, {"prompt": "a"} | fields))
    assert caught.value.param == param
    assert "300" in caught.value.message


def test_a_prediction_of_such_tokens_is_only_less_of_a_help(pool: EnginePool) -> None:
    plain = {"messages": [{"role": "user", "content": "a"}]}
    guess = {"type": "content", "content": f"the {ADDED[2]} of {ADDED[0]}"}
    want, have = (
        asyncio.run(_answer(pool, body)) for body in (plain, plain | {"prediction": guess})
    )
    assert _text(have).split(b'"usage"')[0] == _text(want).split(b'"usage"')[0]


def test_a_form_is_spelled_with_the_tokens_that_are_there(pool: EnginePool) -> None:
    body = {"prompt": "a", "structured_outputs": {"choice": [ADDED[2]]}, "max_tokens": 16}
    assert b'"text":"addedword"' in asyncio.run(_answer(pool, body))


def test_a_form_that_only_a_token_without_a_row_makes_short_is_refused(pool: EnginePool) -> None:
    body = {"prompt": "a", "structured_outputs": {"choice": [ADDED[2]]}, "max_tokens": 3}
    with pytest.raises(BadRequest, match="shortest answer") as caught:
        asyncio.run(_answer(pool, body))
    assert caught.value.code == "constraint_exceeds_max_tokens"


@dataclass(frozen=True)
class Impatient(OrdinarySampler):
    """Gives up where the same draw is asked for again and again."""

    drawn: list[int] = field(default_factory=list)

    def sample(
        self,
        logits: Tensor,
        states: Sequence[SamplingState],
        bitmask: Tensor | None = None,
        banned: Sequence[Collection[int]] | None = None,
    ) -> Draws:
        self.drawn.append(len(states))
        assert len(self.drawn) < 20, "it does not come to an end"
        return super().sample(logits, states, bitmask, banned)


def test_a_text_that_can_not_end_in_time_ends_all_the_same() -> None:
    """Admission lets none in; should one get there, the engine must not hang."""
    sampling = sampling_state(SamplingParams(), [0], stop_token_ids=[5])
    constraint = WordConstraint([(0, 1, 2)], 5)
    sampler = Impatient()
    asked = DecodeRequest(sampling.text, SamplingParams(), 1, frozenset([5]), constraint)
    state = AutoregressiveState(asked, sampling, sampler)
    logits = torch.zeros(1, 6)
    bitmask = allow_all_bitmask(1, 6)
    constraint.fill_bitmask(bitmask, 0)
    outcome = commit_token(state, 0, sampler.sample(logits, [sampling], bitmask), logits)
    assert (outcome.emit, outcome.finish) == ((0,), "length")
