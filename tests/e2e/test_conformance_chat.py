"""/v1/chat/completions through the official client, on whatever server conftest names."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tests.fixtures.prompts import chat_of


class Person(BaseModel):
    name: str
    age: int
    is_student: bool


def fields_of(model: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"model": model, "messages": chat_of(model), "max_tokens": 12, "seed": 1} | options


def ask(client: openai.OpenAI, model: str, **options: Any) -> ChatCompletion:
    answer: ChatCompletion = client.chat.completions.create(**fields_of(model, options))
    return answer


def stream(client: openai.OpenAI, model: str, **options: Any) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(stream=True, **fields_of(model, options)))


def texts(chunks: list[ChatCompletionChunk], n: int = 1) -> list[str]:
    joined = [""] * n
    for chunk in chunks:
        for choice in chunk.choices:
            joined[choice.index] += choice.delta.content or ""
    return joined


def test_answer_has_openai_shape(client: openai.OpenAI, model: str) -> None:
    have = ask(client, model)
    assert have.id.startswith("chatcmpl-")
    assert have.object == "chat.completion"
    assert have.model == model
    assert have.system_fingerprint
    assert have._request_id
    choice = have.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")


def test_usage_adds_up(client: openai.OpenAI, model: str) -> None:
    have = ask(client, model).usage
    assert have is not None
    assert have.prompt_tokens > 0
    assert 0 < have.completion_tokens <= 12
    assert have.total_tokens == have.prompt_tokens + have.completion_tokens
    assert have.prompt_tokens_details is not None
    assert have.prompt_tokens_details.cached_tokens is not None
    assert have.completion_tokens_details is not None
    assert have.completion_tokens_details.accepted_prediction_tokens == 0


def test_max_completion_tokens_wins(client: openai.OpenAI, model: str) -> None:
    options = {"extra_body": {"ignore_eos": True}}
    have = ask(client, model, max_tokens=9, max_completion_tokens=5, **options)
    assert have.usage is not None
    assert have.usage.completion_tokens == 5
    assert have.choices[0].finish_reason == "length"


def test_same_seed_same_text(client: openai.OpenAI, model: str) -> None:
    first, second = (ask(client, model, seed=7, temperature=1) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content


def test_a_drawn_seed_repeats_its_answer(client: openai.OpenAI, model: str) -> None:
    first = ask(client, model, seed=None, temperature=1)
    drawn = (first.model_extra or {})["seed"]
    second = ask(client, model, seed=drawn, temperature=1)
    assert first.choices[0].message.content == second.choices[0].message.content


def test_n_answers_differ_and_are_indexed(client: openai.OpenAI, model: str) -> None:
    have = ask(client, model, n=3, temperature=1, max_tokens=20)
    assert [choice.index for choice in have.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in have.choices}) > 1


def test_greedy_n_answers_are_equal(client: openai.OpenAI, model: str) -> None:
    have = ask(client, model, n=2, temperature=0)
    assert have.choices[0].message.content == have.choices[1].message.content


def test_stream_equals_whole(client: openai.OpenAI, model: str) -> None:
    whole = ask(client, model, n=3, temperature=1)
    chunks = stream(client, model, n=3, temperature=1)
    assert texts(chunks, 3) == [choice.message.content for choice in whole.choices]


def test_stream_begins_with_roles_and_ends_with_reasons(client: openai.OpenAI, model: str) -> None:
    chunks = stream(client, model, n=2)
    for index in range(2):
        mine = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert (mine[0].delta.role, mine[0].delta.content) == ("assistant", "")
        assert mine[-1].finish_reason in ("stop", "length")
        assert mine[-1].delta.model_dump(exclude_unset=True) == {}
        assert all(choice.finish_reason is None for choice in mine[:-1])
        assert all(choice.delta.role is None for choice in mine[1:])
    assert len({chunk.id for chunk in chunks}) == 1
    assert len({chunk.created for chunk in chunks}) == 1


def test_stream_usage_comes_last_and_alone(client: openai.OpenAI, model: str) -> None:
    chunks = stream(client, model, stream_options={"include_usage": True})
    assert all("usage" in chunk.model_fields_set for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == ask(client, model).usage or chunks[-1].usage is not None


def test_stream_has_no_usage_unasked(client: openai.OpenAI, model: str) -> None:
    chunks = stream(client, model)
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)


def test_obfuscation_pads_to_one_size(client: openai.OpenAI, model: str) -> None:
    chunks = stream(client, model, stream_options={"include_obfuscation": True})
    padded = [
        len((chunk.choices[0].delta.content or "").encode()) + len(chunk.obfuscation)
        for chunk in chunks
        if chunk.obfuscation is not None
    ]
    assert padded
    assert all(size % 32 == 0 for size in padded)


@pytest.mark.parametrize("streams", [False, True])
def test_logprobs_spell_the_answer(client: openai.OpenAI, model: str, streams: bool) -> None:
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 3, "temperature": 0}
    if streams:
        chunks = stream(client, model, **options)
        shown = [c.logprobs for chunk in chunks for c in chunk.choices if c.logprobs is not None]
        entries = [entry for logprobs in shown for entry in logprobs.content or ()]
        text = texts(chunks)[0]
    else:
        choice = ask(client, model, **options).choices[0]
        assert choice.logprobs is not None
        entries, text = choice.logprobs.content or [], choice.message.content or ""
    assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode(errors="replace") == text
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        ranked = [top.logprob for top in entry.top_logprobs]
        assert ranked == sorted(ranked, reverse=True)


def test_no_logprobs_unasked(client: openai.OpenAI, model: str) -> None:
    assert ask(client, model).choices[0].logprobs is None


@pytest.mark.parametrize("streams", [False, True])
def test_stop_string_ends_the_text_before_itself(
    client: openai.OpenAI, model: str, streams: bool
) -> None:
    free = ask(client, model, temperature=0, max_tokens=24).choices[0].message.content or ""
    middle = len(free) // 2
    stop = free[middle : middle + 3]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "stop": [stop, "\x00never"]}
    if streams:
        chunks = stream(client, model, **options)
        have, reason = texts(chunks)[0], chunks[-1].choices[0].finish_reason
    else:
        choice = ask(client, model, **options).choices[0]
        have, reason = choice.message.content or "", choice.finish_reason
    assert have == free[: free.index(stop)]
    assert reason == "stop"


def test_included_stop_string(client: openai.OpenAI, model: str) -> None:
    free = ask(client, model, temperature=0, max_tokens=24).choices[0].message.content or ""
    stop = free[len(free) // 2 :][:3]
    extra = {"include_stop_str_in_output": True}
    have = ask(client, model, temperature=0, max_tokens=24, stop=stop, extra_body=extra)
    assert have.choices[0].message.content == free[: free.index(stop) + len(stop)]


def test_parse_gives_a_pydantic_model(client: openai.OpenAI, model: str) -> None:
    have = client.chat.completions.parse(
        model=model, messages=chat_of(model), response_format=Person, max_tokens=200, seed=3
    )
    assert isinstance(have.choices[0].message.parsed, Person)
    assert have.choices[0].finish_reason == "stop"


def test_streamed_parse_gives_a_pydantic_model(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=chat_of(model), response_format=Person, max_tokens=200, seed=3
    ) as events:
        final = events.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Person)


def test_json_object_is_an_object(client: openai.OpenAI, model: str) -> None:
    have = ask(client, model, response_format={"type": "json_object"}, max_tokens=100)
    assert isinstance(json.loads(have.choices[0].message.content or ""), dict)


def test_choice_is_one_of_them(client: openai.OpenAI, model: str) -> None:
    extra = {"structured_outputs": {"choice": ["braid", "plait"]}}
    have = ask(client, model, extra_body=extra)
    assert have.choices[0].message.content in ("braid", "plait")


def test_a_budget_that_cannot_fit_is_refused(client: openai.OpenAI, model: str) -> None:
    schema = Person.model_json_schema() | {"additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, response_format=form, max_tokens=2)
    assert caught.value.code == "constraint_exceeds_max_tokens"
    assert "max_tokens is 2" in caught.value.message


def test_an_answer_can_be_sent_back(client: openai.OpenAI, model: str) -> None:
    first = ask(client, model).choices[0].message
    messages = [*chat_of(model), first.model_dump(), *chat_of(model)]
    assert ask(client, model, messages=messages).choices[0].message.content


def test_text_parts_and_instructions(client: openai.OpenAI, model: str) -> None:
    words = chat_of(model)[0]["content"].partition(" ")
    parts = [{"type": "text", "text": text} for text in words]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
    ]
    assert ask(client, model, messages=messages).choices[0].message.content


def test_continued_message_is_echoed(client: openai.OpenAI, model: str) -> None:
    messages = [*chat_of(model), {"role": "assistant", "content": "Braids are"}]
    extra = {"continue_final_message": True, "echo": True}
    have = ask(client, model, messages=messages, extra_body=extra)
    assert (have.choices[0].message.content or "").startswith("Braids are")


def test_metadata_and_identifiers_are_accepted(client: openai.OpenAI, model: str) -> None:
    have = ask(
        client,
        model,
        metadata={"run": "1"},
        user="somebody",
        safety_identifier="abc",
        prompt_cache_key="k",
        service_tier="auto",
        store=False,
    )
    assert have.metadata == {"run": "1"}
    assert have.service_tier == "default"


def test_trace_counts_the_steps(client: openai.OpenAI, model: str) -> None:
    extra = {"decoding": {"trace": True}, "ignore_eos": True}
    have = ask(client, model, extra_body=extra)
    assert have.usage is not None
    trace = (have.model_extra or {})["decoding"]
    assert trace["forwards"] > 0
    assert len(trace["steps"]) == have.usage.completion_tokens


def test_deadline_is_an_error_not_an_answer(client: openai.OpenAI, model: str) -> None:
    extra = {"deadline_ms": 60_000}
    assert ask(client, model, extra_body=extra).choices[0].message.content
