"""The `decoding` object: methods by name, from the registry, checked against the model's worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from plait.decoders.contract.decoding import DecodingSpec, DiffusionMethods, PromptExtras
from plait.decoders.contract.registry import MethodError, compose
from plait.decoders.resolve import resolve_decoding
from plait.decoders.speculative.config import PREDICTED, parse_names, resolve_drafters
from plait.server.api.requests.constraints import constraint_spec
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.common import GenerationRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest
from plait.server.wire.messages import ModelInfo

NO_LITERALS = "A scaffold is for structured output: response_format or structured_outputs."


def decoding_spec(
    request: GenerationRequest, info: ModelInfo, extras: PromptExtras
) -> DecodingSpec:
    """Return what the request says of decoding, for the worker.

    Args:
        request: The request.
        info: What its model's worker can do.
        extras: What the request gives beside its prompt.
    Raises:
        BadRequest: a method or option that isn't there, that this model's worker can't run, or
            that can't be composed with the others.
    """
    options = {} if request.decoding is None else request.decoding.model_dump(exclude_none=True)
    prediction = request.prediction if isinstance(request, ChatRequest) else None
    try:
        if info.diffusion is None:
            _settle_drafter(options, info, has_prediction=prediction is not None)
        spec = resolve_decoding(options, info.diffusion, extras, capabilities=info.capabilities)
        if constraint_spec(request)[0] is None:
            _check_unconstrained(options)
        return spec
    except MethodError as error:
        raise BadRequest(str(error), param=error.param, code="unsupported_parameter") from None


def block_size(decoding: DecodingSpec) -> int:
    """Return the block size of which a text fills whole blocks; 1 where it may have any length."""
    methods = decoding.methods
    if isinstance(methods, DiffusionMethods) and methods.attention == "block":
        return methods.block_size
    return 1


def check_served(request: GenerationRequest, info: ModelInfo) -> None:
    """Raise BadRequest for a field that this model's worker can't honour."""
    spec = info.diffusion
    if spec is not None and isinstance(request, ChatRequest) and request.prediction is not None:
        raise _unsupported("a diffusion model drafts its own canvases", "prediction")
    if spec is not None and set(request.allowed_token_ids or ()) == {spec.mask_id}:
        raise _unsupported("the mask token is never an answer", "allowed_token_ids")
    if spec is not None and request.logprob_token_ids:
        raise _unsupported("a diffusion model tells of its likeliest tokens", "logprob_token_ids")
    has_scores = "prompt_logprobs" in info.capabilities
    if request.prompt_logprobs is not None and not has_scores:
        raise _unsupported("the model gives no logprobs of a prompt", "prompt_logprobs")
    if not isinstance(request, CompletionRequest):
        return
    for name in ("suffix", "infill"):
        if getattr(request, name) and spec is None:
            raise _unsupported("the model has no fill-in-the-middle tokens", name)
    scores = request.echo and request.logprobs is not None
    if scores and not has_scores:
        raise _unsupported("the model gives no logprobs of a prompt", "logprobs")


def _settle_drafter(options: dict[str, Any], info: ModelInfo, *, has_prediction: bool) -> None:
    """Put the server's default where a request names no drafter; a prediction needs its own.

    Raises:
        MethodError: a prediction that no drafter goes by, or the other way round.
    """
    is_own = options.get("drafter", "auto") != "auto"
    if not is_own and info.drafter != "auto":
        options["drafter"] = parse_names(info.drafter)
    is_used = PREDICTED in [choice.method.name for choice in resolve_drafters(options)]
    if has_prediction and not is_used:
        where = "decoding.drafter is" if is_own else "decoding.drafter is, by this server's default"
        raise MethodError(
            f"{where}, {json.dumps(options['drafter'])}: no draft would go by the prediction. "
            f'Add "{PREDICTED}" to decoding.drafter or leave the prediction out.',
            "prediction",
        )
    if is_own and is_used and not has_prediction:
        raise MethodError(
            f"{PREDICTED} drafts from a chat request's field `prediction`, which is not given.",
            "decoding.drafter",
        )


def _check_unconstrained(options: Mapping[str, Any]) -> None:
    if any(choice.method.part == "scaffold" for choice in compose(options, "unmasker")):
        raise MethodError(NO_LITERALS, "decoding.unmasker")


def _unsupported(why: str, param: str) -> BadRequest:
    return BadRequest(
        f"{param}: This is not supported: {why}", param=param, code="unsupported_parameter"
    )
