"""POST /v1/classify, and the prototypes that it may compare with."""

from __future__ import annotations

import asyncio
import time
import uuid
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from structlog.contextvars import bind_contextvars

from plait.server.api.app_state import pool_of, prototypes_of, settings_of, tokenization_of
from plait.server.api.auth import tenant_of
from plait.server.api.classify.answer import (
    ClassificationList,
    DeletedPrototypes,
    PrototypeSet,
    PrototypeSetList,
    classifications,
    prototype_set,
)
from plait.server.api.classify.job import find_scoring_model, run_task
from plait.server.api.classify.prototypes import Prototypes, train
from plait.server.api.classify.task import classify_task, training_task
from plait.server.api.disconnect import cancel_on_disconnect
from plait.server.api.json_body import JsonRoute
from plait.server.api.openapi import response_docs
from plait.server.api.requests.job import RequestContext, require_info
from plait.server.api.responses.objects import encode
from plait.server.api.schemas.classify import ClassifyRequest, ScoringFields, TrainRequest
from plait.server.errors import BadRequest

router = APIRouter(route_class=JsonRoute, tags=["classification"])
ALL = "/v1/classify/prototypes"
ONE = "/v1/classify/prototypes/{name}"


@router.post("/v1/classify", response_model=None, responses=response_docs(ClassificationList))
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """Find the class of a text, or of several, by label words or prototypes."""
    work = _classify(body, request, _context(request))
    return _json(await cancel_on_disconnect(request.receive, work))


@router.post(ALL, response_model=None, responses=response_docs(PrototypeSet))
async def train_prototypes(body: TrainRequest, request: Request) -> Response:
    """Make prototypes of labelled examples, and keep them in memory."""
    work = _train(body, request, _context(request))
    return _json(await cancel_on_disconnect(request.receive, work))


@router.get(ALL, response_model=None, responses=response_docs(PrototypeSetList))
async def list_prototypes(request: Request) -> Response:
    """List the caller's prototypes."""
    own = prototypes_of(request).all(tenant_of(request))
    return _json(PrototypeSetList([prototype_set(each) for each in own]))


@router.get(ONE, response_model=None, responses=response_docs(PrototypeSet))
async def retrieve_prototypes(name: str, request: Request) -> Response:
    """Tell of prototypes; this counts as a use."""
    found = prototypes_of(request).use(tenant_of(request), name, param="name")
    return _json(prototype_set(found))


@router.delete(ONE, response_model=None, responses=response_docs(DeletedPrototypes))
async def delete_prototypes(name: str, request: Request) -> Response:
    """Forget prototypes."""
    prototypes_of(request).drop(tenant_of(request), name)
    return _json(DeletedPrototypes(name))


async def _classify(
    body: ClassifyRequest, request: Request, context: RequestContext
) -> ClassificationList:
    job_id = _begin(body)
    served = find_scoring_model(pool_of(request), body.model)
    prototypes = _named_prototypes(body, request, served.name)
    task = classify_task(body, prototypes)
    limits, has_prototypes = settings_of(request).limits, prototypes is not None
    done = await run_task(
        pool_of(request), limits, body, task, context, wants_hidden=has_prototypes
    )
    work = partial(classifications, body, done.scores, prototypes)
    return ClassificationList(
        job_id,
        int(time.time()),
        served.name,
        require_info(served).fingerprint,
        await asyncio.to_thread(work),
        done.usage,
    )


async def _train(body: TrainRequest, request: Request, context: RequestContext) -> PrototypeSet:
    _begin(body)
    served = find_scoring_model(pool_of(request), body.model)
    task = training_task(body)
    limits = settings_of(request).limits
    done = await run_task(pool_of(request), limits, body, task, context, wants_hidden=True)
    views = iter([[each.hidden for each in own] for own in zip(*done.scores, strict=True)])
    examples = {label: [next(views) for _ in texts] for label, texts in body.examples.items()}
    templates = [each.text for each in task.templates]
    made = await asyncio.to_thread(partial(train, body.name, served.name, templates, examples))
    prototypes_of(request).put(context.tenant, made)
    return prototype_set(made, done.usage)


def _named_prototypes(body: ClassifyRequest, request: Request, model: str) -> Prototypes | None:
    """Return the prototypes that a request names; raise BadRequest for those of another model."""
    if body.prototypes is None:
        return None
    found = prototypes_of(request).use(tenant_of(request), body.prototypes, param="prototypes")
    if found.model != model:
        raise BadRequest(f"These are prototypes of the model {found.model!r}.", param="prototypes")
    return found


def _begin(body: ScoringFields) -> str:
    """Bind a request's identifiers to its log lines; return its id."""
    job_id = f"classify-{uuid.uuid4().hex}"
    bind_contextvars(job=job_id, **({"user": body.user} if body.user else {}))
    return job_id


def _context(request: Request) -> RequestContext:
    return RequestContext(tenant_of(request), time.monotonic(), tokenization_of(request))


def _json(value: Any) -> Response:
    return Response(encode(value), media_type="application/json")
