"""From a validated request to what the pool runs: a job of one GenerateRequest per prompt."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from plait.server.api.jobs.constraints import compile_constraint
from plait.server.api.jobs.decoding import decoding_options
from plait.server.api.jobs.limits import check_request
from plait.server.api.jobs.sampling import check_ids, sampling_params
from plait.server.api.ports import PoolLike, ServedModelLike
from plait.server.api.schemas.chat import AssistantMessage, ChatRequest, Message
from plait.server.api.schemas.common import GenerationRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest, ContextTooLong, NotFound, Unavailable
from plait.server.pool.messages import GenerateRequest, ModelInfo
from plait.server.prompt.stop import StopStrings
from plait.server.prompt.template import chat_prompt, normalize
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import LimitSettings

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions


@dataclass(frozen=True, slots=True)
class Caller:
    """What the HTTP request says beside its body."""

    tenant: str  # a name of the API key, "" where no keys are set
    arrived: float  # time.monotonic()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as tokens, and as the text that `echo` repeats."""

    token_ids: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request's generation. Choice p * n + i is the i-th answer to prompt p."""

    id: str
    created: int
    model: str
    fingerprint: str
    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    requests: Sequence[GenerateRequest]
    stop: StopStrings | None
    include_stop: bool

    @property
    def n(self) -> int:
        """Answers per prompt."""
        return self.requests[0].n

    @property
    def seed(self) -> int:
        """The seed, given or drawn."""
        return self.requests[0].sampling.seed


async def plan_chat(
    pool: PoolLike, limits: LimitSettings, request: ChatRequest, caller: Caller
) -> Job:
    """Return the job of a chat request.

    Raises:
        BadRequest, NotFound, Unavailable: what the request asks for can't be had.
    """
    check_request(request, limits)
    served = find_model(pool, request.model)
    token_ids = await chat_tokens(
        served.tokenizer,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=bool(request.continue_final_message),
        kwargs=request.chat_template_kwargs,
    )
    text = _message_text(request.messages[-1]) if request.echo else ""
    max_tokens = request.max_completion_tokens or request.max_tokens
    return await _plan(
        pool, limits, request, caller, prompts=[Prompt(token_ids, text)], max_tokens=max_tokens
    )


async def plan_completion(
    pool: PoolLike, limits: LimitSettings, request: CompletionRequest, caller: Caller
) -> Job:
    """Return the job of a completions request.

    Raises:
        BadRequest, NotFound, Unavailable: what the request asks for can't be had.
    """
    check_request(request, limits)
    tokenizer = find_model(pool, request.model).tokenizer
    prompts = await asyncio.to_thread(
        lambda: [_completion_prompt(prompt, tokenizer) for prompt in request.prompts]
    )
    return await _plan(
        pool, limits, request, caller, prompts=prompts, max_tokens=request.max_tokens
    )


def find_model(pool: PoolLike, name: str | None) -> ServedModelLike:
    """Return a served model by name; None will do where there is only one.

    Raises:
        NotFound: it isn't served.
        BadRequest: there are several, and no name was given.
    """
    models = pool.models()
    if name is None and len(models) != 1:
        raise BadRequest("Several models are served; name one.", param="model")
    for served in models:
        if name in (None, served.name):
            return served
    names = ", ".join(served.name for served in models)
    raise NotFound(
        f"There is no such model; this server has: {names}.", param="model", code="model_not_found"
    )


def loaded_info(served: ServedModelLike) -> ModelInfo:
    """Return what a worker told of the model; raise Unavailable while none has loaded it."""
    if served.info is None:
        raise Unavailable(f"The model {served.name!r} is still loading.")
    return served.info


async def chat_tokens(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool,
    kwargs: dict[str, Any] | None,
) -> list[int]:
    """Return the tokens of a conversation, rendered off the event loop."""
    opens_turn = (
        not continue_final_message if add_generation_prompt is None else add_generation_prompt
    )
    return await asyncio.to_thread(
        chat_prompt,
        tokenizer,
        [_template_message(message) for message in messages],
        add_generation_prompt=opens_turn,
        continue_final_message=continue_final_message,
        kwargs=kwargs,
    )


async def _plan(
    pool: PoolLike,
    limits: LimitSettings,
    request: ChatRequest | CompletionRequest,
    caller: Caller,
    *,
    prompts: Sequence[Prompt],
    max_tokens: int | None,
) -> Job:
    served = find_model(pool, request.model)
    info = loaded_info(served)
    check_ids(request.stop_token_ids or [], info.vocab_size, param="stop_token_ids")
    budgets = [_budget(request, prompt, info, max_tokens) for prompt in prompts]
    common = GenerateRequest(
        request_id=f"{_prefix(request)}-{uuid.uuid4().hex}",
        prompt_token_ids=[],
        sampling=sampling_params(request, served.tokenizer, limits),
        max_tokens=0,
        n=request.n or 1,
        stop_token_ids=_stop_ids(request, served.tokenizer),
        constraint=await compile_constraint(pool, request, budget=min(budgets)),
        prompt_logprobs=_num_prompt_logprobs(request),
        priority=request.priority or 0,
        cache_salt=_cache_salt(caller.tenant, request.cache_salt or ""),
        affinity=(isinstance(request, ChatRequest) and request.prompt_cache_key) or "",
        deadline=_deadline(request, caller),
        decoding=decoding_options(request, info),
        arrived=caller.arrived,
    )
    return Job(
        id=common.request_id,
        created=int(time.time()),
        model=served.name,
        fingerprint=info.fingerprint,
        tokenizer=served.tokenizer,
        prompts=prompts,
        requests=[
            msgspec.structs.replace(
                common,
                request_id=f"{common.request_id}-{i}",
                prompt_token_ids=prompt.token_ids,
                max_tokens=budget,
            )
            for i, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True))
        ],
        stop=StopStrings(request.stops) if request.stops else None,
        include_stop=bool(request.include_stop_str_in_output),
    )


def _prefix(request: GenerationRequest) -> str:
    return "chatcmpl" if isinstance(request, ChatRequest) else "cmpl"


def _template_message(message: Message) -> dict[str, Any]:
    fields = message.model_dump(include={"role", "content", "name"}, exclude_none=True)
    if isinstance(message, AssistantMessage) and message.content is None:
        fields["content"] = message.refusal or ""
    return fields


def _message_text(message: Message) -> str:
    return normalize([_template_message(message)])[0]["content"]


def _completion_prompt(prompt: str | list[int], tokenizer: Tokenizer) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(tokenizer.encode(prompt), prompt)
    check_ids(prompt, tokenizer.vocab_size, param="prompt")
    return Prompt(prompt, tokenizer.decode(prompt))


def _budget(
    request: GenerationRequest, prompt: Prompt, info: ModelInfo, max_tokens: int | None
) -> int:
    """Return how many tokens the answers to a prompt may have."""
    is_chat = isinstance(request, ChatRequest)
    param = "messages" if is_chat else "prompt"
    length = len(prompt.token_ids)
    if not length:
        raise BadRequest("The prompt has no tokens; give at least one.", param=param)
    context = min(info.max_model_len, (info.num_blocks - 1) * info.block_size)
    left = context - length
    if left < (1 if max_tokens is None else max_tokens):
        asked = "" if max_tokens is None else f" and {max_tokens} were asked for"
        raise ContextTooLong(
            f"This model's context has {context} tokens; the prompt has {length}{asked}.",
            param=param,
        )
    budget = max_tokens
    if budget is None:
        budget = left if is_chat else min(left, COMPLETION_MAX_TOKENS)
    if (request.min_tokens or 0) > budget:
        raise BadRequest(
            f"min_tokens is {request.min_tokens}, but max_tokens is {budget}.", param="min_tokens"
        )
    return budget


def _stop_ids(request: GenerationRequest, tokenizer: Tokenizer) -> list[int]:
    eos = frozenset() if request.ignore_eos else tokenizer.eos_token_ids
    return sorted({*eos, *(request.stop_token_ids or ())})


def _num_prompt_logprobs(request: GenerationRequest) -> int | None:
    return request.logprobs if isinstance(request, CompletionRequest) and request.echo else None


def _cache_salt(tenant: str, salt: str) -> str:
    """Return the salt of the prefix cache: tenants don't see from timing what others have sent."""
    if not (tenant or salt):
        return ""
    return hashlib.blake2b(f"{tenant}\0{salt}".encode(), digest_size=16).hexdigest()


def _deadline(request: GenerationRequest, caller: Caller) -> float | None:
    return None if request.deadline_ms is None else caller.arrived + request.deadline_ms / 1000
