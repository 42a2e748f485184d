"""Fields of vLLM's that its clients send, in its shapes, on both routes, streamed and whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.api.app import create_app
from plait.server.settings import ApiSettings
from plait.server.telemetry.telemetry import Telemetry
from plait.server.wire.messages import Delta, GenerateRequest, Started
from tests.fixtures.byte_tokenizer import END, TURN
from tests.fixtures.running_server import QUIET
from tests.fixtures.stub_pool import Script, StubPool

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6},
    "/v1/completions": {"prompt": "hi", "max_tokens": 6},
}
PATHS = list(BODIES)
TEXT = [*b"ab", TURN, *"é".encode()]


def told(*pieces: list[int], ended: bool = True, scored: bool = False) -> Script:
    """Return a script that answers these tokens, a delta each, and the end token if `ended`."""

    async def script(request: GenerateRequest) -> AsyncIterator[Started | Delta]:
        yield Started(request.request_id, 0, 0.0)
        entries = [TokenLogprobs(t, -0.5, ((t, -0.5), (7, -1.5))) for t in request.prompt_token_ids]
        for i, piece in enumerate(pieces):
            scores = [None, *entries[1:]] if scored and not i else None
            yield Delta(request.request_id, 0, piece, prompt_logprobs=scores)
        reason, token = ("stop", END) if ended else ("length", None)
        yield Delta(request.request_id, 0, [], finish_reason=reason, stop_token=token)  # type: ignore[arg-type]

    return script


async def post(path: str, script: Script | None = None, **fields: Any) -> httpx.Response:
    pool = StubPool()
    if script is not None:
        pool.scripts.append(script)
    app = create_app(ApiSettings(), pool, Telemetry(QUIET))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        return await client.post(path, json=BODIES[path] | fields)


async def whole(path: str, script: Script | None = None, **fields: Any) -> dict[str, Any]:
    response = await post(path, script, **fields)
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


async def events(path: str, script: Script | None = None, **fields: Any) -> list[dict[str, Any]]:
    response = await post(path, script, stream=True, **fields)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(choice: dict[str, Any]) -> str:
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


@pytest.mark.parametrize("path", PATHS)
async def test_token_ids_are_those_of_the_answer_its_end_and_the_prompt(path: str) -> None:
    script = told([97], [98, TURN], TEXT[3:4], TEXT[4:])
    answer = await whole(path, script, return_token_ids=True)
    choice = answer["choices"][0]
    assert choice["token_ids"] == [*TEXT, END]
    prompt = choice if path == "/v1/completions" else answer
    tokenized = {"prompt": "hi"} if path == "/v1/completions" else BODIES[path]
    assert prompt["prompt_token_ids"][-2:] == ([104, 105] if "prompt" in tokenized else [116, 10])

    streamed = await events(path, script, return_token_ids=True)
    choices = [event["choices"][0] for event in streamed]
    assert [i for each in choices for i in each.get("token_ids", ())] == [*TEXT, END]
    holders = choices if path == "/v1/completions" else streamed
    found = [each["prompt_token_ids"] for each in holders if "prompt_token_ids" in each]
    assert found == [prompt["prompt_token_ids"]]


@pytest.mark.parametrize("path", PATHS)
async def test_token_ids_stop_where_the_text_does(path: str) -> None:
    script = told([97, 98], [99, 100, 101], ended=False)
    answer = await whole(path, script, return_token_ids=True, stop="bc")
    assert answer["choices"][0]["token_ids"] == [97, 98, 99]
    assert text_of(answer["choices"][0]) == "a"


@pytest.mark.parametrize("path", PATHS)
async def test_nothing_of_it_is_there_unasked(path: str) -> None:
    text = (await post(path)).text + (await post(path, stream=True)).text
    assert "token_ids" not in text and "prompt_logprobs" not in text


@pytest.mark.parametrize("path", PATHS)
async def test_prompt_logprobs_have_ranks_and_texts(path: str) -> None:
    answer = await whole(path, told([97], scored=True), prompt_logprobs=1)
    holder = answer["choices"][0] if path == "/v1/completions" else answer
    first, *rest = holder["prompt_logprobs"]
    assert first is None
    last = rest[-1]
    token, text = ("105", "i") if path == "/v1/completions" else ("10", "\n")
    assert last == {token: {"logprob": -0.5, "rank": 1, "decoded_token": text}}
    answer = await whole(path, told([97], scored=True), prompt_logprobs=-1)
    holder = answer["choices"][0] if path == "/v1/completions" else answer
    assert holder["prompt_logprobs"][-1]["7"]["rank"] == 2


@pytest.mark.parametrize("path", PATHS)
async def test_minus_one_is_as_many_alternatives_as_the_server_gives(path: str) -> None:
    chat: dict[str, Any] = {"logprobs": True, "top_logprobs": -1}
    completion: dict[str, Any] = {"logprobs": -1}
    answer = await whole(path, **(chat if "chat" in path else completion))
    logprobs = answer["choices"][0]["logprobs"]
    tops = [entry["top_logprobs"] for entry in logprobs["content"]] if "chat" in path else []
    assert all(len(top) == 20 for top in tops)
    if not tops:
        assert max(map(len, logprobs["top_logprobs"])) >= 20


@pytest.mark.parametrize("path", PATHS)
async def test_special_tokens_are_written_out_on_demand(path: str) -> None:
    script = told(TEXT)
    assert text_of((await whole(path, script))["choices"][0]) == "abé"
    shown = await whole(path, script, skip_special_tokens=False)
    assert text_of(shown["choices"][0]) == "ab<|im_start|>é"
    assert text_of((await whole(path, script, skip_special_tokens=True))["choices"][0]) == "abé"


@pytest.mark.parametrize("path", PATHS)
async def test_usage_counts_up_from_chunk_to_chunk(path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    streamed = await events(path, told([97], [98], [99]), stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in streamed]
    assert counts == sorted(counts) and counts[-1] == 4 and len(set(counts)) >= 4
    assert len({event["usage"]["prompt_tokens"] for event in streamed}) == 1
    plain = await events(path, stream_options={"include_usage": True})
    assert {event["usage"] is None for event in plain[:-1]} == {True}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -2}, "prompt_logprobs"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        ({"return_token_ids": 1}, "return_token_ids"),
        ({"logprob_token_ids": [5]}, "logprob_token_ids"),
    ],
)
async def test_what_can_not_be_had_is_named(path: str, fields: dict[str, Any], param: str) -> None:
    response = await post(path, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_kwargs_of_other_families_are_taken_with_a_warning() -> None:
    kwargs = {"enable_thinking": False, "custom_thing": "x"}
    response = await post("/v1/chat/completions", chat_template_kwargs=kwargs)
    assert response.status_code == 200
    assert "chat_template_kwargs.custom_thing" in response.headers["x-plait-warning"]
