"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response
from structlog.contextvars import bind_contextvars

from plait.server.api.app_state import pool_of, settings_of, telemetry_of, tokenization_of
from plait.server.api.auth import tenant_of
from plait.server.api.disconnect import cancel_on_disconnect
from plait.server.api.json_body import JsonRoute
from plait.server.api.openapi import response_docs
from plait.server.api.request_state import GENERATION
from plait.server.api.requests.job import GenerationJob, RequestContext, plan_chat, plan_completion
from plait.server.api.responses.chat import ChatResponseWriter
from plait.server.api.responses.completions import CompletionResponseWriter
from plait.server.api.responses.objects import ChatCompletion, ChatCompletionChunk, Completion
from plait.server.api.responses.outputs import GenerationOutput
from plait.server.api.responses.sse import EventStreamResponse
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.telemetry.logs import log_prompt

router = APIRouter(route_class=JsonRoute, tags=["generation"])
MAX_WARNINGS = 8  # named in a header


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses=response_docs(ChatCompletion, stream=ChatCompletionChunk),
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Continue a conversation."""
    pool, caller = pool_of(request), _caller(request)
    plan = plan_chat(pool, settings_of(request).limits, body, caller)
    job = await cancel_on_disconnect(request.receive, plan)
    _note(request, job, user=body.user, safety_identifier=body.safety_identifier)
    answer = ChatResponseWriter(job, body, _outputs(request, job))
    return await _respond(request, job, answer, stream=bool(body.stream))


@router.post(
    "/v1/completions",
    response_model=None,
    responses=response_docs(Completion, stream=Completion),
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one or several texts."""
    pool, caller = pool_of(request), _caller(request)
    plan = plan_completion(pool, settings_of(request).limits, body, caller)
    job = await cancel_on_disconnect(request.receive, plan)
    _note(request, job, user=body.user)
    answer = CompletionResponseWriter(job, body, _outputs(request, job))
    return await _respond(request, job, answer, stream=bool(body.stream))


async def _respond(
    request: Request,
    job: GenerationJob,
    answer: ChatResponseWriter | CompletionResponseWriter,
    *,
    stream: bool,
) -> Response:
    headers = {"x-plait-seed": str(job.seed), **_warning(job)}
    if stream:
        metrics = telemetry_of(request).metrics
        return EventStreamResponse(answer.events(), settings_of(request), metrics, headers=headers)
    whole = await cancel_on_disconnect(request.receive, answer.whole())
    return Response(whole, media_type="application/json", headers=headers)


def _warning(job: GenerationJob) -> dict[str, str]:
    """Return the header that tells of what was taken and changes nothing."""
    if not job.warnings:
        return {}
    more = ", ..." if len(job.warnings) > MAX_WARNINGS else ""
    named = ", ".join(job.warnings[:MAX_WARNINGS])
    return {"x-plait-warning": f"not read by this model's chat template: {named}{more}"}


def _note(request: Request, job: GenerationJob, **identifiers: str | None) -> None:
    """Put who asked on every log line of this request, and the prompts into the log if wanted."""
    bind_contextvars(job=job.id, **{key: who for key, who in identifiers.items() if who})
    settings = telemetry_of(request).settings
    if settings.log_prompts:
        for prompt in job.prompts:
            log_prompt(settings, job.id, job.tokenizer.decode(prompt.token_ids, special=True))


def _outputs(request: Request, job: GenerationJob) -> GenerationOutput:
    """Return what runs the job; the access log looks at it in the end."""
    outputs = GenerationOutput(pool_of(request), job)
    setattr(request.state, GENERATION, outputs)
    return outputs


def _caller(request: Request) -> RequestContext:
    return RequestContext(tenant_of(request), time.monotonic(), tokenization_of(request))
