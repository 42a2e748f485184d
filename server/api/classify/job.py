"""Has a model read the prompts of a task, from texts to scores."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.sampling.params import SamplingParams
from plait.server.api.classify.prompts import TaskTokens, check_model, tokenize
from plait.server.api.classify.run import PromptScores, score_all
from plait.server.api.classify.task import ScoringTask, check_salt
from plait.server.api.interfaces import PoolLike, ServedModelLike
from plait.server.api.requests.job import (
    RequestContext,
    cache_namespace,
    find_model,
    require_info,
)
from plait.server.api.responses.objects import CompletionTokensDetails, PromptTokensDetails, Usage
from plait.server.api.schemas.classify import ScoringFields
from plait.server.settings import LimitSettings
from plait.server.wire.messages import GenerateRequest


@dataclass(frozen=True, slots=True)
class ScoredTask:
    """What a model makes of a task's prompts."""

    tokens: TaskTokens
    scores: Sequence[Sequence[PromptScores]]  # as tokens.prompts

    @property
    def usage(self) -> Usage:
        """The tokens of all prompts; nothing is generated."""
        count = sum(len(prompt) for template in self.tokens.prompts for prompt in template)
        cached = sum(each.cached_tokens for template in self.scores for each in template)
        details = PromptTokensDetails(cached), CompletionTokensDetails()
        return Usage(count, 0, count, *details)


def find_scoring_model(pool: PoolLike, name: str | None) -> ServedModelLike:
    """Return a served model that scores continuations; raise ServerError for others."""
    served = find_model(pool, name)
    check_model(require_info(served))
    return served


async def run_task(
    pool: PoolLike,
    limits: LimitSettings,
    request: ScoringFields,
    task: ScoringTask,
    context: RequestContext,
    *,
    wants_hidden: bool,
) -> ScoredTask:
    """Return the scores of a task's prompts, with hidden states if they are wanted.

    Raises:
        BadRequest, NotFound, Unavailable: the request can't be served as it is.
    """
    task.check(limits)
    check_salt(request.cache_salt, limits)
    served = find_scoring_model(pool, request.model)
    work = partial(tokenize, task, served, limits)
    tokens = await context.tokenization.run(context.tenant, task.num_chars, work)
    shared = _shared(request, tokens, context, wants_hidden=wants_hidden)
    requests = [
        [
            msgspec.structs.replace(
                shared, request_id=f"{shared.request_id}-{t}-{i}", prompt_token_ids=prompt
            )
            for i, prompt in enumerate(template)
        ]
        for t, template in enumerate(tokens.prompts)
    ]
    block_size = require_info(served).block_size
    return ScoredTask(tokens, await score_all(pool, served.name, requests, block_size))


def _shared(
    request: ScoringFields, tokens: TaskTokens, context: RequestContext, *, wants_hidden: bool
) -> GenerateRequest:
    """Return the worker's request without its prompt."""
    ms = request.deadline_ms
    return GenerateRequest(
        uuid.uuid4().hex,
        [],
        SamplingParams(),
        max_tokens=max(map(len, tokens.words), default=0),
        priority=request.priority or 0,
        cache_salt=cache_namespace(context.tenant, request.cache_salt or ""),
        deadline=None if ms is None else context.arrived + ms / 1000,
        extras=PromptExtras(continuations=tokens.words, wants_hidden=wants_hidden),
        arrived=context.arrived,
    )
