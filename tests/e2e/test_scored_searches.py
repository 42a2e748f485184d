"""Searches that look ahead and ask scorers, over HTTP, with a service beside the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fixtures.real_server import RealServer, real_server
from tests.fixtures.scorers import ScorerService, scorer_service


@pytest.fixture(scope="module")
def service() -> Iterator[ScorerService]:
    """Likes texts without the letter e."""
    with scorer_service(lambda prompt, text, is_complete: 1 / (1 + text.count("e"))) as running:
        yield running


@pytest.fixture(scope="module")
def server(service: ScorerService) -> Iterator[RealServer]:
    options = ("--scorer-url", f"prm={service.url}", "--kv-cache-bytes", "100MB")
    with real_server(*options) as running:
        yield running


def complete(server: RealServer, status: int = 200, **fields: Any) -> Any:
    body = {"prompt": "Three animals are", "max_tokens": 24, "seed": 1, **fields}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_deal_finds_what_the_scorers_like(server: RealServer) -> None:
    """Greedy text has neither; usage tells what was looked at."""
    search = {"name": "deal", "beams": 2, "top_k": 4, "lookahead": 4, "reward_weight": 10}
    scorer = [
        {"name": "keywords", "keywords": ["dog", "cat", "bird"]},
        {"name": "form", "regex": "[^0-9]*", "weight": 0.5},
    ]
    found = complete(server, decoding={"search": search, "scorer": scorer, "trace": True})
    text = found["choices"][0]["text"]
    assert sum(word in text for word in ("dog", "cat", "bird")) >= 2
    assert found["decoding"]["scores"] > 20
    details = found["usage"]["completion_tokens_details"]
    assert details["searched_tokens"] > found["usage"]["completion_tokens"]


def test_a_star_asks_the_service_of_the_operator(
    server: RealServer, service: ScorerService
) -> None:
    search = {"name": "a-star", "delimiters": [",", "."], "max_step_tokens": 8}
    search["max_expansions"] = 6
    decoding = {"search": search, "scorer": {"name": "http", "endpoint": "prm"}}
    first = complete(server, decoding=decoding)
    again = complete(server, decoding=decoding)
    assert first["choices"] == again["choices"]
    assert first.get("decoding") in (None, {"budget": "expansions"})
    assert service.calls[0][0]["prompt"].endswith("Three animals are")


def test_what_goes_wrong_is_told(server: RealServer, service: ScorerService) -> None:
    search = {"name": "deal"}
    refused = complete(
        server,
        400,
        decoding={"search": search, "scorer": {"name": "http", "endpoint": "http://127.0.0.1"}},
    )
    assert refused["error"]["param"] == "decoding.scorer.endpoint"
    form = {"name": "form", "json_schema": {"type": "nonsense"}}
    refused = complete(server, 400, decoding={"search": search, "scorer": form})
    assert refused["error"]["param"] == "decoding.scorer"
    service.status = 500
    decoding = {"search": search, "scorer": {"name": "http", "endpoint": "prm"}}
    assert "scorer" in complete(server, 503, decoding=decoding)["error"]["message"]
    service.status = 200
    complete(server, decoding=decoding)


def test_ada_dec_looks_ahead(server: RealServer) -> None:
    found = complete(
        server, decoding={"search": {"name": "ada-dec", "tau": 1.5}, "trace": True}, max_tokens=16
    )
    assert found["decoding"]["pauses"] > 0
    never = complete(server, decoding={"search": {"name": "ada-dec", "tau": 1e9}}, max_tokens=16)
    greedy = complete(server, temperature=0, max_tokens=16)
    assert never["choices"][0]["text"] == greedy["choices"][0]["text"]
