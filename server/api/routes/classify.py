"""POST /v1/classify: which class's label words a model finds likeliest behind a text."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Request, Response
from structlog.contextvars import bind_contextvars

from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.sampling.params import SamplingParams
from plait.server.api.app_state import pool_of, settings_of, tokenization_of
from plait.server.api.auth import tenant_of
from plait.server.api.classify import prompts as lowering
from plait.server.api.classify.answer import ClassificationList, classifications, usage_of
from plait.server.api.classify.prompts import ClassifyPrompts
from plait.server.api.classify.run import score_all
from plait.server.api.disconnect import cancel_on_disconnect
from plait.server.api.json_body import JsonRoute
from plait.server.api.openapi import response_docs
from plait.server.api.requests.job import cache_namespace, find_model, require_info
from plait.server.api.responses.objects import encode
from plait.server.api.schemas.classify import ClassifyRequest
from plait.server.wire.messages import GenerateRequest

router = APIRouter(route_class=JsonRoute, tags=["classification"])


@router.post("/v1/classify", response_model=None, responses=response_docs(ClassificationList))
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """Find the class of a text, or of several, by label words."""
    arrived = time.monotonic()
    answer = await cancel_on_disconnect(request.receive, _classify(body, request, arrived))
    return Response(encode(answer), media_type="application/json")


async def _classify(body: ClassifyRequest, request: Request, arrived: float) -> ClassificationList:
    limits, tenant = settings_of(request).limits, tenant_of(request)
    lowering.check(body, limits)
    served = find_model(pool_of(request), body.model)
    info = require_info(served)
    lowering.check_model(info)
    work = partial(lowering.tokenize, body, served, limits)
    found = await tokenization_of(request).run(tenant, lowering.num_chars(body), work)
    job_id = f"classify-{uuid.uuid4().hex}"
    bind_contextvars(job=job_id, **({"user": body.user} if body.user else {}))
    requests = _requests(body, found, job_id, tenant, arrived)
    scores = await score_all(pool_of(request), served.name, requests, info.block_size)
    return ClassificationList(
        job_id,
        int(time.time()),
        served.name,
        info.fingerprint,
        classifications(body, scores),
        usage_of(found.prompts, scores),
    )


def _requests(
    body: ClassifyRequest, found: ClassifyPrompts, job_id: str, tenant: str, arrived: float
) -> Sequence[Sequence[GenerateRequest]]:
    """Return the worker's request for each prompt of each template."""
    deadline = None if body.deadline_ms is None else arrived + body.deadline_ms / 1000
    return [
        [
            GenerateRequest(
                f"{job_id}-{t}-{i}",
                prompt,
                SamplingParams(),
                max_tokens=max(map(len, found.words)),
                priority=body.priority or 0,
                cache_salt=cache_namespace(tenant, body.cache_salt or ""),
                deadline=deadline,
                extras=PromptExtras(continuations=found.words),
                arrived=arrived,
            )
            for i, prompt in enumerate(template)
        ]
        for t, template in enumerate(found.prompts)
    ]
