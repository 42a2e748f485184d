"""The client of the benchmarks and the gate: what they count, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from benchmarks.client import ServerFault, ask
from benchmarks.rows import QUESTIONS, Bench, RedGate, check
from benchmarks.servers import Command, NotReady, running

USAGE = {"prompt_tokens": 9, "completion_tokens": 5}


def _events(*texts: str) -> bytes:
    deltas = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    chunks = [*deltas, {"choices": [], "usage": USAGE}]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([": keep-alive\n\n", *lines, "data: [DONE]\n\n"]).encode()


def _streamed(content: bytes) -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(content))


def _client(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url="http://peer", transport=httpx.MockTransport(answer))


async def test_tokens_are_counted_by_usage_not_by_chunks() -> None:
    content = _events("two tok", "ens each")
    async with _client(lambda _: _streamed(content)) as client:
        have = await ask(client, "m", [], 5)
    assert (have.text, have.prompt_tokens, have.tokens) == ("two tokens each", 9, 5)
    assert have.sent <= have.first <= have.last <= have.ended


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(503, content=b"busy"),
        _streamed(b'data: {"error": {"message": "busy"}}\n\n'),
    ],
)
async def test_errors_end_the_measurement(response: httpx.Response) -> None:
    async with _client(lambda _: response) as client:
        with pytest.raises(ServerFault, match="busy"):
            await ask(client, "m", [], 5)


def _answering(known: dict[str, str]) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        question = json.loads(request.content)["messages"][0]["content"]
        return _streamed(_events(known.get(question, '{"name": "A"}')))

    return answer


@pytest.mark.parametrize("num_wrong", [0, 2])
async def test_the_gate_counts_right_answers(num_wrong: int) -> None:
    known = QUESTIONS | dict.fromkeys([*QUESTIONS][:num_wrong], "no idea")
    async with _client(_answering(known)) as client:
        have = await check(Bench(client, "m"))
    assert have.value == len(QUESTIONS) - num_wrong


async def test_the_gate_is_red_when_all_answers_are_wrong() -> None:
    async with _client(_answering(dict.fromkeys(QUESTIONS, "no idea"))) as client:
        with pytest.raises(RedGate, match="no idea"):
            await check(Bench(client, "m"))


async def test_the_gate_is_red_for_answers_that_change() -> None:
    texts = iter(["4", "four"])
    async with _client(lambda _: _streamed(_events(next(texts)))) as client:
        with pytest.raises(RedGate, match="'4' and 'four'"):
            await check(Bench(client, "m"))


async def test_prompts_share_no_prefix() -> None:
    async with _client(_answering({})) as client:
        bench = Bench(client, "m")
        prompts = {bench.prompt("same")[0]["content"].split()[0] for _ in range(100)}
    assert len(prompts) == 100


def test_a_server_that_ends_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(NotReady, match="ended with 3"),
        running(Command(["sh", "-c", "exit 3"], ready="/"), tmp_path / "log"),
    ):
        pass
