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

from plait.server.api.jobs.budget import Room, budget_of
from plait.server.api.jobs.constraints import compile_constraint
from plait.server.api.jobs.decoding import check_served, plan_decoding
from plait.server.api.jobs.limits import check_request
from plait.server.api.jobs.prompts import Prompt, completion_prompts, predicted_ids
from plait.server.api.jobs.sampling import check_ids, num_ids, sampling_params
from plait.server.api.ports import PoolLike, ServedModelLike
from plait.server.api.schemas.chat import AssistantMessage, ChatRequest, Message
from plait.server.api.schemas.common import GenerationRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest, NotFound, Unavailable
from plait.server.pool.messages import GenerateRequest, ModelInfo
from plait.server.prompt.stop import StopStrings
from plait.server.prompt.template import chat_prompt, normalize
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import LimitSettings


@dataclass(frozen=True, slots=True)
class Caller:
    """What the HTTP request says beside its body."""

    tenant: str  # a name of the API key, "" where no keys are set
    arrived: float  # time.monotonic()


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
    vocab_size = num_ids(served.tokenizer, loaded_info(served))
    prediction = await asyncio.to_thread(
        predicted_ids, request, served.tokenizer, vocab_size, limits
    )
    prompt = Prompt(token_ids, text, prediction=prediction)
    max_tokens = request.max_completion_tokens or request.max_tokens
    return await _plan(pool, limits, request, caller, prompts=[prompt], max_tokens=max_tokens)


async def plan_completion(
    pool: PoolLike, limits: LimitSettings, request: CompletionRequest, caller: Caller
) -> Job:
    """Return the job of a completions request.

    Raises:
        BadRequest, NotFound, Unavailable: what the request asks for can't be had.
    """
    check_request(request, limits)
    served = find_model(pool, request.model)
    context = loaded_info(served).max_model_len
    prompts = await asyncio.to_thread(completion_prompts, request, served.tokenizer, context)
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
    names = ", ".join(served.name for served in models)
    if name is None and len(models) != 1:
        raise BadRequest(f"Several models are served; name one of: {names}.", param="model")
    for served in models:
        if name in (None, served.name):
            return served
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
    served, tenant = find_model(pool, request.model), caller.tenant
    info = loaded_info(served)
    check_served(request, info)
    decoding = plan_decoding(request, info, prompts[0].options)
    room = Room(info, decoding.block_size)
    vocab_size = num_ids(served.tokenizer, info)
    _check_prompts(request, prompts, vocab_size)
    budgets = [budget_of(request, prompt, room, max_tokens) for prompt in prompts]
    common = GenerateRequest(
        request_id=f"{_prefix(request)}-{uuid.uuid4().hex}",
        prompt_token_ids=[],
        sampling=sampling_params(request, served.tokenizer, vocab_size, limits),
        max_tokens=0,
        n=request.n or 1,
        stop_token_ids=_stop_ids(request, served.tokenizer, info),
        constraint=await compile_constraint(pool, served.name, request, min(budgets), tenant),
        prompt_logprobs=_num_prompt_logprobs(request),
        priority=request.priority or 0,
        cache_salt=namespace_of(tenant, request.cache_salt or ""),
        affinity=(isinstance(request, ChatRequest) and request.prompt_cache_key) or "",
        deadline=_deadline(request, caller),
        decoding=decoding.options,
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
            _request_of(common, i, prompt, budget)
            for i, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True))
        ],
        stop=StopStrings(request.stops) if request.stops else None,
        include_stop=bool(request.include_stop_str_in_output),
    )


def _request_of(common: GenerateRequest, i: int, prompt: Prompt, budget: int) -> GenerateRequest:
    """Return what the worker gets for one prompt."""
    return msgspec.structs.replace(
        common,
        request_id=f"{common.request_id}-{i}",
        prompt_token_ids=prompt.token_ids,
        max_tokens=budget,
        decoding=common.decoding | prompt.options,
    )


def _check_prompts(request: GenerationRequest, prompts: Sequence[Prompt], vocab_size: int) -> None:
    """Raise BadRequest if the tokenizer has written a token that the model has no row for."""
    param = "messages" if isinstance(request, ChatRequest) else "prompt"
    for prompt in prompts:
        check_ids(prompt.token_ids, vocab_size, param=param)
        check_ids(prompt.suffix, vocab_size, param="suffix")


def _prefix(request: GenerationRequest) -> str:
    return "chatcmpl" if isinstance(request, ChatRequest) else "cmpl"


def _template_message(message: Message) -> dict[str, Any]:
    fields = message.model_dump(include={"role", "content", "name"}, exclude_none=True)
    if isinstance(message, AssistantMessage):
        fields.setdefault("content", message.refusal or "")
        if thought := message.reasoning_content or message.reasoning:
            fields["reasoning_content"] = thought
    return fields


def _message_text(message: Message) -> str:
    return normalize([_template_message(message)])[0]["content"]


def _stop_ids(request: GenerationRequest, tokenizer: Tokenizer, info: ModelInfo) -> list[int]:
    vocab_size = num_ids(tokenizer, info)
    check_ids(request.stop_token_ids or [], vocab_size, param="stop_token_ids")
    own = info.diffusion.eos_ids if info.diffusion is not None else ()
    eos = () if request.ignore_eos else (*tokenizer.eos_token_ids, *own)
    return sorted({*(i for i in eos if i < info.vocab_size), *(request.stop_token_ids or ())})


def _num_prompt_logprobs(request: GenerationRequest) -> int | None:
    return request.logprobs if isinstance(request, CompletionRequest) and request.echo else None


def namespace_of(tenant: str, salt: str) -> str:
    """Return the salt of the prefix cache and the namespace of drafts.

    Tenants don't see from timing what others have sent.
    """
    if not (tenant or salt):
        return ""
    return hashlib.blake2b(f"{tenant}\0{salt}".encode(), digest_size=16).hexdigest()


def _deadline(request: GenerationRequest, caller: Caller) -> float | None:
    return None if request.deadline_ms is None else caller.arrived + request.deadline_ms / 1000
