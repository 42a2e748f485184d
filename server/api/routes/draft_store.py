"""/v1/draft_store: the texts that drafters draft from, in the caller's own namespace."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from plait.server.api.app_state import pool_of, settings_of, tokenization_of
from plait.server.api.auth import tenant_of
from plait.server.api.interfaces import ServedModelLike
from plait.server.api.json_body import JsonRoute
from plait.server.api.openapi import response_docs
from plait.server.api.requests.job import cache_namespace, find_model, require_info
from plait.server.api.requests.model_support import unsupported
from plait.server.api.requests.sampling import check_ids, shared_vocab_size
from plait.server.api.schemas.draft_store import (
    ClearRequest,
    DraftStoreRequest,
    ImportRequest,
    SaveRequest,
)
from plait.server.errors import BadRequest
from plait.server.wire.messages import DraftStoreTask

router = APIRouter(route_class=JsonRoute, tags=["drafts"])


class DraftStoreStatus(msgspec.Struct, frozen=True):
    """The state of a draft store; each of the model's workers has one."""

    model: str
    workers: int
    tokens: int  # in the namespace, of the worker that has the fewest
    max_tokens: int  # that a namespace may keep
    affected: int = 0  # tokens imported, cleared or saved, of the worker with the fewest
    object: Literal["draft_store"] = "draft_store"


@router.get("/v1/draft_store", response_model=None, responses=response_docs(DraftStoreStatus))
async def look(query: Annotated[DraftStoreRequest, Query()], request: Request) -> Response:
    """Tell how much is kept in the caller's draft store."""
    task = DraftStoreTask(_new_id(), "inspect", _namespace(request, query.cache_salt))
    return await _do(request, _served(request, query.model), task)


@router.post(
    "/v1/draft_store/import", response_model=None, responses=response_docs(DraftStoreStatus)
)
async def import_texts(body: ImportRequest, request: Request) -> Response:
    """Add texts to the caller's draft store."""
    served = _served(request, body.model)
    namespace = _namespace(request, body.cache_salt)
    limit = settings_of(request).limits.max_import_tokens
    size = sum(map(len, body.texts))
    work = partial(_token_ids, body, served, limit)
    texts = await tokenization_of(request).run(tenant_of(request), size, work)
    task = DraftStoreTask(_new_id(), "import", namespace, texts)
    return await _do(request, served, task)


@router.post(
    "/v1/draft_store/clear", response_model=None, responses=response_docs(DraftStoreStatus)
)
async def clear(body: ClearRequest, request: Request) -> Response:
    """Empty the caller's draft store, in memory and on disk."""
    if body.everywhere and settings_of(request).api_keys:
        raise BadRequest(
            "With API keys, a key clears its own stores only, one salt at a time.",
            param="everywhere",
        )
    namespace = _namespace(request, body.cache_salt)
    task = DraftStoreTask(_new_id(), "clear", namespace, everywhere=bool(body.everywhere))
    return await _do(request, _served(request, body.model), task)


@router.post("/v1/draft_store/save", response_model=None, responses=response_docs(DraftStoreStatus))
async def save(body: SaveRequest, request: Request) -> Response:
    """Write the model's draft stores to the server's disk now, not only when it stops."""
    task = DraftStoreTask(_new_id(), "save", _namespace(request, None))
    return await _do(request, _served(request, body.model), task)


async def _do(request: Request, served: ServedModelLike, task: DraftStoreTask) -> Response:
    reports = await pool_of(request).draft_store(served.name, task)
    store = DraftStoreStatus(
        served.name,
        workers=len(reports),
        tokens=min(each.tokens for each in reports),
        max_tokens=min(each.max_tokens for each in reports),
        affected=min(each.affected for each in reports),
    )
    return Response(msgspec.json.encode(store), media_type="application/json")


def _served(request: Request, name: str | None) -> ServedModelLike:
    """Return a served model that has draft stores; raise ServerError for others."""
    served = find_model(pool_of(request), name)
    if "draft_store" not in require_info(served).capabilities:
        why = f"the workers of {served.name!r} have no draft store"
        raise unsupported(why, "model", "draft_store")
    return served


def _namespace(request: Request, salt: str | None) -> str:
    limit = settings_of(request).limits.max_cache_salt_chars
    if len(salt or "") > limit:
        raise BadRequest(f"cache_salt may have at most {limit} characters.", param="cache_salt")
    return cache_namespace(tenant_of(request), salt or "")


def _token_ids(body: ImportRequest, served: ServedModelLike, limit: int) -> list[list[int]]:
    """Return the texts as token ids, tokenized as within an output."""
    tokenizer = served.tokenizer
    vocab_size = shared_vocab_size(tokenizer, require_info(served))
    found: list[list[int]] = []
    left = limit
    for i, text in enumerate(body.texts):
        if isinstance(text, str):
            is_long = tokenizer.min_token_count(text) > left
            tokens = [0] * (left + 1) if is_long else tokenizer.encode_inside(text)
        else:
            check_ids(text, vocab_size, param=f"texts[{i}]")
            tokens = list(text)
        left -= len(tokens)
        if left < 0:
            raise BadRequest(
                f"The texts may have at most {limit} tokens together; import them in parts.",
                param="texts",
            )
        found.append(tokens)
    return found


def _new_id() -> str:
    return uuid.uuid4().hex
