"""From pydantic's reports to one OpenAI error: the right field, a short text, a code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from plait.server import errors
from plait.server.api.errors_http import error_response, invalid_request
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest, ServerError
from plait.server.settings import LimitSettings

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def refused(body: Any, model: type[BaseModel] = ChatRequest) -> BadRequest:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    found = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    wrapped = RequestValidationError(found, body=body)
    return invalid_request(wrapped.errors(), wrapped.body)


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
        ({"response_format": {"type": "xml"}}, "response_format", None, "'xml'"),
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
            None,
            "'text'",
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


def test_missing_fields_and_bodies() -> None:
    assert refused({"model": "m"}).param == "messages"
    assert refused({"model": "m"}).code == "missing_required_parameter"
    assert refused([]).param is None
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
