"""Predicted outputs through the official client, on whatever server conftest names."""

from __future__ import annotations

from functools import partial
from typing import Any

import openai
import pytest
from openai.types import CompletionUsage
from pydantic import BaseModel

from tests.e2e.test_conformance_chat import ask, stream, texts
from tests.fixtures.prompts import chat_of
from tests.fixtures.real_server import RealServer

WRONG = "La rivière coulait,\n\tlentement; 17 + 25 = 43.\n" * 20
ALWAYS = {"name": "prediction", "always": True}  # whatever the machine is busy with
LENGTH = 96  # tokens of a copied text
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
TEXT = (
    "The cat sat on the mat. The dog sat on the rug. The bird sat in the tree. "
    "The fish swam in the pond. The horse stood in the field. The cow lay in the barn."
)


class Pair(BaseModel):
    first: str
    second: int


def predicted(text: str) -> dict[str, Any]:
    return {"prediction": {"type": "content", "content": text}}


def counts(usage: CompletionUsage | None) -> tuple[int, int]:
    assert usage is not None and usage.completion_tokens_details is not None
    details = usage.completion_tokens_details
    accepted, rejected = details.accepted_prediction_tokens, details.rejected_prediction_tokens
    assert accepted is not None and rejected is not None
    assert 0 <= accepted <= usage.completion_tokens
    assert rejected >= 0
    return accepted, rejected


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("n", [1, 3])
def test_predictions_change_no_answer(
    client: openai.OpenAI, scoring_model: str, temperature: float, n: int
) -> None:
    fields: dict[str, Any] = {"temperature": temperature, "n": n, "max_tokens": 24}
    want = ask(client, scoring_model, **fields)
    right = want.choices[0].message.content or ""
    for text in (right, WRONG, ""):
        have = ask(client, scoring_model, **fields, **predicted(text))
        assert have.choices == want.choices
        assert have.usage is not None and want.usage is not None
        assert have.usage.completion_tokens == want.usage.completion_tokens
        accepted, rejected = counts(have.usage)
        assert accepted > 0 or text != right
        assert text or not accepted + rejected


def test_text_parts_are_one_prediction(client: openai.OpenAI, scoring_model: str) -> None:
    right = ask(client, scoring_model, temperature=0).choices[0].message.content or ""
    parts = [{"type": "text", "text": text} for text in right.partition(" ")]
    prediction = {"type": "content", "content": parts}
    have = ask(client, scoring_model, temperature=0, prediction=prediction)
    assert have.choices[0].message.content == right
    assert counts(have.usage)[0] > 0


def test_a_stream_counts_in_its_last_chunk(client: openai.OpenAI, scoring_model: str) -> None:
    whole = ask(client, scoring_model, temperature=0, max_tokens=24)
    right = whole.choices[0].message.content or ""
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 24} | predicted(right)
    chunks = stream(client, scoring_model, stream_options={"include_usage": True}, **fields)
    assert texts(chunks) == [right]
    assert counts(chunks[-1].usage)[0] > 0


def test_a_stop_string_ends_a_predicted_text(client: openai.OpenAI, scoring_model: str) -> None:
    free = ask(client, scoring_model, temperature=0, max_tokens=24).choices[0].message.content or ""
    stop = free[len(free) // 2 :][:3]
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "stop": stop}
    have = ask(client, scoring_model, **fields, **predicted(free))
    assert have.choices[0].message.content == free[: free.index(stop)]
    assert have.choices[0].finish_reason == "stop"
    assert counts(have.usage)[0] > 0


def test_logprobs_are_those_without(client: openai.OpenAI, scoring_model: str) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "temperature": 0}
    want = ask(client, scoring_model, **fields).choices[0]
    have = ask(client, scoring_model, **fields, **predicted(want.message.content or ""))
    assert have.choices[0].logprobs is not None and want.logprobs is not None
    pairs = zip(have.choices[0].logprobs.content or (), want.logprobs.content or (), strict=True)
    for one, other in pairs:
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_a_format_is_kept_whatever_is_predicted(client: openai.OpenAI, scoring_model: str) -> None:
    fields: dict[str, Any] = {
        "model": scoring_model,
        "messages": chat_of(scoring_model),
        "response_format": Pair,
        "max_tokens": 80,
        "seed": 5,
    }
    want = client.chat.completions.parse(**fields).choices[0].message
    for text in (want.content or "", '{"first": 3, "third": []}', WRONG):
        have = client.chat.completions.parse(**fields, **predicted(text))
        assert have.choices[0].message.content == want.content
        assert isinstance(have.choices[0].message.parsed, Pair)
        counts(have.usage)


def test_the_trace_and_the_usage_add_up(client: openai.OpenAI, scoring_model: str) -> None:
    right = ask(client, scoring_model, temperature=0, max_tokens=24).choices[0].message.content
    extra = {"decoding": {"trace": True, "drafter": ["forced", ALWAYS]}}
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "extra_body": extra}
    have = ask(client, scoring_model, **fields, **predicted(f"Oh! {right}"))
    trace = (have.model_extra or {})["decoding"]
    accepted, rejected = counts(have.usage)
    if "drafted" in trace:  # not of the stub
        assert accepted == trace["accepted"].get("prediction", 0)
        assert accepted + rejected == trace["drafted"].get("prediction", 0) > 0


@pytest.mark.parametrize("drafter", ["off", "n-gram", ["n-gram", "forced"]])
def test_a_prediction_that_nobody_reads_is_refused(
    client: openai.OpenAI, scoring_model: str, drafter: Any
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, scoring_model, extra_body={"decoding": {"drafter": drafter}}, **predicted("x"))
    assert caught.value.param == "prediction"


def test_a_diffusion_model_refuses_predictions(client: openai.OpenAI, canvas_model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, canvas_model, **predicted("x"))
    assert (caught.value.param, caught.value.code) == ("prediction", "unsupported_parameter")


def test_texts_have_no_predictions(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="x", extra_body=predicted("x"))
    assert caught.value.param == "prediction"


def has_counted(server: RealServer, accepted: float) -> bool:
    return server.metric(ACCEPTED) == accepted


def test_copies_and_edits_take_few_passes(server: RealServer) -> None:
    """A repeated text, predicted as it will be and with a few words changed, gone and new."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        model = client.models.list().data[0].id
        question = f"Repeat this text exactly: {TEXT}"
        fields: dict[str, Any] = {
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": LENGTH,
            "extra_body": {"decoding": {"trace": True, "drafter": ALWAYS}, "ignore_eos": True},
        }
        plain = {"extra_body": {"ignore_eos": True, "decoding": {"drafter": "off"}}}
        want = ask(client, model, **fields | plain).choices[0].message.content or ""
        edited = want.replace(" on", " upon", 1).replace(" in the", " near a", 1)
        for text in (want, f"Here it is: {edited}"):
            before = server.metric(ACCEPTED)
            have = ask(client, model, **fields, **predicted(text))
            assert have.choices[0].message.content == want
            trace = (have.model_extra or {})["decoding"]
            assert 4 * trace["forwards"] <= LENGTH
            accepted, _ = counts(have.usage)
            assert accepted + trace["forwards"] == LENGTH
            server.wait_until(partial(has_counted, server, before + accepted))
