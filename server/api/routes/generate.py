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
from plait.server.api.requests.chat import lower_chat
from plait.server.api.requests.completions import lower_completion
from plait.server.api.requests.job import GenerationJob, RequestContext
from plait.server.api.responses.chat import ChatResponseWriter
from plait.server.api.responses.completions import CompletionResponseWriter
from plait.server.api.responses.objects import ChatCompletion, ChatCompletionChunk, Completion
from plait.server.api.responses.outputs import GenerationOutput
from plait.server.api.responses.sse import EventStreamResponse
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.telemetry.logs import log_prompt

router = APIRouter(route_class=JsonRoute, tags=["generation"])
MAX_WARNINGS = 8  # that the header names


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses=response_docs(ChatCompletion, stream=ChatCompletionChunk),
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Continue a conversation."""
    limits = settings_of(request).limits
    lowering = lower_chat(pool_of(request), limits, body, _context(request))
    job = await cancel_on_disconnect(request.receive, lowering)
    _note(request, job, user=body.user, safety_identifier=body.safety_identifier)
    writer = ChatResponseWriter(job, body, _outputs(request, job))
    return await _respond(request, job, writer, stream=bool(body.stream))


@router.post(
    "/v1/completions",
    response_model=None,
    responses=response_docs(Completion, stream=Completion),
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one or several texts."""
    limits = settings_of(request).limits
    lowering = lower_completion(pool_of(request), limits, body, _context(request))
    job = await cancel_on_disconnect(request.receive, lowering)
    _note(request, job, user=body.user)
    writer = CompletionResponseWriter(job, body, _outputs(request, job))
    return await _respond(request, job, writer, stream=bool(body.stream))


async def _respond(
    request: Request,
    job: GenerationJob,
    writer: ChatResponseWriter | CompletionResponseWriter,
    *,
    stream: bool,
) -> Response:
    headers = {"x-plait-seed": str(job.seed), **_warning(job)}
    if stream:
        metrics = telemetry_of(request).metrics
        return EventStreamResponse(writer.events(), settings_of(request), metrics, headers=headers)
    body = await cancel_on_disconnect(request.receive, writer.body())
    return Response(body, media_type="application/json", headers=headers)


def _warning(job: GenerationJob) -> dict[str, str]:
    """Return the header that names fields which the chat template ignores."""
    if not job.warnings:
        return {}
    more = ", ..." if len(job.warnings) > MAX_WARNINGS else ""
    named = ", ".join(job.warnings[:MAX_WARNINGS])
    return {"x-plait-warning": f"not read by this model's chat template: {named}{more}"}


def _note(request: Request, job: GenerationJob, **identifiers: str | None) -> None:
    """Bind the client's identifiers to this request's log lines; log its prompts if enabled."""
    bind_contextvars(job=job.id, **{key: who for key, who in identifiers.items() if who})
    settings = telemetry_of(request).settings
    if settings.log_prompts:
        for prompt in job.prompts:
            log_prompt(settings, job.id, job.tokenizer.decode(prompt.token_ids, special=True))


def _outputs(request: Request, job: GenerationJob) -> GenerationOutput:
    """Return the job's output, and store it for the access log."""
    outputs = GenerationOutput(pool_of(request), job)
    setattr(request.state, GENERATION, outputs)
    return outputs


def _context(request: Request) -> RequestContext:
    return RequestContext(tenant_of(request), time.monotonic(), tokenization_of(request))
