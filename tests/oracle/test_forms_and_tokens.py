"""Forms that begin with a prefill, and forms that have to do with few tokens, on a real engine."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.server.api.requests.chat import lower_chat
from plait.server.api.requests.completions import lower_completion
from plait.server.api.requests.job import GenerationJob, RequestContext
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest
from plait.server.settings import LimitSettings
from plait.server.wire.messages import Delta
from tests.fixtures.engine_pool import EnginePool, engine_pool
from tests.fixtures.tiny_models import SPECIAL, write_tiny_model

LIMITS = LimitSettings()
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "tag": {"enum": ["on", "off"]}},
    "required": ["x", "tag"],
    "additionalProperties": False,
}
EOS = SPECIAL.index("<|im_end|>")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> EnginePool:
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return engine_pool(folder, kv_cache_bytes=2**22)


async def _tokens(pool: EnginePool, job: GenerationJob) -> list[int]:
    tokens: list[int] = []
    async for event in pool.generate(job.model, job.requests[0]):
        tokens += event.token_ids if isinstance(event, Delta) else ()
    pool.engine.check_integrity()
    return tokens


def complete(pool: EnginePool, **fields: Any) -> list[int]:
    async def run() -> list[int]:
        request = CompletionRequest.model_validate({"prompt": "a", "max_tokens": 60} | fields)
        job = await lower_completion(pool, LIMITS, request, RequestContext("", time.monotonic()))
        return await _tokens(pool, job)

    return asyncio.run(run())


def go_on(pool: EnginePool, prefill: str, schema: dict[str, Any], **fields: Any) -> str:
    """Return what a chat answers behind a prefill."""

    async def run() -> list[int]:
        messages = [
            {"role": "user", "content": "a point"},
            {"role": "assistant", "content": prefill},
        ]
        body = {
            "messages": messages,
            "continue_final_message": True,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema},
            },
            "max_tokens": 60,
        }
        request = ChatRequest.model_validate(body | fields)
        job = await lower_chat(pool, LIMITS, request, RequestContext("", time.monotonic()))
        return await _tokens(pool, job)

    return pool.tokenizer.decode(asyncio.run(run()))


def ids(pool: EnginePool, text: str) -> list[int]:
    """Return the tokens of single characters."""
    return [token for char in text for token in pool.tokenizer.encode(char)]


@pytest.mark.parametrize(
    "prefill", ["", "{", '{"x":', '{"x": -1', '{"x":7,"tag":"o', '{"x":7,"tag":"off"', "{ "]
)
@pytest.mark.parametrize("seed", [1, 2])
def test_prefill_and_answer_are_one_text_of_the_form(
    pool: EnginePool, prefill: str, seed: int
) -> None:
    made = json.loads(prefill + go_on(pool, prefill, POINT, seed=seed))
    assert made["tag"] in ("on", "off") and isinstance(made["x"], int)


def test_a_prefill_that_is_whole_gets_nothing_more(pool: EnginePool) -> None:
    assert go_on(pool, '{"x":1,"tag":"on"}', POINT) == ""


@pytest.mark.parametrize("prefill", ["Sure: ", '{"y"', '{"x":1,"tag":"up', '{"x":1,"tag":"on"}}'])
def test_a_prefill_that_begins_no_such_text_is_refused(pool: EnginePool, prefill: str) -> None:
    with pytest.raises(BadRequest, match="last message") as caught:
        go_on(pool, prefill, POINT)
    assert caught.value.param == "messages"


def test_the_budget_is_the_answers_alone(pool: EnginePool) -> None:
    prefill = '{"x":1,"tag":"of'
    assert go_on(pool, prefill, POINT, max_tokens=3) == 'f"}'
    with pytest.raises(BadRequest) as caught:
        go_on(pool, prefill, POINT, max_tokens=2)
    assert (caught.value.param, caught.value.code) == (
        "max_tokens",
        "constraint_exceeds_max_tokens",
    )


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 40), long=st.integers(18, 60), seed=st.integers(0, 99))
def test_any_beginning_of_a_text_can_be_gone_on_with(
    pool: EnginePool, cut: int, long: int, seed: int
) -> None:
    prefill = '{"x": 12, "tag": "off"}'[:cut]
    made = json.loads(prefill + go_on(pool, prefill, POINT, max_tokens=long, seed=seed))
    assert made["tag"] in ("on", "off")


def test_a_form_is_written_with_the_allowed_tokens_alone(pool: EnginePool) -> None:
    allowed = ids(pool, '{}",:[]xtagon19')
    for seed in range(4):
        tokens = complete(
            pool, structured_outputs={"json": POINT}, allowed_token_ids=allowed, seed=seed
        )
        assert set(tokens) <= set(allowed)
        made = json.loads(pool.tokenizer.decode(tokens))
        assert made["tag"] == "on" and set(str(made["x"])) <= set("19")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [28]}, "allowed_token_ids"),
        ({"allowed_token_ids": [EOS]}, "allowed_token_ids"),
        ({"bad_words": ['"']}, "bad_words"),
        ({"bad_words": ["x"]}, "bad_words"),
    ],
)
def test_a_form_that_the_tokens_can_not_spell_is_refused(
    pool: EnginePool, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest, match="can't both hold") as caught:
        complete(pool, structured_outputs={"json": POINT}, **fields)
    assert caught.value.param == param


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_token_outside_of_the_list_ever_comes(pool: EnginePool, data: st.DataObject) -> None:
    letters = data.draw(st.sets(st.sampled_from("truefalsn0123,[] -"), min_size=3))
    allowed = ids(pool, "".join(sorted(letters)))
    banned = data.draw(st.lists(st.sampled_from(["true", "1", "0,", "[1"]), max_size=2))
    schema = {"type": "array", "items": {"type": ["boolean", "integer"]}, "maxItems": 4}
    fields = {"structured_outputs": {"json": schema}, "allowed_token_ids": allowed}
    budget = data.draw(st.integers(2, 20))
    try:
        tokens = complete(pool, **fields, bad_words=banned, max_tokens=budget)
    except BadRequest as error:
        assert error.param in ("allowed_token_ids", "max_tokens", None)
        return
    assert set(tokens) <= set(allowed)
    text = pool.tokenizer.decode(tokens)
    assert isinstance(json.loads(text), list) and len(tokens) <= budget
    assert not any(word in text for word in banned if len(word) == 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"choice": ["zq!"]}, "bad_words": ["zq!"]},
        {"allowed_token_ids": [EOS], "min_tokens": 3},
        {"structured_outputs": {"regex": "[0-9]{2}"}, "bad_words": ["77"], "seed": 4},
    ],
)
def test_what_leaves_no_token_is_told_and_not_broken(
    pool: EnginePool, fields: dict[str, Any]
) -> None:
    if "regex" in fields.get("structured_outputs", {}):
        fields = fields | {"allowed_token_ids": ids(pool, "7")}
    with pytest.raises(BadRequest, match="no token that may follow"):
        complete(pool, **fields)
