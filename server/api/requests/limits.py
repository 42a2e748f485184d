"""The operator's limits on one request, and what its fields must be to each other."""

from __future__ import annotations

from collections.abc import Sequence

from plait.server.api.requests.budget import REST_OF_CONTEXT
from plait.server.api.schemas.chat import AssistantMessage, ChatRequest
from plait.server.api.schemas.common import GenerationRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest
from plait.server.settings import LimitSettings

# An answer between two texts has the length it has: no token of its own ends it.
NOT_WITH_SUFFIX = ("stop_token_ids", "structured_outputs")
NOT_WITH_INFILL = ("suffix", "echo", "stop", "min_tokens", "max_tokens")


def check_request(request: GenerationRequest, limits: LimitSettings) -> None:
    """Raise BadRequest for the first field that is over a limit or contradicts another.

    Runs before anything is tokenised or allocated.
    """
    _check_counts(request, limits)
    _check_logprobs(request.prompt_logprobs, limits, param="prompt_logprobs")
    _check_stream(request)
    if isinstance(request, ChatRequest):
        _check_chat(request, limits)
    elif isinstance(request, CompletionRequest):
        _check_completion(request, limits)


def _check_counts(request: GenerationRequest, limits: LimitSettings) -> None:
    stops = request.stops
    sizes = (
        ("n", request.n or 1, limits.max_n, ""),
        ("stop", len(stops), limits.max_stop_strings, " strings"),
        ("stop", max(map(len, stops), default=0), limits.max_stop_chars, " characters each"),
        ("stop_token_ids", len(request.stop_token_ids or ()), limits.max_logit_bias, " ids"),
        ("logit_bias", len(request.logit_bias or ()), limits.max_logit_bias, " tokens"),
        ("logprob_token_ids", len(request.logprob_token_ids or ()), limits.max_logit_bias, " ids"),
        ("bad_words", len(request.bad_words or ()), limits.max_bad_words, " strings"),
        ("cache_salt", len(request.cache_salt or ""), limits.max_cache_salt_chars, " characters"),
    )
    for param, size, limit, unit in sizes:
        if size > limit:
            raise BadRequest(f"{param} may have at most {limit}{unit}.", param=param)


def _check_stream(request: GenerationRequest) -> None:
    if request.prompt_logprobs is not None and request.stream:
        raise BadRequest("prompt_logprobs and stream exclude each other.", param="prompt_logprobs")
    options = request.stream_options
    if options is None:
        return
    if options.continuous_usage_stats and not options.include_usage:
        raise BadRequest(
            "continuous_usage_stats needs include_usage.",
            param="stream_options.continuous_usage_stats",
        )
    if not request.stream and any(options.model_dump().values()):
        raise BadRequest("stream_options needs stream=true.", param="stream_options")


def _check_named(token_ids: list[int] | None, num_logprobs: int | None) -> None:
    if token_ids and num_logprobs is None:
        raise BadRequest("logprob_token_ids needs logprobs.", param="logprob_token_ids")


def _check_logprobs(num_logprobs: int | None, limits: LimitSettings, *, param: str) -> None:
    if (num_logprobs or 0) > limits.max_logprobs:
        raise BadRequest(f"{param} may be at most {limits.max_logprobs}.", param=param)


def _check_chat(request: ChatRequest, limits: LimitSettings) -> None:
    _check_logprobs(request.top_logprobs, limits, param="top_logprobs")
    _check_named(request.logprob_token_ids, request.num_logprobs)
    if request.top_logprobs and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs=true.", param="top_logprobs")
    for name in ("max_tokens", "max_completion_tokens"):
        if getattr(request, name) == 0:
            raise BadRequest(f"{name} must be at least 1, or -1.", param=name)
    for i, message in enumerate(request.messages):
        if isinstance(message, AssistantMessage) and message.refusal and message.content:
            raise BadRequest(
                "A message has either content or a refusal.", param=f"messages[{i}].refusal"
            )
    _check_continuation(request)


def _check_continuation(request: ChatRequest) -> None:
    if not request.continue_final_message:
        if request.echo:
            raise BadRequest("echo needs continue_final_message=true.", param="echo")
        return
    if request.add_generation_prompt:
        raise BadRequest(
            "continue_final_message and add_generation_prompt exclude each other.",
            param="continue_final_message",
        )
    if request.messages[-1].role != "assistant":
        raise BadRequest(
            "The last message must be an assistant's to be continued.", param="messages"
        )


def _check_completion(request: CompletionRequest, limits: LimitSettings) -> None:
    n = request.n or 1
    _check_logprobs(request.logprobs, limits, param="logprobs")
    _check_named(request.logprob_token_ids, request.num_logprobs)
    if request.best_of not in (None, n):
        raise BadRequest(
            "best_of is not supported unless it equals n.",
            param="best_of",
            code="unsupported_parameter",
        )
    if len(request.prompts) * n > limits.max_sequences_per_request:
        raise BadRequest(
            f"prompts x n may be at most {limits.max_sequences_per_request}.", param="prompt"
        )
    if request.max_tokens == 0 and not request.echo:
        raise BadRequest("max_tokens=0 needs echo=true.", param="max_tokens")
    if request.suffix and request.max_tokens == REST_OF_CONTEXT:
        raise BadRequest(
            "The gap before a suffix has max_tokens tokens: say how many.", param="max_tokens"
        )
    if request.suffix:
        _check_apart(request, "suffix", NOT_WITH_SUFFIX)
    if request.infill is not None:
        _check_apart(request, "infill", (*NOT_WITH_SUFFIX, *NOT_WITH_INFILL))


def _check_apart(request: CompletionRequest, name: str, others: Sequence[str]) -> None:
    """Refuse fields that mean nothing between two texts."""
    for other in others:
        if getattr(request, other):
            raise BadRequest(f"{name} and {other} exclude each other.", param=name)
