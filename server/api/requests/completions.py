"""From a completions request to its job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.server.api.interfaces import PoolLike
from plait.server.api.requests.budget import REST_OF_CONTEXT
from plait.server.api.requests.job import GenerationJob, RequestContext, lower
from plait.server.api.requests.limits import check_logprob_ids, check_logprobs, check_shared
from plait.server.api.requests.model_support import check_model, check_scores, unsupported
from plait.server.api.requests.prompts import Prompt, completion_prompts
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import LimitSettings
from plait.server.wire.messages import ModelInfo

# The text between two texts has a fixed length: no token of its own ends it.
NOT_WITH_SUFFIX = ("stop_token_ids", "structured_outputs")
NOT_WITH_INFILL = ("stop_token_ids", "suffix", "echo", "stop", "min_tokens", "max_tokens")


async def lower_completion(
    pool: PoolLike, limits: LimitSettings, request: CompletionRequest, context: RequestContext
) -> GenerationJob:
    """Return the job of a completions request.

    Raises:
        BadRequest, NotFound, Unavailable: the request can't be served as it is.
    """
    return await lower(pool, limits, CompletionLowering(request), context)


@dataclass(frozen=True, slots=True)
class CompletionLowering:
    """A completions request on its way to a job."""

    request: CompletionRequest

    @property
    def num_chars(self) -> int:
        """Characters (or tokens, where they are given) of the prompts and the suffix."""
        return len(self.request.suffix or "") + sum(map(len, self.request.prompts))

    def check(self, limits: LimitSettings) -> None:
        """Raise BadRequest for the first field that is over a limit or contradicts another."""
        request = self.request
        check_shared(request, limits)
        check_logprobs(request.logprobs, limits, param="logprobs")
        check_logprob_ids(request)
        _check_sequences(request, limits)
        if request.max_tokens == 0 and not request.echo:
            raise BadRequest("max_tokens=0 needs echo=true.", param="max_tokens")
        if request.suffix and request.max_tokens == REST_OF_CONTEXT:
            raise BadRequest(
                "The gap before a suffix has max_tokens tokens: say how many.", param="max_tokens"
            )
        if request.suffix:
            _check_alone(request, "suffix", NOT_WITH_SUFFIX)
        if request.infill is not None:
            _check_alone(request, "infill", NOT_WITH_INFILL)

    def check_model(self, info: ModelInfo) -> None:
        """Raise BadRequest for a field that this model's worker can't honour."""
        request = self.request
        check_model(request, info)
        for name in ("suffix", "infill"):
            if getattr(request, name) and info.diffusion is None:
                raise unsupported("the model has no fill-in-the-middle tokens", name, "canvas")
        check_scores(request.num_echo_logprobs, info, param="logprobs")

    def prompts(
        self, tokenizer: Tokenizer, vocab_size: int, context: int, limits: LimitSettings
    ) -> Sequence[Prompt]:
        """Return the prompts as tokens; for a thread."""
        return completion_prompts(self.request, tokenizer, context)

    def warnings(self, tokenizer: Tokenizer) -> Sequence[str]:
        """Return nothing: every field is read."""
        return ()


def _check_sequences(request: CompletionRequest, limits: LimitSettings) -> None:
    n = request.n or 1
    best_of = n if request.best_of is None else request.best_of
    if best_of < n:
        raise BadRequest(f"best_of must be at least n, which is {n}.", param="best_of")
    if best_of > limits.max_n:
        raise BadRequest(f"best_of may be at most {limits.max_n}.", param="best_of")
    if best_of > n and request.stream:
        raise BadRequest("best_of above n and stream exclude each other.", param="best_of")
    if best_of > n and request.use_beam_search:
        raise BadRequest("best_of above n and use_beam_search exclude each other.", param="best_of")
    most = limits.max_sequences_per_request
    if len(request.prompts) * n > most:
        raise BadRequest(f"prompts x n may be at most {most}.", param="prompt")
    if len(request.prompts) * best_of > most:
        raise BadRequest(f"prompts x best_of may be at most {most}.", param="best_of")


def _check_alone(request: CompletionRequest, name: str, others: Sequence[str]) -> None:
    """Refuse fields that mean nothing between two texts."""
    for other in others:
        if getattr(request, other):
            raise BadRequest(f"{name} and {other} exclude each other.", param=name)
