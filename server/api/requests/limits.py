"""The operator's limits on the fields that chat and completions share; run before tokenization."""

from __future__ import annotations

from plait.server.api.schemas.generation import GenerationRequest
from plait.server.errors import BadRequest
from plait.server.settings import LimitSettings


def check_shared(request: GenerationRequest, limits: LimitSettings) -> None:
    """Raise BadRequest for the first shared field that is over a limit or contradicts another."""
    _check_counts(request, limits)
    check_logprobs(request.prompt_logprobs, limits, param="prompt_logprobs")
    _check_stream(request)
    if request.length_penalty not in (None, 1) and not request.use_beam_search:
        raise BadRequest("length_penalty needs use_beam_search=true.", param="length_penalty")


def check_logprobs(num_logprobs: int | None, limits: LimitSettings, *, param: str) -> None:
    """Raise BadRequest for more alternatives than the operator allows."""
    if (num_logprobs or 0) > limits.max_logprobs:
        raise BadRequest(f"{param} may be at most {limits.max_logprobs}.", param=param)


def check_logprob_ids(request: GenerationRequest) -> None:
    """Raise BadRequest for tokens that are named for logprobs which are not asked for."""
    if request.logprob_token_ids and request.num_logprobs is None:
        raise BadRequest("logprob_token_ids needs logprobs.", param="logprob_token_ids")


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
