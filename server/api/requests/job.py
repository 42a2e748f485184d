"""From a validated request to what the pool runs: a job of one GenerateRequest per prompt."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import msgspec

from plait.decoders.sampling.params import SamplingParams
from plait.server.api.interfaces import PoolLike, ServedModelLike
from plait.server.api.requests.budget import ContextBudget, max_new_tokens
from plait.server.api.requests.constraints import ConstraintContext, compile_constraint
from plait.server.api.requests.decoding import block_size, check_served, decoding_spec
from plait.server.api.requests.limits import check_request
from plait.server.api.requests.messages import chat_tokens, message_text, num_chars, warnings_of
from plait.server.api.requests.prompts import (
    Prompt,
    check_length,
    completion_prompts,
    predicted_ids,
)
from plait.server.api.requests.sampling import (
    check_ids,
    resolve_logprobs,
    sampling_params,
    shared_vocab_size,
)
from plait.server.api.requests.tokenization import TokenizationExecutor
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.common import GenerationRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest, NotFound, Unavailable
from plait.server.prompt.stop import StopStrings
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import LimitSettings
from plait.server.wire.messages import GenerateRequest, ModelInfo


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What the HTTP request says beside its body."""

    tenant: str  # a name of the API key, "" where no keys are set
    arrived: float  # time.monotonic()
    gate: TokenizationExecutor = field(
        default_factory=TokenizationExecutor
    )  # the application's own


@dataclass(frozen=True, slots=True)
class GenerationJob:
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
    prompt_logprobs: int | None  # alternatives that the answer shows for each token of a prompt
    token_bytes: Sequence[bytes]  # what each token adds to the text
    warnings: Sequence[str] = ()  # paths of what is taken and changes nothing with this model

    @property
    def n(self) -> int:
        """Answers per prompt."""
        return self.requests[0].n

    @property
    def seed(self) -> int:
        """The seed, given or drawn."""
        return self.requests[0].sampling.seed


async def plan_chat(
    pool: PoolLike, limits: LimitSettings, request: ChatRequest, caller: RequestContext
) -> GenerationJob:
    """Return the job of a chat request.

    Raises:
        BadRequest, NotFound, Unavailable: what the request asks for can't be had.
    """
    check_request(request, limits)
    size = num_chars(request.messages) + len(request.prediction.text if request.prediction else "")
    return await _plan(pool, limits, request, caller, size=size)


async def plan_completion(
    pool: PoolLike, limits: LimitSettings, request: CompletionRequest, caller: RequestContext
) -> GenerationJob:
    """Return the job of a completions request.

    Raises:
        BadRequest, NotFound, Unavailable: what the request asks for can't be had.
    """
    check_request(request, limits)
    size = len(request.suffix or "") + sum(map(len, request.prompts))
    return await _plan(pool, limits, request, caller, size=size)


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


def require_info(served: ServedModelLike) -> ModelInfo:
    """Return what a worker told of the model; raise Unavailable while none has loaded it."""
    if served.info is None:
        raise Unavailable(f"The model {served.name!r} is still loading.")
    return served.info


def tokenise(
    served: ServedModelLike, limits: LimitSettings, request: ChatRequest | CompletionRequest
) -> tuple[Sequence[Prompt], SamplingParams]:
    """Return a request's prompts and its sampling law: all that takes a tokenizer, for a thread.

    Raises:
        BadRequest: a text is too long, or a token is not of the model.
    """
    tokenizer, info = served.tokenizer, require_info(served)
    vocab_size, context = shared_vocab_size(tokenizer, info), ContextBudget(info, 1).context
    if isinstance(request, ChatRequest):
        check = partial(check_length, tokenizer=tokenizer, context=context, param="messages")
        prediction = predicted_ids(request, tokenizer, vocab_size, limits)
        text = message_text(request.messages[-1]) if request.echo else ""
        token_ids, prefill = chat_tokens(request, tokenizer, check)
        prompts = [Prompt(token_ids, text, prediction=prediction, prefill=prefill)]
    else:
        prompts = completion_prompts(request, tokenizer, context)
    _check_prompts(request, prompts, vocab_size)
    return prompts, sampling_params(request, tokenizer, vocab_size, limits)


async def _plan(
    pool: PoolLike,
    limits: LimitSettings,
    request: ChatRequest | CompletionRequest,
    caller: RequestContext,
    *,
    size: int,
) -> GenerationJob:
    """Return the job of a request of so many characters."""
    served, tenant = find_model(pool, request.model), caller.tenant
    info = require_info(served)
    check_served(request, info)
    size += sum(map(len, request.bad_words or ()))
    work = partial(tokenise, served, limits, request)
    prompts, sampling = await caller.gate.run(tenant, size, work)
    decoding = decoding_spec(request, info, prompts[0].extras)
    room = ContextBudget(info, block_size(decoding))
    budgets = [max_new_tokens(request, p, room, clamp=limits.clamp_max_tokens) for p in prompts]
    frame = ConstraintContext(
        min(budgets), prompts[0].prefill, sampling, _deadline(request, caller)
    )
    common = GenerateRequest(
        request_id=f"{_prefix(request)}-{uuid.uuid4().hex}",
        prompt_token_ids=[],
        sampling=sampling,
        max_tokens=0,
        n=request.n or 1,
        stop_token_ids=_stop_ids(request, served.tokenizer, info),
        constraint=await compile_constraint(pool, served.name, request, frame, tenant),
        prompt_logprobs=_num_prompt_logprobs(request, limits),
        priority=request.priority or 0,
        cache_salt=cache_namespace(tenant, request.cache_salt or ""),
        affinity=(isinstance(request, ChatRequest) and request.prompt_cache_key) or "",
        deadline=frame.deadline,
        decoding=decoding,
        arrived=caller.arrived,
    )
    return GenerationJob(
        id=common.request_id,
        created=int(time.time()),
        model=served.name,
        fingerprint=info.fingerprint,
        tokenizer=served.tokenizer,
        prompts=prompts,
        requests=list(map(partial(_request_of, common), count(), prompts, budgets)),
        stop=StopStrings(request.stops) if request.stops else None,
        include_stop=bool(request.include_stop_str_in_output),
        prompt_logprobs=resolve_logprobs(request.prompt_logprobs, limits),
        token_bytes=_shown_bytes(request, served.tokenizer),
        warnings=_warnings(request, served.tokenizer),
    )


def _request_of(common: GenerateRequest, i: int, prompt: Prompt, budget: int) -> GenerateRequest:
    """Return what the worker gets for one prompt."""
    return msgspec.structs.replace(
        common,
        request_id=f"{common.request_id}-{i}",
        prompt_token_ids=prompt.token_ids,
        max_tokens=budget,
        extras=prompt.extras,
    )


def _check_prompts(request: GenerationRequest, prompts: Sequence[Prompt], vocab_size: int) -> None:
    """Raise BadRequest if the tokenizer has written a token that the model has no row for."""
    param = "messages" if isinstance(request, ChatRequest) else "prompt"
    for prompt in prompts:
        check_ids(prompt.token_ids, vocab_size, param=param)
        check_ids(prompt.suffix, vocab_size, param="suffix")


def _warnings(request: GenerationRequest, tokenizer: Tokenizer) -> list[str]:
    return warnings_of(request, tokenizer) if isinstance(request, ChatRequest) else []


def _shown_bytes(request: GenerationRequest, tokenizer: Tokenizer) -> Sequence[bytes]:
    """Return what each token of an answer adds to its text."""
    return (
        tokenizer.written_bytes if request.skip_special_tokens is False else tokenizer.token_bytes
    )


def _prefix(request: GenerationRequest) -> str:
    return "chatcmpl" if isinstance(request, ChatRequest) else "cmpl"


def _stop_ids(request: GenerationRequest, tokenizer: Tokenizer, info: ModelInfo) -> list[int]:
    vocab_size = shared_vocab_size(tokenizer, info)
    check_ids(request.stop_token_ids or [], vocab_size, param="stop_token_ids")
    own = info.diffusion.eos_ids if info.diffusion is not None else ()
    eos = () if request.ignore_eos else (*tokenizer.eos_token_ids, *own)
    return sorted({*(i for i in eos if i < info.vocab_size), *(request.stop_token_ids or ())})


def _num_prompt_logprobs(request: GenerationRequest, limits: LimitSettings) -> int | None:
    """Return how many alternatives the worker has to find for each token of the prompts."""
    asked = [request.prompt_logprobs]
    if isinstance(request, CompletionRequest) and request.echo:
        asked.append(request.logprobs)
    found = [k for k in (resolve_logprobs(each, limits) for each in asked) if k is not None]
    return max(found, default=None)


def cache_namespace(tenant: str, salt: str) -> str:
    """Return the salt of the prefix cache and the namespace of drafts.

    Tenants don't see from timing what others have sent.
    """
    if not (tenant or salt):
        return ""
    return hashlib.blake2b(f"{tenant}\0{salt}".encode(), digest_size=16).hexdigest()


def _deadline(request: GenerationRequest, caller: RequestContext) -> float | None:
    return None if request.deadline_ms is None else caller.arrived + request.deadline_ms / 1000
