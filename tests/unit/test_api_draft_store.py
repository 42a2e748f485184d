"""The routes of draft stores: who may do what to which store, and what they answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from plait.server.api.app import create_app
from plait.server.settings import ApiSettings, LimitSettings
from plait.server.telemetry.telemetry import Telemetry
from tests.fixtures.running_server import QUIET
from tests.fixtures.stub_pool import INFO, StubModel, StubPool

KEYS = ("sk-one", "sk-two")


@asynccontextmanager
async def client_of(
    pool: StubPool, key: str | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(ApiSettings(**settings), pool, Telemetry(QUIET))
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as made:
        yield made


async def tokens(client: httpx.AsyncClient, **query: str) -> int:
    have = await client.get("/v1/draft_store", params=query)
    assert have.status_code == 200, have.text
    found: int = have.json()["tokens"]
    return found


async def test_texts_and_token_ids_are_imported_and_cleared() -> None:
    pool = StubPool()
    async with client_of(pool) as client:
        body = {"texts": ["hello", [1, 2, 3, 4]]}
        have = await client.post("/v1/draft_store/import", json=body)
        assert have.json() == {
            "object": "draft_store",
            "model": "stub",
            "workers": 2,
            "tokens": 9,
            "max_tokens": 2**16,
            "affected": 9,
        }
        assert pool.tasks[0].texts == [list(b"hello"), [1, 2, 3, 4]]
        assert await tokens(client, model="stub") == 9
        have = await client.post("/v1/draft_store/clear", json={})
        assert (have.json()["affected"], have.json()["tokens"]) == (9, 0)


async def test_each_key_and_salt_has_a_store_of_its_own() -> None:
    pool = StubPool()
    async with (
        client_of(pool, "sk-one", api_keys=KEYS) as one,
        client_of(pool, "sk-two", api_keys=KEYS) as two,
    ):
        body = {"texts": [[1, 2, 3]], "cache_salt": "s"}
        await one.post("/v1/draft_store/import", json=body)
        assert await tokens(one, cache_salt="s") == 3
        assert await tokens(one) == await tokens(two) == await tokens(two, cache_salt="s") == 0
        await two.post("/v1/draft_store/clear", json={"cache_salt": "s"})
        assert await tokens(one, cache_salt="s") == 3


async def test_the_namespace_is_that_of_requests() -> None:
    pool = StubPool()
    async with client_of(pool, "sk-one", api_keys=KEYS) as client:
        completion = {"model": "stub", "prompt": "a", "max_tokens": 1, "cache_salt": "s"}
        await client.post("/v1/completions", json=completion)
        await client.get("/v1/draft_store", params={"cache_salt": "s"})
    assert pool.tasks[0].namespace == pool.requests[0].cache_salt


async def test_all_stores_are_cleared_only_where_there_are_no_keys() -> None:
    pool = StubPool()
    async with client_of(pool) as client:
        for salt in ("a", "b"):
            body = {"texts": [[1, 2, 3]], "cache_salt": salt}
            await client.post("/v1/draft_store/import", json=body)
        have = await client.post("/v1/draft_store/clear", json={"everywhere": True})
        assert have.json()["affected"] == 6
    async with client_of(pool, "sk-one", api_keys=KEYS) as client:
        have = await client.post("/v1/draft_store/clear", json={"everywhere": True})
    assert (have.status_code, have.json()["error"]["param"]) == (400, "everywhere")


async def test_saving_without_a_folder_is_refused() -> None:
    async with client_of(StubPool()) as client:
        have = await client.post("/v1/draft_store/save", json={})
    assert have.status_code == 400
    assert "--draft-store" in have.json()["error"]["message"]


BAD = [
    ({"texts": []}, "texts"),
    ({"texts": [""]}, "texts[0]"),
    ({"texts": [[]]}, "texts[0]"),
    ({"texts": [[1, 2, 9_999]]}, "texts[0]"),
    ({"texts": [[-1]]}, "texts[0][0]"),
    ({"texts": "hello"}, "texts"),
    ({"texts": ["a" * 101]}, "texts"),
    ({"texts": [[1] * 60, [1] * 60]}, "texts"),
    ({"texts": ["abc"], "cache_salt": "x" * 200}, "cache_salt"),
    ({"texts": ["abc"], "model": "other"}, "model"),
    ({"texts": ["abc"], "namespace": "x"}, "namespace"),
]


@pytest.mark.parametrize(("body", "param"), BAD)
async def test_what_can_not_be_imported_is_named(body: dict[str, Any], param: str) -> None:
    pool = StubPool()
    async with client_of(pool, limits=LimitSettings(max_import_tokens=100)) as client:
        have = await client.post("/v1/draft_store/import", json=body)
    assert have.status_code in (400, 404)
    assert have.json()["error"]["param"] == param
    assert not pool.tasks


@pytest.mark.parametrize("query", [{"cache_salt": "x" * 200}, {"cache_salt": ""}, {"x": "y"}])
async def test_what_can_not_be_looked_up_is_refused(query: dict[str, str]) -> None:
    async with client_of(StubPool()) as client:
        have = await client.get("/v1/draft_store", params=query)
    assert have.status_code == 400
    assert have.json()["error"]["param"] == next(iter(query))


async def test_a_loading_model_has_no_store_yet() -> None:
    async with client_of(StubPool(served=[StubModel(info=None)])) as client:
        assert (await client.get("/v1/draft_store")).status_code == 503


async def test_the_document_has_the_routes() -> None:
    async with client_of(StubPool()) as client:
        document = (await client.get("/openapi.json")).json()
    for path in ("import", "clear", "save"):
        answer = document["paths"][f"/v1/draft_store/{path}"]["post"]["responses"]["200"]
        assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/DraftStoreStatus")
    assert "DraftStoreStatus" in document["components"]["schemas"]


async def test_workers_without_draft_stores_are_told_by_name() -> None:
    info = msgspec.structs.replace(INFO, capabilities=["prompt_logprobs"])
    pool = StubPool(served=[StubModel(info=info)])
    async with client_of(pool) as client:
        for have in (
            await client.get("/v1/draft_store"),
            await client.post("/v1/draft_store/import", json={"texts": ["hello"]}),
            await client.post("/v1/draft_store/clear", json={}),
            await client.post("/v1/draft_store/save", json={}),
        ):
            assert have.status_code == 400
            error = have.json()["error"]
            assert (error["param"], error["code"]) == ("model", "unsupported_parameter")
            assert "the workers of 'stub' have no draft store" in error["message"]
    assert pool.tasks == []
