"""Lowering: from a validated request to a job, which has one GenerateRequest per prompt."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Protocol

import msgspec

from plait.decoders.sampling.params import SamplingParams
from plait.server.api.interfaces import PoolLike, ServedModelLike
from plait.server.api.requests.budget import ContextBudget, max_new_tokens
from plait.server.api.requests.constraints import (
    ConstraintContext,
    compile_constraint,
    compile_forms,
    enforcement_of,
)
from plait.server.api.requests.decoding import (
    block_size,
    check_search_size,
    client_fields,
    decoding_spec,
)
from plait.server.api.requests.prompts import Prompt
from plait.server.api.requests.sampling import (
    check_ids,
    resolve_logprobs,
    sampling_params,
    shared_vocab_size,
)
from plait.server.api.requests.tokenization import TokenizationExecutor
from plait.server.api.schemas.generation import GenerationRequest
from plait.server.errors import BadRequest, NotFound, Unavailable
from plait.server.prompt.stop import StopStrings
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import LimitSettings
from plait.server.wire.messages import GenerateRequest, ModelInfo


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What is known of an HTTP request beside its body."""

    tenant: str  # a name of the API key, "" where no keys are set
    arrived: float  # time.monotonic()
    tokenization: TokenizationExecutor = field(default_factory=TokenizationExecutor)


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """The generation that one HTTP request asks for. Choice p * n + i is output i of prompt p."""

    id: str
    created: int
    model: str
    fingerprint: str
    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    requests: Sequence[GenerateRequest]  # one for each prompt
    fields: Mapping[str, str]  # a worker's name for a request field -> the one that was used
    stop: StopStrings | None
    include_stop: bool
    prompt_logprobs: int | None  # alternatives returned for each token of a prompt
    token_bytes: Sequence[bytes]  # that each token adds to the text
    enforcement: Sequence[Mapping[str, str]] = ()  # of a schema's keywords, if it is to be told
    warnings: Sequence[str] = ()  # paths of fields that the model's chat template ignores

    @property
    def n(self) -> int:
        """Outputs per prompt."""
        return self.requests[0].n

    @property
    def seed(self) -> int:
        """The seed, given or drawn."""
        return self.requests[0].sampling.seed


class Lowering(Protocol):
    """A request of one kind (chat, completions) on its way to a job."""

    @property
    def request(self) -> GenerationRequest:
        """The request."""

    @property
    def num_chars(self) -> int:
        """Characters that have to be tokenized."""

    def check(self, limits: LimitSettings) -> None:
        """Raise BadRequest for the first field that is over a limit or contradicts another."""

    def check_model(self, info: ModelInfo) -> None:
        """Raise BadRequest for a field that this model's worker can't honour."""

    def prompts(
        self, tokenizer: Tokenizer, vocab_size: int, context: int, limits: LimitSettings
    ) -> Sequence[Prompt]:
        """Return the prompts as tokens; for a thread.

        Args:
            tokenizer: The model's.
            vocab_size: Token ids below it are the model's (shared_vocab_size).
            context: The longest possible text in tokens; longer ones are refused untokenized.
            limits: The operator's.
        """

    def warnings(self, tokenizer: Tokenizer) -> Sequence[str]:
        """Return the paths of fields that are accepted and have no effect with this model."""


def find_model(pool: PoolLike, name: str | None) -> ServedModelLike:
    """Return a served model by name; without a name, the only one.

    Raises:
        NotFound: no model has this name.
        BadRequest: there is no name, and several models are served.
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
    """Return the model's info; raise Unavailable while no worker has loaded it."""
    if served.info is None:
        raise Unavailable(f"The model {served.name!r} is still loading.")
    return served.info


async def lower(
    pool: PoolLike, limits: LimitSettings, lowering: Lowering, context: RequestContext
) -> GenerationJob:
    """Return the job of a request.

    Raises:
        BadRequest, NotFound, Unavailable: the request can't be served as it is.
    """
    lowering.check(limits)
    request, tenant = lowering.request, context.tenant
    served = find_model(pool, request.model)
    lowering.check_model(info := require_info(served))
    size = lowering.num_chars + sum(map(len, request.bad_words or ()))
    work = partial(_tokenize, lowering, served, limits)
    prompts, sampling = await context.tokenization.run(tenant, size, work)
    decoding = decoding_spec(request, info, prompts[0].extras)
    check_search_size(request, decoding, len(prompts), limits)
    room = ContextBudget(info, block_size(decoding))
    budgets = [max_new_tokens(request, p, room, clamp=limits.clamp_max_tokens) for p in prompts]
    most = [len(p.token_ids) if p.holes else b for p, b in zip(prompts, budgets, strict=True)]
    bounds = ConstraintContext(min(most), prompts[0].prefill, sampling, _deadline(request, context))
    shared = GenerateRequest(
        request_id=f"{request.id_prefix}-{uuid.uuid4().hex}",
        prompt_token_ids=[],
        sampling=sampling,
        max_tokens=0,
        n=request.n or 1,
        stop_token_ids=_stop_ids(request, served.tokenizer, info),
        constraint=await compile_constraint(pool, served.name, request, bounds, tenant),
        prompt_logprobs=_num_prompt_logprobs(request, limits),
        priority=request.priority or 0,
        cache_salt=cache_namespace(tenant, request.cache_salt or ""),
        affinity=request.affinity,
        deadline=bounds.deadline,
        decoding=decoding,
        scorer_forms=await compile_forms(pool, served.name, decoding, bounds, tenant),
        arrived=context.arrived,
    )
    return GenerationJob(
        id=shared.request_id,
        created=int(time.time()),
        model=served.name,
        fingerprint=info.fingerprint,
        tokenizer=served.tokenizer,
        prompts=prompts,
        requests=list(map(partial(_request_of, shared), count(), prompts, budgets)),
        fields=client_fields(request),
        stop=StopStrings(request.stops) if request.stops else None,
        include_stop=bool(request.include_stop_str_in_output),
        prompt_logprobs=resolve_logprobs(request.prompt_logprobs, limits),
        token_bytes=_token_bytes(request, served.tokenizer),
        enforcement=enforcement_of(request, shared.constraint) if decoding.trace else (),
        warnings=lowering.warnings(served.tokenizer),
    )


def _tokenize(
    lowering: Lowering, served: ServedModelLike, limits: LimitSettings
) -> tuple[Sequence[Prompt], SamplingParams]:
    """Return a request's prompts and sampling parameters; for a thread.

    Raises:
        BadRequest: a text is too long, or a token is not of the model.
    """
    request, tokenizer, info = lowering.request, served.tokenizer, require_info(served)
    vocab_size = shared_vocab_size(tokenizer, info)
    prompts = lowering.prompts(tokenizer, vocab_size, ContextBudget(info, 1).context, limits)
    for prompt in prompts:  # the tokenizer may have written a token that the model has no row for
        check_ids(prompt.token_ids, vocab_size, param=request.prompt_field)
        check_ids(prompt.suffix, vocab_size, param="suffix")
    return prompts, sampling_params(request, tokenizer, vocab_size, limits)


def _request_of(shared: GenerateRequest, i: int, prompt: Prompt, budget: int) -> GenerateRequest:
    """Return the worker's request for one prompt."""
    return msgspec.structs.replace(
        shared,
        request_id=f"{shared.request_id}-{i}",
        prompt_token_ids=prompt.token_ids,
        max_tokens=budget,
        extras=prompt.extras,
    )


def _token_bytes(request: GenerationRequest, tokenizer: Tokenizer) -> Sequence[bytes]:
    """Return the bytes that each token adds to the output's text."""
    return (
        tokenizer.written_bytes if request.skip_special_tokens is False else tokenizer.token_bytes
    )


def _stop_ids(request: GenerationRequest, tokenizer: Tokenizer, info: ModelInfo) -> list[int]:
    vocab_size = shared_vocab_size(tokenizer, info)
    check_ids(request.stop_token_ids or [], vocab_size, param="stop_token_ids")
    own = info.diffusion.eos_ids if info.diffusion is not None else ()
    eos = () if request.ignore_eos else (*tokenizer.eos_token_ids, *own)
    return sorted({*(i for i in eos if i < info.vocab_size), *(request.stop_token_ids or ())})


def _num_prompt_logprobs(request: GenerationRequest, limits: LimitSettings) -> int | None:
    """Return how many alternatives the worker has to compute for each token of the prompts."""
    asked = (request.prompt_logprobs, request.num_echo_logprobs)
    found = [k for k in (resolve_logprobs(each, limits) for each in asked) if k is not None]
    return max(found, default=None)


def cache_namespace(tenant: str, salt: str) -> str:
    """Return the salt of the prefix cache, which is the namespace of the draft store as well.

    Each tenant has its own, so that timing reveals nothing of what others have sent.
    """
    if not (tenant or salt):
        return ""
    return hashlib.blake2b(f"{tenant}\0{salt}".encode(), digest_size=16).hexdigest()


def _deadline(request: GenerationRequest, context: RequestContext) -> float | None:
    return None if request.deadline_ms is None else context.arrived + request.deadline_ms / 1000
