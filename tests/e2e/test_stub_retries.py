"""What the official client does with our errors: it retries what may pass, after Retry-After."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import openai
import pytest

from plait.server.errors import DeadlineExceeded, Overloaded, ServerError, Unavailable
from plait.server.settings import ApiSettings
from plait.server.wire.messages import GenerateRequest
from tests.fixtures.running_server import running, stub_app
from tests.fixtures.stub_pool import Event, Script, StubPool

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


def refusal(error: ServerError) -> Script:
    async def script(request: GenerateRequest) -> AsyncIterator[Event]:
        raise error
        yield

    return script


@contextmanager
def client_of(pool: StubPool, *, retries: int = 0) -> Iterator[openai.OpenAI]:
    with (
        running(stub_app(pool)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=retries) as client,
    ):
        yield client


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    "error",
    [Overloaded("full", retry_after_s=1), Unavailable("a worker died", retry_after_s=1)],
    ids=["429", "503"],
)
def test_retried_after_the_time_we_say(error: ServerError, streams: bool) -> None:
    pool = StubPool()
    pool.scripts.extend([refusal(error)])
    with client_of(pool, retries=1) as client:
        began = time.monotonic()
        answer = client.chat.completions.create(
            model="stub", messages=MESSAGES, max_tokens=3, stream=streams
        )
        if streams:
            assert list(answer)
        assert time.monotonic() - began >= 1
    assert len(pool.requests) == 2
    assert len({request.request_id for request in pool.requests}) == 2


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (Overloaded("full"), openai.RateLimitError, "rate_limit_exceeded"),
        (Unavailable("down"), openai.InternalServerError, "service_unavailable"),
    ],
)
def test_errors_carry_retry_after(
    error: ServerError, kind: type[openai.APIStatusError], code: str
) -> None:
    pool = StubPool()
    pool.scripts.append(refusal(error))
    with client_of(pool) as client, pytest.raises(kind) as caught:
        client.chat.completions.create(model="stub", messages=MESSAGES)
    assert caught.value.code == code
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.request_id


def test_a_deadline_is_not_retried() -> None:
    pool = StubPool()
    pool.scripts.append(refusal(DeadlineExceeded("late")))
    with client_of(pool, retries=2) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="stub", messages=MESSAGES)
    assert caught.value.status_code == 504
    assert len(pool.requests) == 1


def test_wrong_keys_are_a_401_and_right_ones_pass() -> None:
    settings = ApiSettings(api_keys=("sk-one", "sk-zwei-ü"))
    with running(stub_app(settings=settings)) as url:
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong") as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-one") as client:
            assert client.models.list().data
