"""The layers around the routes: keys, ids, probes, metrics, logs, CORS, the document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
import structlog
from fastapi import FastAPI

from plait.server.api.app import create_app
from plait.server.settings import ApiSettings, TelemetrySettings
from plait.server.telemetry.telemetry import Telemetry
from tests.fixtures.running_server import QUIET
from tests.fixtures.stub_pool import INFO, StubModel, StubPool, StubReadiness

HELLO = {"model": "stub", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
KEYS = ("sk-one", "sk-zwei-ü")


def app_of(
    pool: StubPool | None = None,
    telemetry: Telemetry | None = None,
    **settings: Any,
) -> FastAPI:
    return create_app(ApiSettings(**settings), pool or StubPool(), telemetry or Telemetry(QUIET))


@asynccontextmanager
async def client_of(app: FastAPI, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", **options) as made:
        yield made


ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/stub"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/draft_store"),
    ("POST", "/v1/draft_store/import"),
    ("POST", "/v1/draft_store/clear"),
    ("POST", "/v1/draft_store/save"),
    ("GET", "/version"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/"),
    ("HEAD", "/v1/models"),
    ("GET", "/v1/models/"),
    ("GET", "/no/such/route"),
    ("GET", "/healthz"),
    ("GET", "/healthz"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "header",
    [None, "Bearer", "Bearer ", "Bearer sk-on", "Bearer SK-ONE", "Basic sk-one", "sk-one"],
)
async def test_everything_is_closed_without_a_key(
    method: str, path: str, header: str | None
) -> None:
    headers = {} if header is None else {"authorization": header}
    async with client_of(app_of(api_keys=KEYS)) as client:
        have = await client.request(method, path, headers=headers)
    assert have.status_code == 401
    if method != "HEAD":
        assert have.json()["error"]["code"] == "invalid_api_key"
    assert have.headers["x-request-id"]


@pytest.mark.parametrize(("protects", "want"), [(False, 200), (True, 401)])
async def test_probes_are_open_and_metrics_by_choice(protects: bool, want: int) -> None:
    async with client_of(app_of(api_keys=KEYS, protect_metrics=protects)) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        assert (await client.get("/metrics")).status_code == want


@pytest.mark.parametrize(
    "header", [b"Bearer sk-one", b"bearer sk-one", "Bearer sk-zwei-ü".encode()]
)
async def test_each_key_opens_the_door(header: bytes) -> None:
    async with client_of(app_of(api_keys=KEYS)) as client:
        have = await client.get("/v1/models", headers={b"authorization": header})
    assert have.status_code == 200


async def test_bytes_that_are_no_text_are_just_a_wrong_key() -> None:
    async with client_of(app_of(api_keys=KEYS)) as client:
        have = await client.get("/v1/models", headers={b"authorization": b"Bearer \xff\xfe"})
    assert have.status_code == 401


async def test_tenants_and_salts_never_share_a_prefix_cache() -> None:
    pool = StubPool()
    async with client_of(app_of(pool, api_keys=KEYS)) as client:
        for key in (b"sk-one", "sk-zwei-ü".encode()):
            for salt in (None, "a"):
                headers = {b"authorization": b"Bearer " + key}
                answer = await client.post(
                    "/v1/chat/completions", json=HELLO | {"cache_salt": salt}, headers=headers
                )
                assert answer.status_code == 200
    salts = [request.cache_salt for request in pool.requests]
    assert len(set(salts)) == 4
    assert not any("sk-" in salt for salt in salts)


async def test_without_keys_and_salts_all_share() -> None:
    pool = StubPool()
    async with client_of(app_of(pool)) as client:
        await client.post("/v1/chat/completions", json=HELLO)
    assert pool.requests[0].cache_salt == ""


async def test_health_tells_of_the_pool_and_ready_of_its_mood() -> None:
    pool = StubPool(readiness=StubReadiness(False, "draining"))
    async with client_of(app_of(pool)) as client:
        assert (await client.get("/health")).status_code == 200
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["error"]["message"]) == (503, "draining")
        assert int(ready.headers["retry-after"]) >= 1
        refused = await client.post("/v1/chat/completions", json=HELLO)
        assert refused.status_code == 503
        pool.is_alive = False
        assert (await client.get("/health")).status_code == 503


async def test_a_model_that_loads_is_listed_but_not_served() -> None:
    pool = StubPool(served=[StubModel(info=None)])
    async with client_of(app_of(pool)) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [(model["id"], model["max_model_len"]) for model in listed] == [("stub", None)]
        answer = await client.post("/v1/chat/completions", json=HELLO)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


async def test_models_are_found_by_names_with_slashes() -> None:
    other = StubModel(name="org/model-b", info=msgspec.structs.replace(INFO, model="org/model-b"))
    pool = StubPool(served=[StubModel(), other])
    async with client_of(app_of(pool)) as client:
        assert (await client.get("/v1/models/org/model-b")).json()["id"] == "org/model-b"
        nameless = await client.post("/tokenize", json={"prompt": "x"})
    assert (nameless.status_code, nameless.json()["error"]["param"]) == (400, "model")


async def test_tokenize_and_back() -> None:
    async with client_of(app_of()) as client:
        body = {"model": "stub", "prompt": "hé<|im_end|>", "return_token_strs": True}
        have = (await client.post("/tokenize", json=body)).json()
        assert have == {
            "count": 4,
            "max_model_len": 2048,
            "tokens": [104, 195, 169, 258],
            "token_strs": ["h", "Ã", "©", "<|im_end|>"],  # as the vocabulary writes them
        }
        back = await client.post("/detokenize", json={"tokens": have["tokens"]})
        assert back.json() == {"prompt": "hé<|im_end|>"}
        chat = {"messages": HELLO["messages"], "add_generation_prompt": False}
        assert (await client.post("/tokenize", json=chat)).json()["count"] > 0
        for bad in ({}, {"prompt": "x", "messages": HELLO["messages"]}, {"tokens": [1]}):
            assert (await client.post("/tokenize", json=bad)).status_code == 400
        too_high = await client.post("/detokenize", json={"tokens": [259]})
        assert too_high.json()["error"]["param"] == "tokens"


async def test_metrics_count_by_template() -> None:
    telemetry = Telemetry(QUIET)
    async with client_of(app_of(telemetry=telemetry)) as client:
        await client.get("/v1/models/stub")
        await client.get("/v1/models/absent")
        await client.get("/made/up")
        text = (await client.get("/metrics")).text
    route = 'route="/v1/models/{model_id:path}"'
    assert f'plait_http_requests_total{{method="GET",{route},status="200"}} 1.0' in text
    assert f'plait_http_requests_total{{method="GET",{route},status="404"}} 1.0' in text
    assert "made/up" not in text


async def test_the_access_line_says_who_and_hides_what() -> None:
    telemetry = Telemetry(TelemetrySettings(access_log=True))
    body = HELLO | {"user": "u1", "safety_identifier": "s1"}
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as lines:
        async with client_of(app_of(telemetry=telemetry)) as client:
            answer = await client.post(
                "/v1/chat/completions", json=body, headers={"x-request-id": "mine"}
            )
    assert answer.headers["x-request-id"] == "mine"
    (line,) = (line for line in lines if line["event"] == "request")
    assert (line["user"], line["safety_identifier"]) == ("u1", "s1")
    assert (line["path"], line["status"]) == ("/v1/chat/completions", 200)
    assert line["request_id"] == "mine"
    assert line["job"] == answer.json()["id"]
    assert "hi" not in str(lines)


async def test_prompts_are_logged_only_if_wanted() -> None:
    telemetry = Telemetry(TelemetrySettings(access_log=False, log_prompts=True))
    with structlog.testing.capture_logs() as lines:
        async with client_of(app_of(telemetry=telemetry)) as client:
            await client.post("/v1/chat/completions", json=HELLO)
    (line,) = lines
    assert line["event"] == "prompt"
    assert "<|im_start|>user\nhi" in line["prompt"]


async def test_a_fault_of_ours_tells_nothing_but_its_id() -> None:
    class Broken(StubPool):
        def models(self) -> list[StubModel]:
            raise ZeroDivisionError("secret")

    async with client_of(app_of(Broken())) as client:
        have = await client.get("/v1/models")
    assert have.status_code == 500
    assert have.json()["error"]["code"] == "internal_error"
    assert "secret" not in have.text
    assert have.headers["x-request-id"].startswith("req_")


async def test_cors_is_off_unless_named() -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    async with client_of(app_of()) as client:
        have = await client.options("/v1/chat/completions", headers=asked)
        assert "access-control-allow-origin" not in have.headers
    named = app_of(cors_origins=("https://a.example",), api_keys=KEYS)
    async with client_of(named) as client:
        have = await client.options("/v1/chat/completions", headers=asked)
        assert have.status_code == 200
        assert have.headers["access-control-allow-origin"] == "https://a.example"


async def test_the_document_is_sound() -> None:
    async with client_of(app_of()) as client:
        document = (await client.get("/openapi.json")).json()
    text = str(document)
    for name in document["components"]["schemas"]:
        assert name in text
    assert "422" not in text
    assert "security" not in document
    locked = app_of(api_keys=KEYS).openapi()
    assert locked["security"] == [{"key": []}]
