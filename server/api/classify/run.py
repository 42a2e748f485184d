"""Runs the prompts of a classify request on a pool: one pass for each, over a shared beginning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from plait.server.api.interfaces import PoolLike
from plait.server.api.responses.outputs import check_reason
from plait.server.errors import BadRequest, Internal
from plait.server.wire.messages import Delta, GenerateRequest, Started

MAX_IN_FLIGHT = 32  # prompts of one request at once: others need places in the queue as well
# A worker's names of what it refuses, in the client's words.
FIELDS = {"prompt": "input", "max_tokens": "input", "continuations": "classes"}
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class PromptScores:
    """What a model makes of one prompt."""

    logprobs: Sequence[float]  # of each label word
    cached_tokens: int  # of the prompt, found in the prefix cache
    hidden: bytes = b""  # float32, if wanted


async def score_all(
    pool: PoolLike, model: str, templates: Sequence[Sequence[GenerateRequest]], block_size: int
) -> list[list[PromptScores]]:
    """Return the scores of each template's prompts.

    Where the prompts of a template begin alike for a block of the KV cache or more, one goes first
    and the others find that beginning in the prefix cache. The first error ends all.

    Raises:
        ServerError: the pool refuses a prompt or can't score it.
    """
    places = asyncio.Semaphore(MAX_IN_FLIGHT)
    one = partial(_score, pool, model, places)

    async def template(requests: Sequence[GenerateRequest]) -> list[PromptScores]:
        has_shared = num_shared([each.prompt_token_ids for each in requests]) >= block_size
        first = [await one(each) for each in requests[:has_shared]]
        return [*first, *await _together([one(each) for each in requests[has_shared:]])]

    return await _together([template(requests) for requests in templates])


def num_shared(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with; 0 for a single one, which shares nothing."""
    if len(prompts) < 2:
        return 0
    least, greatest = min(prompts), max(prompts)
    pairs = zip(least, greatest, strict=False)
    differing = (i for i, (one, other) in enumerate(pairs) if one != other)
    return next(differing, min(len(least), len(greatest)))


async def _score(
    pool: PoolLike, model: str, places: asyncio.Semaphore, request: GenerateRequest
) -> PromptScores:
    """Return the scores of one prompt, when there is a place for it."""
    async with places, aclosing(pool.generate(model, request)) as events:
        try:
            return await _scores_of(events)
        except BadRequest as error:
            error.param = FIELDS.get(error.param or "", error.param)
            raise


async def _scores_of(events: AsyncGenerator[Started | Delta, None]) -> PromptScores:
    cached = 0
    async for event in events:
        if isinstance(event, Started):
            cached = event.cached_tokens
            continue
        check_reason(event.finish_reason)
        if event.scores is not None:
            return PromptScores(event.scores.logprobs, cached, event.scores.hidden)
    raise Internal("The answer ended early.")


async def _together(works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return the results of works that run concurrently; the first error cancels the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
