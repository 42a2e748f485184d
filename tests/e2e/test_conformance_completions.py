"""/v1/completions through the official client, on whatever server conftest names."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types import Completion

from tests.fixtures.completion_pieces import Chunk, streamed, texts, whole
from tests.fixtures.prompts import text_of, text_options_of


def body(model: str, **options: Any) -> dict[str, Any]:
    fields = {"model": model, "prompt": text_of(model), "max_tokens": 10, "seed": 1}
    return fields | text_options_of(model) | options


def ask(client: openai.OpenAI, model: str, **options: Any) -> Completion:
    answer: Completion = client.completions.create(**body(model, **options))
    return answer


def raw(client: openai.OpenAI, model: str, **options: Any) -> Chunk:
    return whole(client, body(model, **options))


def stream(client: openai.OpenAI, model: str, **options: Any) -> list[Chunk]:
    return streamed(client, body(model, **options))


def test_answer_has_openai_shape(client: openai.OpenAI, model: str) -> None:
    have = ask(client, model)
    assert have.id.startswith("cmpl-")
    assert have.object == "text_completion"
    assert have.choices[0].text
    assert have.usage is not None
    assert have.usage.total_tokens == have.usage.prompt_tokens + have.usage.completion_tokens


def test_max_tokens_is_16_by_default(client: openai.OpenAI, model: str) -> None:
    have = ask(client, model, max_tokens=None, extra_body={"ignore_eos": True})
    assert have.usage is not None
    assert have.usage.completion_tokens == 16


def test_list_of_prompts_is_like_each_alone(client: openai.OpenAI, model: str) -> None:
    prompts = [text_of(model), "Once upon a time"]
    have = ask(client, model, prompt=prompts, n=2, temperature=1)
    assert [choice.index for choice in have.choices] == [0, 1, 2, 3]
    alone = [ask(client, model, prompt=p, n=2, temperature=1) for p in prompts]
    want = [choice.text for answer in alone for choice in answer.choices]
    assert [choice.text for choice in have.choices] == want


def test_token_prompts_equal_text_prompts(client: openai.OpenAI, model: str, http: Any) -> None:
    tokens = http.post("/tokenize", json={"model": model, "prompt": text_of(model)}).json()[
        "tokens"
    ]
    want = ask(client, model, temperature=0).choices[0].text
    assert ask(client, model, prompt=tokens, temperature=0).choices[0].text == want
    several = ask(client, model, prompt=[tokens, tokens], temperature=0)
    assert [choice.text for choice in several.choices] == [want, want]


def test_stream_equals_whole(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"prompt": [text_of(model), "One"], "n": 2, "temperature": 1}
    chunks = stream(client, model, **options)
    want = [choice.text for choice in ask(client, model, **options).choices]
    assert texts(chunks, 4) == want
    ends = [p.index for c in chunks for p in c.choices if p.finish_reason is not None]
    assert sorted(ends) == [0, 1, 2, 3]


def test_stream_usage_comes_last_and_alone(client: openai.OpenAI, model: str) -> None:
    chunks = stream(client, model, stream_options={"include_usage": True})
    assert all("usage" in chunk.model_fields_set for chunk in chunks)
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []


@pytest.mark.parametrize("streams", [False, True])
def test_echo_puts_the_prompt_first(client: openai.OpenAI, model: str, streams: bool) -> None:
    want = text_of(model) + ask(client, model, temperature=0).choices[0].text
    options: dict[str, Any] = {"echo": True, "temperature": 0}
    if streams:
        assert texts(stream(client, model, **options)) == [want]
    else:
        assert ask(client, model, **options).choices[0].text == want


def test_logprobs_stand_where_their_tokens_do(client: openai.OpenAI, model: str) -> None:
    choice = ask(client, model, logprobs=2, temperature=0).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)
    for top in logprobs.top_logprobs or ():
        assert 1 <= len(top) <= 3


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("streams", [False, True])
def test_echo_with_logprobs_scores_the_prompt(
    client: openai.OpenAI, scoring_model: str, streams: bool, n: int
) -> None:
    model = scoring_model
    options: dict[str, Any] = {"echo": True, "logprobs": 1, "temperature": 0, "n": n}
    chunks = stream(client, model, **options) if streams else [raw(client, model, **options)]
    for index in range(n):
        pieces = [p for chunk in chunks for p in chunk.choices if p.index == index]
        shown = [piece.logprobs for piece in pieces if piece.logprobs is not None]
        logprobs = [value for part in shown for value in part.token_logprobs]
        offsets = [offset for part in shown for offset in part.text_offset]
        text = "".join(piece.text for piece in pieces)
        assert text.startswith(text_of(model))
        assert logprobs[0] is None
        assert all(value is not None and value <= 0 for value in logprobs[1:])
        assert offsets == sorted(offsets)
        assert offsets[0] == 0


def test_scoring_without_writing(client: openai.OpenAI, scoring_model: str) -> None:
    model = scoring_model
    have = raw(client, model, echo=True, logprobs=0, max_tokens=0).choices[0]
    assert have.text == text_of(model)
    assert have.finish_reason == "length"
    assert have.logprobs is not None
    assert have.logprobs.text_offset[-1] < len(text_of(model))


def test_a_diffusion_model_scores_no_prompt(client: openai.OpenAI, canvas_model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, canvas_model, echo=True, logprobs=1)
    assert (caught.value.param, caught.value.code) == ("logprobs", "unsupported_parameter")


def test_stop_string(client: openai.OpenAI, model: str) -> None:
    free = ask(client, model, temperature=0, max_tokens=24).choices[0].text
    stop = free[len(free) // 2 :][:2]
    have = ask(client, model, temperature=0, max_tokens=24, stop=stop).choices[0]
    assert have.text == free[: free.index(stop)]
    assert have.finish_reason == "stop"


def test_best_of_equal_to_n_is_accepted(client: openai.OpenAI, model: str) -> None:
    assert len(ask(client, model, n=2, best_of=2).choices) == 2


def test_without_a_canvas_a_suffix_is_refused(client: openai.OpenAI, scoring_model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, scoring_model, suffix=".")
    assert (caught.value.param, caught.value.code) == ("suffix", "unsupported_parameter")


@pytest.mark.parametrize(("option", "value"), [("best_of", 999), ("prompt", []), ("prompt", "")])
def test_what_cannot_be_had_is_named(
    client: openai.OpenAI, model: str, option: str, value: Any
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, **{option: value})
    assert caught.value.param == option
