"""What fields take: whole numbers as JSON Schema has them, and values that ask for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, get_args

import httpx
import pytest
from jsonschema_rs import validator_for
from pydantic import BaseModel, ValidationError

from plait.server.api.schemas.base import Unsupported
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.api.schemas.draft_store import ImportRequest
from plait.server.api.schemas.response_format import StructuredOutputs
from plait.server.api.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from tests.fixtures.running_server import stub_app
from tests.fixtures.stub_pool import INFO, StubModel, StubPool

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
TEXT: dict[str, Any] = {"prompt": "x"}
BODIES: dict[type[BaseModel], dict[str, Any]] = {ChatRequest: CHAT, CompletionRequest: TEXT}


def client_of(pool: StubPool) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(stub_app(pool))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def integer_fields() -> Iterator[tuple[type[BaseModel], str]]:
    """Yield every field of a generation request that is a whole number, or may be one."""
    for model in BODIES:
        schema = model.model_json_schema()
        for name, own in schema["properties"].items():
            if any(each.get("type") == "integer" for each in own.get("anyOf", [own])):
                yield model, name


@pytest.mark.parametrize(("model", "name"), [*integer_fields()])
def test_a_whole_number_may_be_written_with_a_point(model: type[BaseModel], name: str) -> None:
    request = model.model_validate(BODIES[model] | {name: 2.0})
    assert getattr(request, name) == 2
    assert type(getattr(request, name)) is int
    for bad in (2.5, "2", True, 1e300, [2]):
        with pytest.raises(ValidationError):
            model.model_validate(BODIES[model] | {name: bad})


@pytest.mark.parametrize(
    ("model", "body", "path"),
    [
        (ChatRequest, CHAT | {"stop_token_ids": [3.0, 4]}, ["stop_token_ids", 0]),
        (ChatRequest, CHAT | {"allowed_token_ids": [3.0]}, ["allowed_token_ids", 0]),
        (ChatRequest, CHAT | {"decoding": {"canvas": {"block_size": 8.0}}}, ["decoding"]),
        (CompletionRequest, {"prompt": [5.0, 6]}, ["prompt", 0]),
        (CompletionRequest, {"prompt": [[5], [6.0]]}, ["prompt", 1, 0]),
        (
            CompletionRequest,
            TEXT | {"infill": {"hole": "_", "lengths": [7.0]}},
            ["infill", "lengths", 0],
        ),
        (DetokenizeRequest, {"tokens": [8.0]}, ["tokens", 0]),
        (ImportRequest, {"texts": [[9.0, 9]]}, ["texts", 0, 0]),
    ],
)
def test_so_may_those_within(
    model: type[BaseModel], body: dict[str, Any], path: list[str | int]
) -> None:
    value: Any = model.model_validate(body).model_dump()
    for part in path:
        value = value[part]
    if isinstance(value, dict):
        value = value["canvas"]["block_size"]
    assert type(value) is int


@pytest.mark.parametrize("model", BODIES)
def test_the_document_bounds_numbers_in_json_schemas_own_words(model: type[BaseModel]) -> None:
    validator = validator_for(model.model_json_schema())
    for name in ("n", "max_tokens", "seed", "top_k", "priority", "deadline_ms"):
        assert validator.is_valid(BODIES[model] | {name: 1.0})
        assert not validator.is_valid(BODIES[model] | {name: -(2**70)})
        assert not validator.is_valid(BODIES[model] | {name: 2**70})


def unsupported() -> Iterator[tuple[type[BaseModel], str, Any]]:
    """Yield the values that pass of every field that is refused otherwise."""
    for model in BODIES:
        for name, field in model.model_fields.items():
            marks = [mark for mark in field.metadata if isinstance(mark, Unsupported)]
            passing = [(None, *mark.unless) for mark in marks]
            yield from ((model, name, value) for value in chain.from_iterable(passing))


@pytest.mark.parametrize(("model", "name", "value"), [*unsupported()])
async def test_what_asks_for_nothing_changes_nothing(
    model: type[BaseModel], name: str, value: Any
) -> None:
    path = "/v1/chat/completions" if model is ChatRequest else "/v1/completions"
    pool = StubPool()
    plain = BODIES[model] | {"seed": 4, "max_tokens": 3}
    async with client_of(pool) as client:
        answers = [await client.post(path, json=plain | extra) for extra in ({}, {name: value})]
    texts = [answer.json()["choices"] for answer in answers]
    assert texts[0] == texts[1]
    assert pool.requests[0].sampling == pool.requests[1].sampling


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reasoning_effort", "none"),
        ("verbosity", "medium"),
        ("tools", []),
        ("functions", []),
        ("tool_choice", "auto"),
        ("parallel_tool_calls", True),
        ("parallel_tool_calls", False),
        ("use_beam_search", False),
        ("length_penalty", 1.0),
        ("cache_prompt", True),
    ],
)
def test_these_ask_for_nothing(name: str, value: Any) -> None:
    ChatRequest.model_validate(CHAT | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reasoning_effort", "minimal"),
        ("verbosity", "high"),
        ("tools", [{}]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("parallel_tool_calls", 1),
        ("early_stopping", True),
        ("truncate_prompt_tokens", 5),
    ],
)
def test_these_ask_for_something(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match="not supported"):
        ChatRequest.model_validate(CHAT | {name: value})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_the_one_model_needs_no_name(path: str) -> None:
    one, two = StubPool(), StubPool(served=[StubModel(), StubModel(name="other")])
    body = (CHAT if "chat" in path else TEXT) | {"max_tokens": 2}
    for extra in ({}, {"model": None}):
        async with client_of(one) as client:
            answer = await client.post(path, json=body | extra)
        assert (answer.status_code, answer.json()["model"]) == (200, INFO.model)
        async with client_of(two) as client:
            answer = await client.post(path, json=body | extra)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "model")
        assert "stub, other" in error["message"]


async def test_the_one_models_constraint_is_compiled_for_it() -> None:
    class Named(StubPool):
        async def compile(self, model: str, spec: Any, tenant: str) -> Any:
            assert model == INFO.model
            return await super().compile(model, spec, tenant)

    async with client_of(Named()) as client:
        body = CHAT | {"structured_outputs": {"choice": ["a"]}}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200


async def test_top_p_of_zero_is_the_likeliest_token() -> None:
    pool = StubPool()
    async with client_of(pool) as client:
        body = CHAT | {"top_p": 0, "temperature": 1.5, "max_tokens": 2}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert pool.requests[0].sampling.temperature == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"stream_options": {}},
        {"stream_options": {"include_usage": False}, "stream": False},
        {"top_logprobs": 0},
        {"top_logprobs": 0, "logprobs": False},
    ],
)
async def test_options_that_ask_for_nothing_need_nothing_beside_them(
    fields: dict[str, Any],
) -> None:
    async with client_of(StubPool()) as client:
        body = CHAT | {"max_tokens": 2} | fields
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_template_leaves_out_is_told(stream: bool) -> None:
    named = {"role": "user", "content": "x", "name": "ann"}
    body = {"max_tokens": 2, "stream": stream}
    async with client_of(StubPool()) as client:
        for count, want in ((0, None), (1, "messages[1].name"), (9, "messages[8].name, ...")):
            messages = [*CHAT["messages"], *[named] * count]
            answer = await client.post("/v1/chat/completions", json=body | {"messages": messages})
            have = answer.headers.get("x-plait-warning")
            assert (have is None) if want is None else have.endswith(want)


ONE_OF = {"json": {}, "regex": "a", "choice": ["a"], "grammar": 'root ::= "a"'}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        *((StructuredOutputs, {name: ONE_OF[name]}) for name in ONE_OF),
        *((StructuredOutputs, dict.fromkeys(ONE_OF) | {name: ONE_OF[name]}) for name in ONE_OF),
        (StructuredOutputs, {}),
        (StructuredOutputs, dict.fromkeys(ONE_OF)),
        (StructuredOutputs, {"json": {}, "regex": "a"}),
        (StructuredOutputs, ONE_OF),
        (TokenizeRequest, {"prompt": ""}),
        (TokenizeRequest, {"prompt": "x", "messages": None}),
        (TokenizeRequest, CHAT),
        (TokenizeRequest, {}),
        (TokenizeRequest, {"prompt": None, "messages": None}),
        (TokenizeRequest, CHAT | TEXT),
    ],
)
async def test_the_document_and_the_server_agree_on_what_excludes_what(
    model: type[BaseModel], body: dict[str, Any]
) -> None:
    document = stub_app().openapi()
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    fits = validator_for(reference | {"components": document["components"]}).is_valid(body)
    async with client_of(StubPool()) as client:
        if model is TokenizeRequest:
            answer = await client.post("/tokenize", json=body)
        else:
            asked = CHAT | {"structured_outputs": body}
            answer = await client.post("/v1/chat/completions", json=asked)
    assert (answer.status_code == 200) == fits
    if not fits:
        assert answer.json()["error"]["param"] in ("prompt", "structured_outputs")


@pytest.mark.parametrize(
    "message",
    [
        *({"role": role} for role in ("system", "developer", "user", "assistant", "critic")),
        *({"role": role} for role in ("tool", "function", "", "a b", "x" * 65, None, 1)),
        {},
        {"role": "user", "name": "n"},
        {"role": "critic", "name": "n"},
        {"role": "user", "reasoning": "x"},
        {"role": "assistant", "reasoning": "x", "reasoning_content": "x"},
        {"role": "assistant", "tool_calls": []},
        {"role": "assistant", "tool_calls": [{}]},
        {"role": "user", "cache_control": None},
        {"role": "user", "cache_control": {}},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": [{"type": "refusal", "refusal": "x"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]},
        {"role": "user", "content": [{"type": "image_url"}]},
        {"role": "user", "content": []},
    ],
)
def test_the_document_and_the_server_agree_on_messages(message: dict[str, Any]) -> None:
    body = {"messages": [{"content": "x"} | message]}
    fits = validator_for(ChatRequest.model_json_schema()).is_valid(body)
    try:
        ChatRequest.model_validate(body)
    except ValidationError:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
async def test_null_is_not_given_in_every_field_that_may_be_absent(path: str) -> None:
    body = TEXT if path == "/v1/completions" else CHAT
    schemas = stub_app().openapi()["components"]["schemas"]
    model = {"/v1/completions": "CompletionRequest", "/tokenize": "TokenizeRequest"}
    names = set(schemas[model.get(path, "ChatRequest")]["properties"]) - set(body)
    async with client_of(StubPool()) as client:
        answer = await client.post(path, json=body | dict.fromkeys(names))
    assert answer.status_code == 200, answer.text


def test_the_document_lets_every_field_be_null_that_may_be_absent() -> None:
    components = stub_app().openapi()["components"]
    for name, schema in components["schemas"].items():
        is_sent = "additionalProperties" in schema  # what is received forbids other fields
        for field, own in schema.get("properties", {}).items():
            if is_sent and field not in schema.get("required", ()):
                validator = validator_for(own | {"components": components})
                assert validator.is_valid(None), (name, field)


def test_every_field_says_what_it_takes() -> None:
    """No field is left to any value at all but those whose values are looked at elsewhere."""
    for model in BODIES:
        for name, field in model.model_fields.items():
            marked = any(isinstance(mark, Unsupported) for mark in field.metadata)
            assert (Any in (field.annotation, *get_args(field.annotation))) == marked, name
