"""Log-probabilities are the model's own, whatever a request does to the draw: both kinds, in fp32.

The oracle reads an answer again, as a prompt: what it gives to each token is what was reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.fixtures.capability_probes import COMPLETIONS, Client
from tests.fixtures.real_server import MODEL, RealServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TOLERANCE = 2e-4  # nats; a pass of another shape rounds otherwise
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Leo"]}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
REQUESTS: Mapping[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "hot": {"temperature": 1.5},
    "truncated": {"top_p": 0.5, "top_k": 10, "min_p": 0.05},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.3},
    "biased": {"logit_bias": {"260": 8.0, "30": -100}, "min_tokens": 8},
    "banned": {"bad_words": [" the", " of"]},
    "a schema": {"structured_outputs": {"json": SCHEMA}, "max_tokens": 40},
    "drafts": {
        "prompt": "red, blue, green, red, blue, green, red, blue,",
        "temperature": 0.3,
        "decoding": {"drafter": {"name": "n-gram", "always": True}, "trace": True},
    },
    "several": {"n": 3},
}
KINDS = ["exact_native", pytest.param("exact_vllm", marks=pytest.mark.vllm)]
Choice = dict[str, Any]


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Client]:
    running: RealServer = request.getfixturevalue(request.param)
    with httpx.Client(base_url=running.url, timeout=300) as http:
        yield Client(http, MODEL)


def choices_of(server: Client, **fields: Any) -> list[Choice]:
    asked = {"logprobs": 5, "temperature": 0.8, "return_token_ids": True, "max_tokens": 16}
    return list(server.ask(COMPLETIONS, asked | fields)["choices"])


def streamed(server: Client, **fields: Any) -> list[Choice]:
    """Return the choices of a stream, put together."""
    asked = {"logprobs": 5, "temperature": 0.8, "max_tokens": 16, "stream": True}
    lines = server.send(COMPLETIONS, asked | fields).text.splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    whole: dict[int, Choice] = {}
    for piece in (piece for event in data for piece in json.loads(event)["choices"]):
        mine = whole.setdefault(piece["index"], {"text": "", "logprobs": {}})
        mine["text"] += piece["text"]
        for name, values in (piece["logprobs"] or {}).items():
            mine["logprobs"].setdefault(name, []).extend(values)
    return [whole[index] for index in sorted(whole)]


def read_again(server: Client, choice: Choice) -> list[tuple[float, dict[str, float]]]:
    """Return what the model gives to each token of an answer behind its prompt, and the best."""
    prompt = choice["prompt_token_ids"]
    echo = {"prompt": prompt + choice["token_ids"], "echo": True, "max_tokens": 0}
    (told,) = choices_of(server, **echo)
    shown = told["logprobs"]
    scores = zip(shown["token_logprobs"], shown["top_logprobs"], strict=True)
    return [*scores][len(prompt) :]


def assert_close(have: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    """Compare two `logprobs`: the same tokens, nearly the same values."""
    assert have["tokens"] == want["tokens"]
    assert have["text_offset"] == want["text_offset"]
    assert have["token_logprobs"] == pytest.approx(want["token_logprobs"], abs=TOLERANCE)
    for one, other in zip(have["top_logprobs"], want["top_logprobs"], strict=True):
        assert one == pytest.approx(other, abs=TOLERANCE)


@pytest.mark.parametrize("name", REQUESTS)
def test_logprobs_are_the_models_own(server: Client, name: str) -> None:
    for choice in choices_of(server, **REQUESTS[name]):
        shown = choice["logprobs"]
        want = read_again(server, choice)
        have = zip(shown["token_logprobs"], shown["top_logprobs"], strict=True)
        for (logprob, top), (own, best) in zip(have, want, strict=False):
            assert logprob == pytest.approx(own, abs=TOLERANCE)
            assert top == pytest.approx(best, abs=TOLERANCE)
        assert len(shown["tokens"]) in (len(want), len(want) - 1)  # the token that ended it


@pytest.mark.parametrize("name", REQUESTS)
def test_a_stream_tells_the_same(server: Client, name: str) -> None:
    whole, stream = choices_of(server, **REQUESTS[name]), streamed(server, **REQUESTS[name])
    assert [each["text"] for each in stream] == [each["text"] for each in whole]
    for have, want in zip(stream, whole, strict=True):
        assert_close(have["logprobs"], want["logprobs"])


def test_drafts_change_no_logprob(server: Client) -> None:
    fields = REQUESTS["drafts"]
    answer = server.ask(COMPLETIONS, {"logprobs": 5, "max_tokens": 16} | fields)
    assert answer["decoding"]["accepted"]["n-gram"] > 0
    (plain,) = choices_of(server, **fields | {"decoding": {"drafter": "off"}})
    assert_close(answer["choices"][0]["logprobs"], plain["logprobs"])


def test_a_schema_leaves_improbable_tokens_improbable(server: Client) -> None:
    """Where the schema has its way against the model, the logprob says so."""
    (choice,) = choices_of(server, **REQUESTS["a schema"])
    assert json.loads(choice["text"])["name"] in ("Ada", "Leo")
    assert min(choice["logprobs"]["token_logprobs"]) < -5


def test_only_the_server_limits_their_number(server: Client) -> None:
    (choice,) = choices_of(server, logprobs=0, prompt_logprobs=40)
    for entry in choice["prompt_logprobs"][1:]:
        assert len([each for each in entry.values() if each["rank"] is not None]) == 40


@pytest.mark.vllm
@pytest.mark.parametrize("name", REQUESTS)
def test_both_kinds_tell_the_same(
    exact_native: RealServer, exact_vllm: RealServer, name: str
) -> None:
    found = []
    for running in (exact_native, exact_vllm):
        with httpx.Client(base_url=running.url, timeout=300) as http:
            client = Client(http, MODEL)
            asked = REQUESTS[name] | {"prompt_logprobs": 3, "echo": True}
            found.append(choices_of(client, **asked))
    for have, want in zip(*found, strict=True):
        assert_close(have["logprobs"], want["logprobs"])
        pairs = zip(have["prompt_logprobs"][1:], want["prompt_logprobs"][1:], strict=True)
        for one, other in pairs:
            assert ranks_of(one) == ranks_of(other)
            assert values_of(one) == pytest.approx(values_of(other), abs=TOLERANCE)


def ranks_of(entry: dict[str, Any]) -> dict[str, int | None]:
    return {token: each["rank"] for token, each in entry.items()}


def values_of(entry: dict[str, Any]) -> dict[str, float]:
    return {token: each["logprob"] for token, each in entry.items()}
