"""From pydantic's reports to one OpenAI error: the right field, a short text, a code."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from plait.server import errors
from plait.server.api.errors_http import error_response
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.api.schemas.tokenize import TokenizeRequest
from plait.server.api.validation.errors import invalid_request
from plait.server.api.validation.locations import locate
from plait.server.errors import BadRequest, ServerError
from plait.server.settings import LimitSettings

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
MODELS = (ChatRequest, CompletionRequest, TokenizeRequest)


def errors_of(body: Any, model: type[BaseModel]) -> list[Any]:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return list(error.errors())
    return []


def refused(body: Any, model: type[BaseModel] = ChatRequest) -> BadRequest:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    found = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    return invalid_request(model, found)


@pytest.mark.parametrize(
    ("extra", "param", "code", "text"),
    [
        ({"n": "3"}, "n", None, "valid integer"),
        ({"tools": [{}]}, "tools", "unsupported_parameter", "tools are not implemented"),
        ({"store": 0}, "store", "unsupported_parameter", "answers are not kept"),
        ({"stop": ["a", ""]}, "stop[1]", None, "at least 1 character"),
        ({"stop": 3}, "stop", None, "valid string; or: Input should be a valid list"),
        ({"guided_json": {}}, "guided_json", "unknown_parameter", "structured_outputs.json?"),
        ({"max_new_tokens": 3}, "max_new_tokens", "unknown_parameter", "mean max_tokens?"),
        ({"temperatur": 1}, "temperatur", "unknown_parameter", "mean temperature?"),
        ({"xyzzy": 1}, "xyzzy", "unknown_parameter", "no such parameter."),
        ({"metadata": {"k": 1}}, "metadata.k", None, "valid string"),
        ({"response_format": {"type": "xml"}}, "response_format.type", None, "'json_object'"),
        ({"decoding": {"traces": True}}, "decoding.traces", "unknown_parameter", "no such"),
        (
            {"messages": [{"role": "user"}]},
            "messages[0].content",
            "missing_required_parameter",
            "required",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
            "'image_url' is not supported: this server reads and writes text",
        ),
    ],
)
def test_first_bad_field_is_named(
    extra: dict[str, Any], param: str, code: str | None, text: str
) -> None:
    have = refused(CHAT | extra)
    assert have.param == param
    assert have.code == code
    assert text in have.message


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", **fields}]}]}


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [CHAT["messages"][0], {"role": "user", "content": "x", **fields}]}


def schema_format(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}, **fields}}


@pytest.mark.parametrize(
    ("extra", "param", "text"),
    [
        (part(colour=1), "messages[0].content[0].colour", "no such parameter."),
        (part(text=3), "messages[0].content[0].text", "valid string"),
        (part(cache_control={}), "messages[0].content[0].cache_control", "leave it out"),
        (message(cache_control={}), "messages[1].cache_control", "leave it out"),
        (message(content=3), "messages[1].content", "valid string"),
        (message(role="tool"), "messages[1].role", "tool is not supported: tools are not"),
        (message(role=None), "messages[1].role", "Field required"),
        (message(role="a b"), "messages[1].role", "should match"),
        (message(tool_call_id="c"), "messages[1].tool_call_id", "Tools are not implemented yet."),
        (message(prefix=True), "messages[1].prefix", "continue_final_message=true"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16 items"),
        (message(seed=1), "messages[1].seed", "a field of the request, not of messages[1]."),
        (message(text="x"), "messages[1].text", "belongs in messages[1].content[i]."),
        (schema_format(strict=True), "response_format.strict", "in response_format.json_schema."),
        (schema_format(sctrict=True), "response_format.sctrict", "no such parameter."),
        (schema_format(json_schema={}), "response_format.json_schema.name", "Field required"),
        (schema_format(json_schema=[]), "response_format.json_schema", "should be an object"),
        (schema_format(type="text"), "response_format.json_schema", "no such parameter."),
        (schema_format(type="grammar"), "response_format.type", "structured_outputs takes it"),
        (schema_format(type=None), "response_format.type", "'json_object'"),
        ({"response_format": {}}, "response_format.type", "Field required"),
        ({"response_format": 1}, "response_format", "should be an object"),
        (
            {"response_format": {"type": "json_object", "schema": {}}},
            "response_format.schema",
            "into response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "name": "x", "schema": {}}},
            "response_format.name",
            "belongs in response_format.json_schema. Neither is there response_format.schema.",
        ),
        ({"include_usage": True}, "include_usage", "belongs in stream_options."),
        ({"attention": "full"}, "attention", "no such parameter."),
        ({"content": "x"}, "content", "no such parameter."),
        ({"stream_options": {"stream": True}}, "stream_options.stream", "field of the request"),
        ({"decoding": {"canvas": {"trace": 1}}}, "decoding.canvas.trace", "a field of decoding,"),
        ({"prompt": "x"}, "prompt", "POST /v1/completions has it."),
        ({"tokens": [1]}, "tokens", "POST /detokenize has it."),
        ({"max_output_tokens": 3}, "max_output_tokens", "mean max_completion_tokens?"),
        ({"do_sample": True}, "do_sample", "temperature=0 does not draw"),
        ({"tool": []}, "tool", "no such parameter."),
        ({"decoding": {"drafter": [1]}}, "decoding.drafter[0]", "valid string; or: Input should"),
        ({"logit_bias": []}, "logit_bias", "should be an object"),
        ({"metadata": {"": "x"}}, "metadata.", "at least 1 character"),
    ],
)
def test_the_error_names_what_the_client_wrote(
    extra: dict[str, Any], param: str, text: str
) -> None:
    have = refused(CHAT | extra)
    assert have.param == param
    assert have.message.startswith(f"{param}: ")
    assert text in have.message
    if text == "no such parameter.":
        assert have.message.endswith(text)


def test_unknown_fields_of_one_object_are_named_together() -> None:
    have = refused(CHAT | message(id="m1", user="someone", contents="x"))
    assert have.param == "messages[1].id"
    assert have.message == (
        "messages[1].id: There is no such parameter. Neither is there messages[1].user (It is a "
        "field of the request, not of messages[1]), messages[1].contents (Did you mean content?)."
    )
    many = refused(CHAT | {f"k{i}": 1 for i in range(100)})
    assert many.message.endswith("k7, k8, and others.")


def test_a_hint_never_names_what_the_object_does_not_have() -> None:
    have = refused({"prompt": "x", "metadata": {"k": "v"}}, CompletionRequest)
    assert have.param == "metadata"
    assert have.message.endswith("no such parameter. POST /v1/chat/completions has it.")
    have = refused({"prompt": "x", "max_output_tokens": 3}, CompletionRequest)
    assert have.message.endswith("Did you mean max_tokens?")
    have = refused({"prompt": "x", "response_format": {}}, CompletionRequest)
    assert have.message.endswith("Did you mean structured_outputs.json?")


def test_a_misspelt_field_is_named_before_the_one_that_is_missing() -> None:
    have = refused({"model": "m", "mesages": []})
    assert (have.param, have.code) == ("mesages", "unknown_parameter")
    have = refused({"model": "m", "messages": []}, CompletionRequest)
    assert have.param == "messages"
    assert have.message.endswith("POST /v1/chat/completions has it.")


def test_a_part_of_an_assistant_is_looked_at_by_its_own_type() -> None:
    for kind in ("text", "refusal"):
        said = {"role": "assistant", "content": [{"type": kind, kind: "x", "extra": 1}]}
        assert refused({"messages": [said]}).param == "messages[0].content[0].extra"


NAMES = (
    *("role", "content", "type", "text", "user", "name", "json_schema", "schema", "strict", "stop"),
    *("messages", "prompt", "response_format", "metadata", "logit_bias", "decoding", "canvas"),
    *("structured_outputs", "json", "choice", "drafter", "str", "list", "custom", "[key]"),
)
FIELDS = st.sampled_from(NAMES)
VALUES = st.recursive(
    st.none() | st.integers(-3, 3) | FIELDS | st.sampled_from(["assistant", "tool", "image_url"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=8,
)
WHOLE_BODY = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]},
        {"role": "custom", "content": "x"},
    ],
    "prompt": [[1, 2]],
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "metadata": {"k": "v"},
    "logit_bias": {"1": 1},
    "decoding": {"canvas": {}, "drafter": [{"name": "n"}]},
    "structured_outputs": {"json": {}, "choice": ["a"]},
    "stop": ["x"],
}


@st.composite
def spoilt_bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Return the body with a few values put somewhere into it."""
    body = copy.deepcopy(WHOLE_BODY)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = body
        while True:
            is_list = isinstance(place, list)
            key = draw(
                st.integers(0, len(place)) if is_list else FIELDS | st.sampled_from([*place])
            )
            inner = place[key] if key in (range(len(place)) if is_list else place) else None
            if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
                break
            place = inner
        if is_list:
            place.insert(key, draw(VALUES))
        else:
            place[key] = draw(VALUES)
    return body


@settings(max_examples=300)
@given(body=spoilt_bodies(), model=st.sampled_from(MODELS))
def test_every_location_leads_to_what_is_wrong(body: Any, model: type[BaseModel]) -> None:
    for report in errors_of(body, model):
        location = locate(model, report["loc"])
        *steps, last = location.path
        value = body
        for step in steps:
            value = value[step]
        if report["type"] == "missing":
            assert last not in value
        else:
            of_key = [last] if report["loc"][-1] == "[key]" else []
            assert report["input"] in [value[last], *of_key]


def test_missing_fields_and_bodies() -> None:
    assert refused({"model": "m"}).param == "messages"
    assert refused({"model": "m"}).code == "missing_required_parameter"
    assert refused([]).param is None
    assert refused(None).message == "The body must be a JSON object."
    assert refused({"model": "m", "prompt": [1, "a"]}, CompletionRequest).param == "prompt[0]"


def test_what_the_client_sent_is_not_sent_back_at_length() -> None:
    have = refused(CHAT | {"x" * 10_000: 1})
    assert len(have.message) <= 500
    assert have.param is not None
    assert len(have.param) <= 200
    assert len(refused({"model": "m", "messages": [{"role": "r" * 10_000}]}).message) <= 500


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "extra",
    [
        {"stop": [1] * 10**6},
        {"messages": [{}] * 10**6},
        {"messages": [{"role": "user", "content": [{}] * 10**6}]},
        {"stop_token_ids": ["x"] * 10**6},
        {"logit_bias": {str(i): "x" for i in range(LimitSettings().max_json_names)}},
        {f"k{i}": i for i in range(LimitSettings().max_json_names)},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_a_million_faults_cost_no_more_than_one(extra: dict[str, Any]) -> None:
    assert len(refused(CHAT | extra).message) <= 500


@pytest.mark.timeout(20)
@pytest.mark.parametrize("item", ["x", -1, {}, [], ["x"], [-1]])
def test_a_million_bad_prompts_cost_no_more_than_one(item: Any) -> None:
    bad = {"model": "m", "prompt": [1, *[item] * 10**6]}
    assert refused(bad, CompletionRequest).param is not None


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ServerError)
    ],
)
def test_every_error_has_openai_shape(kind: type[ServerError]) -> None:
    response = error_response(kind("why", param="p"))
    error = json.loads(bytes(response.body))["error"]
    assert error == {"message": "why", "type": kind.type, "param": "p", "code": kind.default_code}
    assert response.status_code == kind.status
    wants_retry = kind.status in (429, 503)
    assert ("retry-after" in response.headers) == wants_retry


def test_the_raisers_own_retry_after_is_sent() -> None:
    response = error_response(errors.Overloaded("full", retry_after_s=17))
    assert response.headers["retry-after"] == "17"
    assert error_response(errors.Unauthorized("who")).headers["www-authenticate"] == "Bearer"
    assert error_response(errors.DeadlineExceeded("late")).headers["x-should-retry"] == "false"
