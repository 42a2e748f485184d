"""What a server must refuse, and how, on whatever server conftest names."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
FIELDS = {"message", "type", "param", "code"}

REFUSED: list[tuple[str, Any]] = [
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("tool_choice", "required"),
    ("functions", [{"name": "f"}]),
    ("function_call", {"name": "f"}),
    ("audio", {"voice": "alloy", "format": "wav"}),
    ("modalities", ["text", "audio"]),
    ("store", True),
    ("web_search_options", {}),
    ("reasoning_effort", "low"),
    ("verbosity", "low"),
    ("moderation", {"model": "m"}),
    ("prompt_cache_options", {"mode": "x"}),
]
INVALID: list[tuple[str, Any]] = [
    ("temperature", 2.1),
    ("temperature", "1"),
    ("temperature", True),
    ("top_p", -0.1),
    ("top_p", 1.5),
    ("presence_penalty", -3),
    ("frequency_penalty", 3),
    ("n", 0),
    ("n", 10**6),
    ("n", 1.5),
    ("max_tokens", 0),
    ("max_tokens", -2),
    ("max_tokens", 2**70),
    ("max_completion_tokens", 0),
    ("seed", 2**64),
    ("stop", ""),
    ("stop", ["a", "b", "c", "d", "e"]),
    ("stop", "x" * 300),
    ("top_logprobs", 3),
    ("logit_bias", {"0": 101}),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"999999999": 1}),
    ("stop_token_ids", [10**8]),
    ("allowed_token_ids", [10**8]),
    ("bad_words", ["x"] * 1000),
    ("min_tokens", 10**6),
    ("cache_salt", "x" * 1000),
    ("deadline_ms", 0),
    ("service_tier", "flex"),
    ("stream_options", {"include_usage": True}),
    ("metadata", {str(i): "x" for i in range(17)}),
    ("metadata", {"k": "x" * 513}),
    ("messages", []),
    ("guided_json", {}),
    ("temprature", 1),
    ("echo", True),
]


def post(http: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    return http.post(CHAT, json={"model": model, "messages": HELLO, "max_tokens": 4} | fields)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == FIELDS
    assert error["message"]
    return error


@pytest.mark.parametrize(("param", "value"), REFUSED, ids=[param for param, _ in REFUSED])
def test_unsupported_parameters_are_named(
    http: httpx.Client, model: str, param: str, value: Any
) -> None:
    error = error_of(post(http, model, **{param: value}), 400)
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


@pytest.mark.parametrize(("param", "value"), INVALID)
def test_invalid_values_are_named(http: httpx.Client, model: str, param: str, value: Any) -> None:
    error = error_of(post(http, model, **{param: value}), 400)
    assert error["param"].split("[")[0].split(".")[0] == param
    assert error["type"] == "invalid_request_error"


def test_every_null_is_a_default(http: httpx.Client, model: str) -> None:
    names = [
        *(name for name, _ in REFUSED),
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "logprobs",
    ]
    response = post(http, model, **dict.fromkeys(names), response_format=None, stream=None)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": "x", "nmae": "y"}, "messages[0].nmae"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls"),
    ],
)
def test_the_bad_part_of_a_message_is_named(
    http: httpx.Client, model: str, message: dict[str, Any], param: str
) -> None:
    error = error_of(post(http, model, messages=[message]), 400)
    assert error["param"] == param or param.startswith(error["param"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b"[1, 2]",
        b'"text"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"model": "m", "model": "m"}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b'{"temperature": -Infinity}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"user": "\\ud800"}',
        b'{"metadata": {"\\udfff": "x"}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"stop": "' + b'\\"' * 200_000,
        b'{"a": 1} trailing',
        b'{"a": 1,}',
        b"{'a': 1}",
    ],
)
def test_malformed_json_is_a_400(http: httpx.Client, body: bytes) -> None:
    response = http.post(CHAT, content=body, headers={"content-type": "application/json"})
    error_of(response, 400)


@settings(max_examples=200)
@given(body=st.binary(max_size=200))
def test_random_bytes_are_a_400(http: httpx.Client, body: bytes) -> None:
    error_of(http.post(CHAT, content=body, headers={"content-type": "application/json"}), 400)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = sorted({param for param, _ in REFUSED + INVALID} | {"response_format", "decoding", "n"})


def is_long(name: str, value: Any) -> bool:
    """Tell whether a field asks for an answer of minutes; greater limits are a 400."""
    is_limit = name in ("max_tokens", "max_completion_tokens")
    return is_limit and (value is None or (isinstance(value, int | float) and 1 < value < 10_000))


@settings(max_examples=300)
@given(fields=st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=4))
def test_random_fields_never_fail_the_server(
    http: httpx.Client, model: str, fields: dict[str, Any]
) -> None:
    short = {name: value for name, value in fields.items() if not is_long(name, value)}
    body = {"model": model, "messages": HELLO, "max_tokens": 1} | short
    response = http.post(
        CHAT, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        error_of(response, 400)


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_other_content_types_are_a_415(http: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    error = error_of(http.post(CHAT, content=b"{}", headers=headers), 415)
    assert error["code"] == "unsupported_media_type"


def test_unknown_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(
            model="no/such-model", messages=[{"role": "user", "content": "x"}]
        )
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such-model")


def test_unknown_route_is_a_404(http: httpx.Client) -> None:
    assert error_of(http.get("/v1/nothing"), 404)["code"] == "not_found"


def test_wrong_method_is_a_405(http: httpx.Client) -> None:
    response = http.get(CHAT)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


def test_too_long_a_prompt_says_the_numbers(http: httpx.Client, model: str) -> None:
    length = http.get(f"/v1/models/{model}").json()["max_model_len"]
    error = error_of(post(http, model, max_tokens=length), 400)
    assert error["code"] == "context_length_exceeded"
    assert str(length) in error["message"]


def test_too_large_a_body_is_a_413(http: httpx.Client) -> None:
    body = b'{"user": "' + b"x" * 2**24 + b'"}'
    response = http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert error_of(response, 413)["code"] == "payload_too_large"


def test_too_large_a_chunked_body_is_a_413(http: httpx.Client) -> None:
    chunks = (b"x" * 2**16 for _ in range(2**8))
    response = http.post(CHAT, content=chunks, headers={"content-type": "application/json"})
    error_of(response, 413)


@pytest.mark.parametrize("given_id", ["abc_DEF-123", "x" * 128])
def test_a_harmless_request_id_is_returned(http: httpx.Client, given_id: str) -> None:
    response = http.get("/health", headers={"x-request-id": given_id})
    assert response.headers["x-request-id"] == given_id


@pytest.mark.parametrize("given_id", ["a b", "é", "x" * 129, "a;b", ""])
def test_any_other_request_id_is_replaced(http: httpx.Client, given_id: str) -> None:
    response = http.get("/health", headers={b"x-request-id": given_id.encode("latin-1")})
    assert response.headers["x-request-id"].startswith("req_")
