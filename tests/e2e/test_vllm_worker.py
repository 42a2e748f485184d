"""A vLLM worker and the native one: equal tokens in equal numerics, and seeds that hold."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import httpx
import pytest

from benchmarks import bf16_ties
from tests.fixtures.real_server import MODEL, RealServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200)]
WORDS = [
    "sea",
    "ship",
    "harbour",
    "storm",
    "captain",
    "map",
    "island",
    "rope",
    "bird",
    "salt",
    "night",
    "star",
]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": WORDS}, "maxItems": 3, "uniqueItems": True},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


def bodies(count: int, seed: int) -> list[dict[str, Any]]:
    """Return requests with random parameters; some repeat themselves, a fifth ask for JSON."""
    rng = random.Random(seed)
    return [_body(rng, seed=rng.getrandbits(32)) for _ in range(count)]


def _body(rng: random.Random, *, seed: int) -> dict[str, Any]:
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))
    fields: dict[str, Any] = {
        "temperature": rng.choice((0.0, 0.7, 1.0, 1.5)),
        "top_p": rng.choice((1.0, 1.0, 0.8)),
        "top_k": rng.choice((0, 0, 20)),
        "min_p": rng.choice((0.0, 0.0, 0.05)),
        "frequency_penalty": rng.choice((0.0, 0.0, 0.6)),
        "repetition_penalty": rng.choice((1.0, 1.0, 1.2)),
        "logit_bias": rng.choice(({}, {}, {"260": 2.0, "30": -5.0})),
        "min_tokens": rng.choice((0, 0, 4)),
        "n": rng.choice((1, 1, 1, 2)),
    }
    max_tokens = rng.randint(4, 12)
    if rng.random() < 0.2:
        fields |= {"response_format": FORMAT, "min_tokens": 0}
        max_tokens = 48
    elif rng.random() < 0.2:
        text = f"Say again: {text}. {text}. {text}."
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "seed": seed,
        **fields,
    }


async def answers(
    server: RealServer, requests: list[dict[str, Any]], *, at_once: int
) -> list[list[tuple[str, str]]]:
    """Return the texts of each answer, and why they ended."""
    limit = asyncio.Semaphore(at_once)

    async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> list[tuple[str, str]]:
        async with limit:
            response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == httpx.codes.OK, response.text
        choices = response.json()["choices"]
        return [(choice["message"]["content"], choice["finish_reason"]) for choice in choices]

    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        return list(await asyncio.gather(*(one(client, body) for body in requests)))


async def test_tokens_are_those_of_a_native_worker(
    exact_vllm: RealServer, exact_native: RealServer
) -> None:
    requests = bodies(60, seed=1)
    want = await answers(exact_native, requests, at_once=16)
    assert await answers(exact_vllm, requests, at_once=16) == want
    drafted = exact_vllm.metric("vllm:spec_decode_num_draft_tokens_total")
    assert drafted > 0, "nothing was drafted"


async def test_a_seed_gives_the_same_text_alone_in_a_batch_and_after_a_restart(
    exact_vllm: RealServer,
) -> None:
    requests = bodies(200, seed=2)
    alone = await answers(exact_vllm, requests, at_once=1)
    assert await answers(exact_vllm, requests, at_once=16) == alone
    exact_vllm.worker().kill()
    exact_vllm.wait_until(lambda: not exact_vllm.is_ready())
    exact_vllm.wait_ready()
    assert await answers(exact_vllm, requests, at_once=16) == alone


async def test_a_text_that_is_read_again_goes_on_alike(exact_vllm: RealServer) -> None:
    """The noise is keyed by place, so a cut text with the same seed is the rest of the whole one.

    What is read again comes from the prefix cache in part: a fork of a sequence would be no more.
    """
    rng = random.Random(4)
    asked = [
        {
            "model": MODEL,
            "prompt": " ".join(rng.choice(WORDS) for _ in range(40)),
            "max_tokens": 40,
            "seed": rng.getrandbits(32),
            "temperature": rng.choice((0.0, 0.7, 1.2)),
            "top_p": rng.choice((1.0, 0.9)),
            "return_token_ids": True,
            "ignore_eos": True,
        }
        for _ in range(40)
    ]
    whole = await completions(exact_vllm, asked)
    hits = exact_vllm.metric("vllm:prefix_cache_hits_total")
    cuts = [rng.randrange(1, len(each["token_ids"])) for each in whole]
    again = [
        {
            **body,
            "prompt": each["prompt_token_ids"] + each["token_ids"][:cut],
            "max_tokens": 40 - cut,
        }
        for body, each, cut in zip(asked, whole, cuts, strict=True)
    ]
    have = [each["token_ids"] for each in await completions(exact_vllm, again)]
    assert have == [each["token_ids"][cut:] for each, cut in zip(whole, cuts, strict=True)]
    await asyncio.to_thread(exact_vllm.wait_until, exact_vllm.is_idle)
    assert exact_vllm.metric("vllm:prefix_cache_hits_total") - hits >= 32 * len(asked)


async def completions(server: RealServer, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the choices of completions that run eight at a time."""
    limit = asyncio.Semaphore(8)

    async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        async with limit:
            response = await client.post("/v1/completions", json=body)
        assert response.status_code == httpx.codes.OK, response.text
        choice: dict[str, Any] = response.json()["choices"][0]
        return choice

    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        return list(await asyncio.gather(*(one(client, body) for body in bodies)))


def test_in_bf16_they_part_at_near_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bf16_ties", "--requests", "12"])
    assert bf16_ties.main() == 0
